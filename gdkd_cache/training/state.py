"""What a training has come to: all that changes from step to step, in one object."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gdkd_cache.data.order import Stretch
from gdkd_cache.training import gradients
from gdkd_cache.training.disagreement import Disagreement
from gdkd_cache.training.distributed import sum_over_ranks
from gdkd_cache.training.optimization.optimizers import make_optimizer, make_scaler
from gdkd_cache.training.optimization.schedules import make_schedule
from gdkd_cache.training.options import TrainOptions
from gdkd_cache.training.records.scores import score_of


@dataclass(kw_only=True)
class State:
    """A training between two steps; the network's mode and torch's random numbers go with it.

    Attributes:
        model, optimizer, schedule, scaler: as torch knows them.
        ema: the moving average of the weights, and of running statistics; None for none.
        epoch: those that are done.
        taken: what is done of the next one; () at its start.
        images, sums: of the epoch's steps on this rank: how many images, and the terms by name, weighted with them.
        norms: of gradients that were looked at, their sum and number, likewise; None before the first.
        gradients: the sum of what `gradients.look` gave, likewise; None without a teacher.
        seconds: that the epoch has taken, by steps.
        lines: of metrics, one an epoch, JSON.
        disagreement: of student and teacher; None where no views are chosen by it.
        unproved: the file that all this was read from, until a step is taken with it.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: LRScheduler
    scaler: GradScaler
    ema: AveragedModel | None
    epoch: int = 0
    taken: tuple[Stretch, ...] = ()
    images: int = 0
    names: tuple[str, ...] = ()
    sums: Tensor | None = None
    norms: Tensor | None = None
    gradients: Tensor | None = None
    seconds: float = 0.0
    lines: list[str] = field(default_factory=list)
    disagreement: Disagreement | None = None
    unproved: Path | None = None

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
        values = torch.stack([term.detach() for term in terms.values()]) * num_images
        self.images, self.names = self.images + num_images, tuple(terms)
        self.sums = values if self.sums is None else self.sums + values

    def add_norm(self, norm: Tensor) -> None:
        """Add the norm of a step's gradient, but for those that a scaler leaves out as they are not finite."""
        is_finite = norm.detach().isfinite()
        value = torch.stack([norm.detach().where(is_finite, 0.0), is_finite.to(norm.dtype)])
        self.norms = value if self.norms is None else self.norms + value

    def add_gradients(self, found: Tensor) -> None:
        """Add what `gradients.look` gave."""
        self.gradients = found if self.gradients is None else self.gradients + found

    def totals(self) -> dict[str, Any]:
        """`images`, `sums` by name, `norms` and `gradients` of all ranks, which all ask; empty before a step."""
        if self.sums is None or self.norms is None:
            return {}
        images = sum_over_ranks(torch.tensor(self.images, device=self.sums.device))
        sums, norms = (sum_over_ranks(one.clone()).tolist() for one in (self.sums, self.norms))
        totals = {"images": int(images), "sums": dict(zip(self.names, sums, strict=True)), "norms": norms}
        if self.gradients is not None:
            totals["gradients"] = sum_over_ranks(self.gradients.clone()).tolist()
        return totals

    def take_over(self, totals: Mapping[str, Any], device: torch.device) -> None:
        """Go on from what `totals` gave: on one rank, for all.

        Raises:
            ValueError: it is not what `totals` gives.
        """
        if totals:
            self.images, self.names = int(totals["images"]), tuple(totals["sums"])
            self.sums = torch.tensor(list(totals["sums"].values()), dtype=torch.float32, device=device)
            self.norms = torch.tensor(totals["norms"], dtype=torch.float32, device=device)
            if "gradients" in totals:
                self.gradients = torch.tensor(totals["gradients"], dtype=torch.float32, device=device)
                if self.gradients.shape != (gradients.LENGTH,):
                    raise ValueError(f"it has gradients of {list(self.gradients.shape)}, not [{gradients.LENGTH}]")

    def means(self, totals: Mapping[str, Any]) -> dict[str, float]:
        """The means of the epoch's terms so far, of its totals."""
        norm, number = totals["norms"]
        means = {name: total / totals["images"] for name, total in totals["sums"].items()}
        return means | ({"grad_norm": norm / number} if number else {})

    def epoch_done(self, line: Mapping[str, Any]) -> None:
        """Take note that an epoch is done, and of its metrics."""
        self.epoch, self.taken, self.seconds = self.epoch + 1, (), 0.0
        self.images, self.sums, self.norms, self.gradients = 0, None, None, None
        self.lines.append(json.dumps(line, allow_nan=False))

    def is_best(self, prefix: str = "") -> bool:
        """Whether the last epoch is the first of those with the highest score, of the name with this before it."""
        lines = [json.loads(line) for line in self.lines]
        *before, last = (line[prefix + score_of(line)] for line in lines)
        return all(value < last for value in before)
