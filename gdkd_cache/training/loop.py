"""Epochs of optimisation: steps, evaluation, and what is written after each."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gdkd_cache.device import autocast, laid_out
from gdkd_cache.errors import ModelError
from gdkd_cache.models.card import ModelCard
from gdkd_cache.models.trial import running
from gdkd_cache.progress import progress
from gdkd_cache.training.batches import Batch, Batches
from gdkd_cache.training.distributed import average_buffers, parallel, rank_and_size, sum_over_ranks
from gdkd_cache.training.evaluate import Evaluator
from gdkd_cache.training.folder import RunFolder
from gdkd_cache.training.options import TrainOptions
from gdkd_cache.training.state import State
from gdkd_cache.training.task import Task

_LOG = logging.getLogger(__name__)
_CHECK_STEPS = 500
"""A loss is looked at after so many steps, and at an epoch's end: reading it makes the CPU wait for the GPU."""


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a training gave.

    Attributes:
        best_accuracy, last_accuracy: top-1 in [0, 1] on the evaluation source.
        best_epoch: from 1.
        images_per_second: of the training steps, rendering and teacher included, evaluation not.
    """

    best_accuracy: float
    best_epoch: int
    last_accuracy: float
    images_per_second: float


@dataclass(frozen=True, kw_only=True)
class Training:
    """What stays the same from step to step.

    Attributes:
        options: how to train.
        task: what a batch's loss is.
        batches: an epoch's batches, by its number from 0.
        num_images: in an epoch, of all ranks.
        evaluator: of the evaluation source.
        folder, card: where the first rank writes, and what it writes of the network.
        device: where to compute.
        memory_format: of the images that the network is given.
    """

    options: TrainOptions
    task: Task
    batches: Batches
    num_images: int
    evaluator: Evaluator
    folder: RunFolder
    card: ModelCard
    device: torch.device
    memory_format: str

    def run(self, state: State) -> TrainResult:
        """Train and evaluate epoch by epoch; the first rank writes checkpoints and metrics.

        Raises:
            ModelError: the loss, the weights or an evaluation are not finite any more; earlier epochs' files stay.
        """
        rank, world_size = rank_and_size()
        trained, seconds, epochs = parallel(state.model, self.device), 0.0, self.options.epochs
        if not rank:
            self.folder.begin()
        unusual = _not_finite(state.model)  # such as a mask of -inf
        with progress("train", epochs * self.num_images, "images") as advance:
            while state.epoch < epochs:
                start = time.monotonic()
                # Progress counts the images of all ranks, which advance alike.
                means = self._epoch(state, trained, lambda amount: advance(amount * world_size))
                average_buffers(state.model)
                elapsed = time.monotonic() - start
                seconds += elapsed
                lr = state.lr
                state.schedule.step()
                if broken := _not_finite(state.model) - unusual:
                    raise self._diverged(state, f"{min(broken)} of the network is not finite after its last step")
                try:
                    evaluation = self.evaluator(state.model)
                except ModelError as error:
                    raise self._diverged(state, str(error)) from None
                is_best = state.evaluated(evaluation.accuracy)
                if rank:
                    continue
                line = {"epoch": state.epoch, **means, "lr": lr, "accuracy": evaluation.accuracy}
                line |= {"eval_loss": evaluation.loss, "images_per_second": round(self.num_images / elapsed, 1)}
                numbers = (state.epoch, epochs, means["loss"], evaluation.accuracy, self.num_images / elapsed)
                _LOG.info("epoch %d/%d  loss %.4f  accuracy %.4f  %.0f images/s", *numbers)
                self.folder.write(line, state.model, self.card, is_best=is_best)
        return TrainResult(
            best_accuracy=state.best_accuracy,
            best_epoch=state.best_epoch,
            last_accuracy=state.accuracy,
            images_per_second=epochs * self.num_images / seconds,
        )

    def _epoch(self, state: State, trained: nn.Module, advance: Callable[[int], None]) -> dict[str, float]:
        """One pass over this rank's part of the data; the means of the loss and its terms over all ranks."""
        trained.train()
        batches: Iterator[Batch] = self.batches(state.epoch)
        names: list[str] = []
        # Summed on the device: reading a value each step would make the CPU wait for the GPU.
        sums, one = torch.zeros((), device=self.device), torch.ones((), device=self.device)
        step = 0
        for step, (images, labels, teacher, _) in enumerate(batches, 1):
            with autocast(self.options.precision, self.device), running(f"model {self.options.student}"):
                logits = trained(laid_out(images, self.memory_format))
            terms = self.task.terms(logits.float(), labels, teacher, state.epoch)
            state.optimizer.zero_grad(set_to_none=True)
            terms["loss"].backward()
            state.optimizer.step()
            names = list(terms)
            sums = sums + torch.stack([*(term.detach() for term in terms.values()), one]) * len(labels)
            advance(len(labels))
            if step % _CHECK_STEPS == 0:
                self._means(state, names, sums, step)
        return self._means(state, names, sums, step)

    def _means(self, state: State, names: list[str], sums: Tensor, steps: int) -> dict[str, float]:
        """The means of an epoch's terms after so many steps, over all ranks: each rank finds what one of them has."""
        *totals, seen = sum_over_ranks(sums.clone()).tolist()
        means = {name: total / seen for name, total in zip(names, totals, strict=True)}
        if not all(map(math.isfinite, means.values())):
            found = ", ".join(f"{name} {mean:.4g}" for name, mean in means.items())
            first = (steps - 1) // _CHECK_STEPS * _CHECK_STEPS + 1
            raise self._diverged(state, f"in steps {first} to {steps} the loss became infinite or NaN ({found})")
        return means

    def _diverged(self, state: State, what: str) -> ModelError:
        out, options = self.options.out, self.options
        kept = f"{out} keeps the weights of epoch {state.epoch}" if state.epoch else f"{out} stays as it was"
        return ModelError(
            f"epoch {state.epoch + 1}: {what}; lower --lr, which is {options.lr:g}, or raise --lr-warmup, which is "
            f"{options.lr_warmup}; {kept}"
        )


def _not_finite(model: nn.Module) -> set[str]:
    """The names of a network's weights and buffers that are not finite."""
    return {name for name, value in model.state_dict().items() if not value.isfinite().all()}
