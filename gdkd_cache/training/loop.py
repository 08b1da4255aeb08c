"""Epochs of optimisation: steps, evaluation, and what is written after each."""

import dataclasses
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gdkd_cache.errors import GdkdCacheError, ModelError, UsageError
from gdkd_cache.models.card import ModelCard
from gdkd_cache.progress import Advance, progress
from gdkd_cache.schema import short
from gdkd_cache.training.amounts import Interval
from gdkd_cache.training.batches import Batches
from gdkd_cache.training.distributed import average_buffers, broadcast_buffers, gathered, rank_and_size
from gdkd_cache.training.evaluate import Evaluator
from gdkd_cache.training.evaluation import Evaluation
from gdkd_cache.training.hacking import hacking_since
from gdkd_cache.training.memory import peak_memory
from gdkd_cache.training.options import TrainOptions
from gdkd_cache.training.records.folder import RunFolder
from gdkd_cache.training.records.layout import CONFIG
from gdkd_cache.training.records.saved import generator, state_bytes
from gdkd_cache.training.records.scores import SCORES, score_of
from gdkd_cache.training.reporters.reports import Reports
from gdkd_cache.training.state import State
from gdkd_cache.training.step import NotFiniteError, Stepper
from gdkd_cache.training.stopping import Due, held_back

