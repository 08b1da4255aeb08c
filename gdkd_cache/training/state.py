"""What a training has come to: all that changes from step to step, in one object."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gdkd_cache.data.order import Stretch
from gdkd_cache.training.distributed import sum_over_ranks
from gdkd_cache.training.optimizers import make_optimizer, make_scaler
from gdkd_cache.training.options import TrainOptions
from gdkd_cache.training.schedules import make_schedule


@dataclass(kw_only=True)
class State:
    """A training between two steps; the network's mode and torch's random numbers go with it.

    Attributes:
        model, optimizer, schedule, scaler: as torch knows them.
        ema: the moving average of the weights, and of running statistics; None for none.
        epoch: those that are done.
        taken: what is done of the next one; () at its start.
        sums: of the epoch's terms by name, weighted with the images, on this rank; under `images`, how many. Likewise
            `grad_norm` of the gradients that were looked at, and under `norms`, how many.
        seconds: that the epoch has taken, by steps.
        accuracy, best_accuracy, best_epoch: of evaluations of the network; best_epoch from 1, 0 before the first.
        best_ema_accuracy, best_ema_epoch: of the average, likewise.
        lines: of metrics, one an epoch, JSON.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: LRScheduler
    scaler: GradScaler
    ema: AveragedModel | None
    epoch: int = 0
    taken: tuple[Stretch, ...] = ()
    sums: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0
    accuracy: float = 0.0
    best_accuracy: float = -1.0
    best_epoch: int = 0
    best_ema_accuracy: float = -1.0
    best_ema_epoch: int = 0
    lines: list[str] = field(default_factory=list)

    @classmethod
    def begin(cls, options: TrainOptions, model: nn.Module, device: torch.device, steps_per_epoch: int) -> "State":
        """The state before the first step."""
        optimizer = make_optimizer(options, model)
        ema = None
        if options.ema is not None:
            # With the running statistics: weights that were averaged go with statistics that were.
            ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(options.ema), use_buffers=True)
        return cls(
            model=model,
            optimizer=optimizer,
            schedule=make_schedule(options, optimizer, steps_per_epoch),
            scaler=make_scaler(options, device),
            ema=ema,
        )

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def steps(self) -> int:
        """Those that are done of the epoch under way."""
        return sum(steps for _, _, steps in self.taken)

    def step_taken(self, ranks: int, batch_size: int) -> None:
        """Take note of a step."""
        *before, last = self.taken or ((ranks, batch_size, 0),)
        if last[:2] != (ranks, batch_size):
            before, last = [*before, last], (ranks, batch_size, 0)
        self.taken = (*before, (ranks, batch_size, last[2] + 1))

    def add(self, terms: dict[str, Tensor], num_images: int) -> None:
        """Add a step's terms to the sums; nothing is read from the device, which the CPU would wait for."""
        one = torch.ones_like(terms["loss"])
        for name, term in {**terms, "images": one}.items():
            self._add(name, term * num_images)

    def add_norm(self, norm: Tensor) -> None:
        """Add the norm of a step's gradient, but for those that a scaler leaves out as they are not finite."""
        is_finite = norm.isfinite()
        self._add("grad_norm", norm.where(is_finite, 0.0))
        self._add("norms", is_finite.to(norm.dtype))

    def _add(self, name: str, value: Tensor) -> None:
        value = value.detach()
        self.sums[name] = self.sums[name] + value if name in self.sums else value

    def totals(self) -> dict[str, float]:
        """The sums of all ranks, which all ask."""
        if not self.sums:
            return {}
        return dict(zip(self.sums, sum_over_ranks(torch.stack(list(self.sums.values()))).tolist(), strict=True))

    def means(self) -> dict[str, float]:
        """The means of the epoch's terms so far, over all ranks, which all ask."""
        totals = self.totals()
        images, norms, norm = (totals.pop(name) for name in ("images", "norms", "grad_norm"))
        means = {name: total / images for name, total in totals.items()}
        return means | ({"grad_norm": norm / norms} if norms else {})

    def epoch_done(self) -> None:
        """Take note that an epoch is done."""
        self.epoch, self.taken, self.sums, self.seconds = self.epoch + 1, (), {}, 0.0

    def evaluated(self, accuracy: float) -> bool:
        """Take note of what the epoch that is done gave: whether it is the best so far."""
        self.accuracy = accuracy
        if accuracy <= self.best_accuracy:
            return False
        self.best_accuracy, self.best_epoch = accuracy, self.epoch
        return True

    def evaluated_ema(self, accuracy: float) -> bool:
        """The same of the moving average."""
        if accuracy <= self.best_ema_accuracy:
            return False
        self.best_ema_accuracy, self.best_ema_epoch = accuracy, self.epoch
        return True
