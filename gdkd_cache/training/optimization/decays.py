"""The schedules, each with its settings; what they compute is torch's."""

from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    StepLR,
)

from gdkd_cache.errors import UsageError
from gdkd_cache.fields import option
from gdkd_cache.limits import LARGEST_FACTOR, MOST_EPOCHS
from gdkd_cache.training.optimization.schedules import Schedule


@dataclass(frozen=True, kw_only=True)
class _Least(Schedule):
    least: float = option(0.0, "the learning rate at the end", least=0, most=LARGEST_FACTOR)

    def below(self, optimizer: Optimizer) -> float:
        """The least, which is no more than the learning rate."""
        lr = optimizer.defaults["lr"]
        if self.least > lr:
            raise UsageError(f"schedule: least is {self.least:g}, above lr, which is {lr:g}; it must not be")
        return self.least


@dataclass(frozen=True, kw_only=True)
class Cosine(_Least):
    """Half a cosine from the learning rate to the least: least + (lr - least) (1 + cos(pi t / epochs)) / 2."""

    def scheduler(self, optimizer: Optimizer, epochs: int, calls: int) -> LRScheduler:
        return CosineAnnealingLR(optimizer, epochs * calls, eta_min=self.below(optimizer))


@dataclass(frozen=True, kw_only=True)
class Linear(_Least):
    """A line from the learning rate to the least."""

    def scheduler(self, optimizer: Optimizer, epochs: int, calls: int) -> LRScheduler:
        end = self.below(optimizer) / optimizer.defaults["lr"]
        return LinearLR(optimizer, start_factor=1.0, end_factor=end, total_iters=epochs * calls)


@dataclass(frozen=True, kw_only=True)
class Polynomial(_Least):
    """A power of what is left, from the learning rate to the least: least + (lr - least) (1 - t / epochs)^power."""

    power: float = option(1.0, "the power", above=0, most=100)

    def scheduler(self, optimizer: Optimizer, epochs: int, calls: int) -> LRScheduler:
        if least := self.below(optimizer):
            return _PolynomialAbove(optimizer, epochs * calls, self.power, least)
        return PolynomialLR(optimizer, epochs * calls, self.power)


class _PolynomialAbove(PolynomialLR):
    """torch's, of what the learning rate has above a least one."""

    def __init__(self, optimizer: Optimizer, total_iters: int, power: float, least: float) -> None:
        self.least = least
        super().__init__(optimizer, total_iters, power)

    def get_lr(self) -> list[Any]:
        now = (group["lr"] for group in self.optimizer.param_groups)
        return [after + self.least * (1 - after / lr) for lr, after in zip(now, super().get_lr(), strict=True)]


@dataclass(frozen=True, kw_only=True)
class Step(Schedule):
    """The learning rate times gamma after each so many epochs."""

    every: int = option(30, "epochs", least=1, most=MOST_EPOCHS)
    gamma: float = option(0.1, "what it is multiplied with", above=0, most=1)

    def scheduler(self, optimizer: Optimizer, epochs: int, calls: int) -> LRScheduler:
        return StepLR(optimizer, self.every * calls, self.gamma)


@dataclass(frozen=True, kw_only=True)
class MultiStep(Schedule):
    """The learning rate times gamma after each of some epochs.

    Raises:
        UsageError: as `Schedule`; or the epochs are missing, or do not rise.
    """

    at: tuple[int, ...] = option((), "the epochs, rising, as in 150/180/210", least=1, most=MOST_EPOCHS)
    gamma: float = option(0.1, "what it is multiplied with", above=0, most=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.at or list(self.at) != sorted(set(self.at)):
            raise UsageError(
                f"schedule multistep: at is {'/'.join(map(str, self.at)) or 'missing'}; it must be rising epochs, as "
                "in multistep:at=150/180/210"
            )

    def scheduler(self, optimizer: Optimizer, epochs: int, calls: int) -> LRScheduler:
        return MultiStepLR(optimizer, [epoch * calls for epoch in self.at], self.gamma)


@dataclass(frozen=True, kw_only=True)
class OneCycle(Schedule):
    """A rise to the learning rate and a long fall far below where it began; momentum falls and rises meanwhile.

    Super-Convergence (Smith and Topin, 2017), in two phases; momentum (beta 1) runs from .95 to .85 and back.
    """

    rises = True

    rise: float = option(0.3, "part of the training that rises", above=0, most=0.99)
    start: float = option(25.0, "it begins at lr divided by this", least=1, most=LARGEST_FACTOR)
    end: float = option(1e4, "it ends at where it began divided by this", least=1, most=10**9)
    shape: str = option("cos", "of rise and fall", choices=("cos", "linear"))
    momentum: bool = option(True, "whether momentum runs against it")

    def scheduler(self, optimizer: Optimizer, epochs: int, calls: int) -> LRScheduler:
        if self.momentum and not {"momentum", "betas"} & optimizer.defaults.keys():
            raise UsageError("schedule one-cycle: the optimizer has no momentum; write one-cycle:momentum=false")
        if self.rise * epochs * calls <= 1:
            raise UsageError(
                f"schedule one-cycle: rise is {self.rise:g} of {epochs * calls} calls of the schedule, which is not "
                "more than one; train longer, or with --schedule-by step"
            )
        return OneCycleLR(
            optimizer,
            [group["lr"] for group in optimizer.param_groups],
            total_steps=epochs * calls,
            pct_start=float(self.rise),
            anneal_strategy="cos" if self.shape == "cos" else "linear",
            cycle_momentum=self.momentum,
            div_factor=self.start,
            final_div_factor=self.end,
        )