_LOG = logging.getLogger(__name__)
_CHECK_STEPS = 500
"""Losses on a GPU are looked at after so many steps, and at an epoch's end: reading one makes the CPU wait for it."""
_SHOWN_KEYS = 4


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a training gave.

    Attributes:
        score: what epochs are compared by, a name of `SCORES`: top-1 of images with a class, mean IoU with a mask.
        best_score, last_score: that, in [0, 1], on the evaluation source.
        best_epoch: from 1.
        images_per_second: of the training steps, rendering and teacher included, evaluation not.
    """

    score: str
    best_score: float
    best_epoch: int
    last_score: float
    images_per_second: float

    @property
    def best_accuracy(self) -> float:
        """The best score of images with a class."""
        return self.best_score

    @property
    def last_accuracy(self) -> float:
        """The last score of images with a class."""
        return self.last_score


@dataclass(frozen=True, kw_only=True)
class Training:
    """What stays the same from step to step.

    Attributes:
        options: how to train.
        step: what takes a step.
        batches: an epoch's batches, by its number from 0.
        keys: of the training images, by row.
        num_images: in an epoch, of all ranks.
        evaluator: of the evaluation source.
        folder, card: where the first rank writes, and what it writes of the network.
        device: where to compute.
        facts: what the training is of, for the state on disk.
        found: what was found at its start, and must be the same when it goes on, likewise.
        config: the text of run.toml.
        saving: how often to save between two epochs; None for never.
        views: of the epochs, in turn; None where each has its own.
        reports: is told each epoch's metrics.
    """

    options: TrainOptions
    step: Stepper
    batches: Batches
    keys: Sequence[str]
    num_images: int
    evaluator: Evaluator
    folder: RunFolder
    card: ModelCard
    device: torch.device
    facts: Mapping[str, Any]
    found: Mapping[str, Any]
    config: str
    saving: Interval | None
    views: Sequence[int] | None
    reports: Reports

    def run(self, state: State) -> TrainResult:
        """Train and evaluate epoch by epoch from where the state is; the first rank writes.

        A signal that ends a training (see `stopping.py`) does so once the state is saved.

        Raises:
            ModelError: the loss, the weights or an evaluation are not finite any more; earlier epochs' files stay.
        """
        self._require_enough(state)
        unusual = _not_finite(state.model)  # such as a mask of -inf
        total = self.options.epochs * self.num_images
        done = state.epoch * self.num_images + sum(ranks * size * steps for ranks, size, steps in state.taken)
        with progress("train", total, "images", done) as advance, held_back() as stop:
            due = Due(stop, self.saving, self.device)
            while state.epoch < self.options.epochs:
                if not self._epoch(state, due, unusual, advance):
                    break
                self._finish(state)
                due.saved()
        if state.epoch < self.options.epochs:  # where the signal's own handler did not raise, or another rank had it
            raise GdkdCacheError(f"a signal ended the training in {self.folder.path}; run it again to go on")
        return result_of(state.lines)

    def _require_enough(self, state: State) -> None:
        """Refuse to go on with more ranks than the epoch has images left: one without any would wait for ever."""
        ranks, left = rank_and_size()[1], self.num_images - state.totals().get("images", 0)
        if state.taken and state.taken[-1][0] != ranks and 0 < left < ranks:
            raise UsageError(
                f"{left} images are left of epoch {state.epoch + 1}, fewer than the {ranks} ranks; go on with "
                f"{state.taken[-1][0]}, as before, until its end"
            )

    def _epoch(self, state: State, due: Due, unusual: set[str], advance: Advance) -> bool:
        """Take this rank's steps of an epoch, or those that are left; False where the training is to end now."""
        self.step.trained.train()
        world_size = rank_and_size()[1]
        recent: list[tuple[Tensor, np.ndarray]] = []
        since = time.monotonic()

        def timed() -> None:
            nonlocal since
            now = time.monotonic()
            state.seconds, since = state.seconds + now - since, now

        for batch in self.batches(state.epoch, state.taken):
            save, end = due(state.steps)
            if save:
                timed()
                self._check(state, recent, unusual)
                self._save(state)
                due.saved()
                since = time.monotonic()
                if end:
                    return False
            try:
                terms = self.step(state, batch)
            except NotFiniteError as error:
                raise self._diverged(
                    state, f"step {state.steps + 1}: {self._not_finite_on(batch.rows, str(error))}"
                ) from None
            state.add(terms, len(batch.labels))
            state.step_taken(world_size, self.options.batch_size // world_size)
            if self.options.schedule_by == "step":
                state.schedule.step()
            note = f"loss {float(terms['loss']):.3f}" if self.step.check else ""
            # Progress counts the images of all ranks, which advance alike.
            advance(len(batch.labels) * world_size, note)
            if not self.step.check:
                recent.append((terms["loss"].detach(), batch.rows))
                if len(recent) == _CHECK_STEPS:
                    self._check(state, recent, unusual)
        self._check(state, recent, unusual)
        average_buffers(state.model)
        if state.ema is not None:
            broadcast_buffers(state.ema)
        timed()
        if due.ending():
            self._save(state)
            return False
        return True

    def _check(self, state: State, recent: list[tuple[Tensor, np.ndarray]], unusual: set[str]) -> None:
        """Look at the losses of recent steps, which are forgotten then, and at the weights after the last of them."""
        if recent:
            losses = torch.stack([loss for loss, _ in recent])
            if broken := (~losses.isfinite()).nonzero().flatten().tolist():
                step, rows = state.steps - len(recent) + broken[0] + 1, recent[broken[0]][1]
                found = f"loss {float(losses[broken[0]]):.4g}"
                raise self._diverged(state, f"step {step}: {self._not_finite_on(rows, found)}")
            recent.clear()
        if broken := _not_finite(state.model) - unusual:
            raise self._diverged(state, f"{min(broken)} of the network is not finite after step {state.steps}")

    def _finish(self, state: State) -> None:
        """Evaluate the epoch whose steps are done, and write what it gave."""
        totals, lr = state.totals(), state.lr
        means = state.means(totals)
        if self.options.schedule_by == "epoch":
            state.schedule.step()
        try:
            evaluation = self.evaluator(state.model)
            averaged = None if state.ema is None else self.evaluator(state.ema.module)
        except ModelError as error:
            raise self._diverged(state, str(error)) from None
        speed = self.num_images / state.seconds
        chosen = state.disagreement is not None and state.disagreement.chooses(state.epoch)
        view = {} if self.views is None or chosen else {"view": self.views[state.epoch % len(self.views)]}
        line: dict[str, Any] = {"epoch": state.epoch + 1, **view, **means, "lr": lr, **evaluation.told()}
        if averaged is not None:
            line |= {f"ema_{name}": value for name, value in averaged.told().items()}
        line |= {"images_per_second": float(f"{speed:.5g}"), **peak_memory(self.device)}
        line |= self.step.task.told(totals, state.epoch, self.card.num_classes)
        state.epoch_done(line)
        data = self._state_bytes(state)
        if data is None:
            return
        told = (SCORES[evaluation.score_name], evaluation.score, speed)
        _LOG.info(
            "epoch %d/%d  loss %.4f  %s %.4f  %.0f images/s", state.epoch, self.options.epochs, means["loss"], *told
        )
        self._tell_hacking(state, evaluation)
        self._write_epoch(state, data)
        self.reports.report(line)

    def _tell_hacking(self, state: State, evaluation: Evaluation) -> None:
        """Say once that the student begins to follow its teacher's errors."""
        lines = [json.loads(line) for line in state.lines]
        since, before = (
            hacking_since(known, evaluation.num_rows, evaluation.score_name) for known in (lines, lines[:-1])
        )
        if since is not None and before is None:
            _LOG.warning(
                "since epoch %d the student agrees more and more with the teacher, and is right less often on held-out "
                "images (teacher hacking): stop earlier, use more views, or give the labels more weight (--ce-weight)",
                since,
            )

    def write_again(self, state: State) -> None:
        """Write the files of the epoch that was done last, of which a kill may have left some unwritten."""
        data = self._state_bytes(state)
        if data is not None:
            self._write_epoch(state, data)

    def _write_epoch(self, state: State, data: bytes) -> None:
        line = json.loads(state.lines[-1])
        score = score_of(line)
        own = (state.model, dataclasses.replace(self.card, **{score: line[score]}))
        kept = {"last": own} | ({"best": own} if state.is_best() else {})
        if state.ema is not None:
            averaged = (state.ema.module, dataclasses.replace(self.card, **{score: line[f"ema_{score}"]}))
            kept |= {"last-ema": averaged} | ({"best-ema": averaged} if state.is_best("ema_") else {})
        if self.options.keep_every and state.epoch % self.options.keep_every == 0:
            kept[f"epoch-{state.epoch:04}"] = own
        weights = {f"{name}.safetensors": one for name, one in kept.items()}
        self.folder.write_epoch(state.lines, data, weights, {CONFIG: self.config})

    def _save(self, state: State) -> None:
        data = self._state_bytes(state)
        if data is not None:
            self.folder.write_state(data)
            _LOG.info("saved after step %d of epoch %d", state.steps, state.epoch + 1)

    def _state_bytes(self, state: State) -> bytes | None:
        """The state's file, which all ranks make together; of the first alone, the others have None."""
        totals, generators = state.totals(), gathered(generator(self.device))
        if rank_and_size()[0]:
            return None
        return state_bytes(state, self.facts, {**self.found, "replaces": self.folder.replaces}, generators, totals)

    def _not_finite_on(self, rows: np.ndarray, found: str) -> str:
        shown = ", ".join(short(self.keys[row]) for row in rows[:_SHOWN_KEYS].tolist())
        more = f" and {len(rows) - _SHOWN_KEYS} more" if len(rows) > _SHOWN_KEYS else ""
        return f"the loss became infinite or NaN ({found}) on the images {shown}{more}"

    def _diverged(self, state: State, what: str) -> ModelError:
        out, options = self.options.out, self.options
        kept = (
            f"{out / 'last.safetensors'} has the weights of epoch {state.epoch}"
            if state.epoch
            else f"{out} stays as it was"
        )
        return ModelError(
            f"epoch {state.epoch + 1}: {what}; lower --lr, which is {options.lr:g}, or raise --lr-warmup, which is "
            f"{options.lr_warmup}; {kept}"
        )


def result_of(lines: Sequence[str]) -> TrainResult:
    """What a training gave whose metrics these are, one line an epoch, and one at least."""
    epochs = [json.loads(line) for line in lines]
    score = score_of(epochs[-1])
    best = max(epochs, key=lambda epoch: epoch[score])
    return TrainResult(
        score=score,
        best_score=best[score],
        best_epoch=best["epoch"],
        last_score=epochs[-1][score],
        images_per_second=len(epochs) / sum(1 / epoch["images_per_second"] for epoch in epochs),
    )


def _not_finite(model: nn.Module) -> set[str]:
    """The names of a network's weights and buffers that are not finite."""
    return {name for name, value in model.state_dict().items() if not value.isfinite().all()}
