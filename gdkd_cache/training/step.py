"""One optimisation step: the batch in parts, the gradient, the weights, their moving average."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from gdkd_cache.cache.batch import TeacherBatch
from gdkd_cache.device import autocast, float32_products, laid_out
from gdkd_cache.errors import is_out_of_memory
from gdkd_cache.models.trial import running
from gdkd_cache.training import gradients
from gdkd_cache.training.batches import Batch
from gdkd_cache.training.options import TrainOptions
from gdkd_cache.training.records.saved import unreadable
from gdkd_cache.training.state import State
from gdkd_cache.training.task import Task

_NORM_STEPS = 10
"""The gradient's norm is taken in each so many steps' first, where clipping does not need it in all."""


class NotFiniteError(Exception):
    """The loss of a batch is infinite or NaN; nothing was changed by it."""


@dataclass(frozen=True, kw_only=True)
class Stepper:
    """Takes steps.

    Attributes:
        options, task: what a step is.
        trained: what is given images: the state's network, in whatever wraps it.
        device, memory_format: of the images.
        parts: a batch is taken in so many parts, whose gradients are summed up.
        check: whether to look at each loss at once, as is free on a CPU.
    """

    options: TrainOptions
    task: Task
    trained: nn.Module
    device: torch.device
    memory_format: str
    parts: int
    check: bool

    def __call__(self, state: State, batch: Batch) -> dict[str, Tensor]:
        """Take a step; the means over the batch of the loss, under `loss`, first, and of its terms.

        Raises:
            NotFiniteError: the loss is not finite; told only with `check`.
            MismatchError: the first step of a training that goes on finds its optimizer's state to be none.
        """
        state.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        parts = list(_split(batch, self.parts))
        for number, part in enumerate(parts, 1):
            share = len(part.labels) / len(batch.labels)
            with contextlib.ExitStack() as stack:
                stack.enter_context(float32_products(self.options.precision))
                if number < len(parts) and hasattr(self.trained, "no_sync"):
                    stack.enter_context(self.trained.no_sync())  # pyright: ignore
                with autocast(self.options.precision, self.device), running(f"model {self.options.student}"):
                    logits = self.trained(laid_out(part.images, self.memory_format))
                terms = self.task.terms(logits, part.labels, part.said, state.epoch)
                if self.check and not terms["loss"].isfinite():
                    raise NotFiniteError(", ".join(f"{name} {term.item():.4g}" for name, term in terms.items()))
                if state.disagreement is not None and part.said is not None:
                    state.disagreement.see(self.task.heads(logits)[1], part.said, part.rows)
                if number == 1 and state.steps % gradients.EVERY == 0:
                    seen = self.task.look(logits, part.said, state.epoch)
                    if seen is not None:
                        state.add_gradients(seen)
                state.scaler.scale(terms["loss"] if len(parts) == 1 else terms["loss"] * share).backward()
            for name, term in terms.items():
                term = term.detach() if len(parts) == 1 else term.detach() * share
                sums[name] = sums[name] + term if name in sums else term
        if self.options.clip_grad_norm is not None or state.steps % _NORM_STEPS == 0:
            state.scaler.unscale_(state.optimizer)
            state.add_norm(self._clipped(state.model))
        try:
            state.scaler.step(state.optimizer)
        except Exception as error:
            if state.unproved is None or is_out_of_memory(error):
                raise
            raise unreadable(state.unproved, error) from None
        state.unproved = None
        state.scaler.update()
        if state.ema is not None:
            state.ema.update_parameters(state.model)
        return sums

    def _clipped(self, model: nn.Module) -> Tensor:
        """The norm of the gradient, which is scaled down to the largest allowed."""
        parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
        norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        if self.options.clip_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.options.clip_grad_norm, norm)
        return norm


def _split(batch: Batch, parts: int) -> Iterator[Batch]:
    """A batch in so many parts, or in as many as it has images."""
    parts = min(parts, len(batch.labels))
    if parts == 1:
        yield batch
        return
    images, labels = batch.images.tensor_split(parts), batch.labels.tensor_split(parts)
    said: list[TeacherBatch | None] = [None] * parts
    if batch.said is not None:
        logits, top, there = (one.tensor_split(parts) for one in batch.said[:3])
        view = batch.said.view
        views = [view] * parts if isinstance(view, int) else view.tensor_split(parts)
        said = [TeacherBatch(*one) for one in zip(logits, top, there, views, strict=True)]
    for one in zip(images, labels, said, np.array_split(batch.rows, parts), strict=True):
        yield Batch(*one)
