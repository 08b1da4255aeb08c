"""How the learning rate changes: the schedule that an option names, with a warm-up, made of torch's own schedulers."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ChainedScheduler, LinearLR, LRScheduler

from gdkd_cache.errors import CacheError, UsageError
from gdkd_cache.fields import check_fields, parse_fields
from gdkd_cache.schema import short
from gdkd_cache.training.optimization.registry import SCHEDULES
from gdkd_cache.training.options import TrainOptions


@dataclass(frozen=True, kw_only=True)
class Schedule(ABC):
    """A schedule with its settings, which `option` made: epochs are counted from the training's start.

    Its scheduler's next learning rate must follow from how often it was called, and from the optimizer's groups.

    Raises:
        UsageError: a setting of another type or out of range; it names it.
    """

    rises: ClassVar[bool] = False
    """Whether it begins with a rise of its own, and so takes no warm-up."""

    def __post_init__(self) -> None:
        check_fields(self, f"schedule {SCHEDULES.name_of(type(self))}")

    @abstractmethod
    def scheduler(self, optimizer: Optimizer, epochs: int, calls: int) -> LRScheduler:
        """A fresh scheduler; the optimizer's learning rate is the largest one.

        Args:
            optimizer: whose learning rate changes.
            epochs: of the training.
            calls: of the scheduler in an epoch.

        Raises:
            UsageError: the settings do not fit the training.
        """


def parse_schedule(spec: str) -> Schedule:
    """Make a schedule from a spec such as `multistep:at=150/180/210,gamma=0.1`.

    Raises:
        UsageError: an unknown schedule or setting, or a value out of range.
    """
    name, settings = SCHEDULES.split(spec)
    return parse_fields(SCHEDULES.load(name), f"schedule {name}", settings)


def make_schedule(options: TrainOptions, optimizer: Optimizer, steps_per_epoch: int) -> LRScheduler:
    """The schedule of a training, to be called after each epoch, or after each step where `schedule_by` is `step`.

    With a warm-up of W calls the learning rate is the schedule's times min((c + 1) / (W + 1), 1) at call c. (One with
    a least is off by at most that least meanwhile: torch's schedulers each go on from what the others made.)

    Args:
        options: how to train.
        optimizer: fresh: its saved state is loaded after this, and then `load_schedule_state`.
        steps_per_epoch: optimizer steps in an epoch.

    Raises:
        UsageError: an unknown schedule or setting, or one that does not fit the training.
    """
    schedule = parse_schedule(options.schedule)
    if options.lr_warmup and schedule.rises:
        raise UsageError(f"schedule {options.schedule} begins with a rise of its own; leave lr_warmup out")
    calls = steps_per_epoch if options.schedule_by == "step" else 1
    chained = [schedule.scheduler(optimizer, options.epochs, calls)]
    if options.lr_warmup:
        warmup = options.lr_warmup * calls
        chained.append(LinearLR(optimizer, 1 / (warmup + 1), total_iters=warmup))
    return _Chained(chained)


class _Chained(ChainedScheduler):
    def step(self) -> None:
        with warnings.catch_warnings():
            # A scaler leaves out steps whose gradients are not finite, be it the first, of which torch warns here.
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
            super().step()


def schedule_state(schedule: LRScheduler) -> dict[str, int]:
    """All of a schedule that the optimizer's groups do not hold, as plain JSON."""
    return {"calls": schedule.state_dict()["_schedulers"][0]["last_epoch"]}


def load_schedule_state(schedule: LRScheduler, state: Mapping[str, int]) -> None:
    """Have a fresh schedule go on where another stopped; its optimizer has loaded that one's state before.

    Raises:
        CacheError: the state is none.
    """
    calls = state.get("calls")
    if type(calls) is not int or calls < 0:
        raise CacheError(f"the state of a schedule is {short(dict(state))}; expected how often it was called, in calls")
    whole = schedule.state_dict()
    for one in whole["_schedulers"]:
        one |= {"last_epoch": calls, "_step_count": calls + 1}
    schedule.load_state_dict(whole)
