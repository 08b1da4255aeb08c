"""Train a network with cross-entropy and, from a cache or a live teacher, a distillation loss."""

import itertools
import json
import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gdkd_cache.cache.cache import Cache
from gdkd_cache.cache.ensemble import Ensemble
from gdkd_cache.cache.signal import Signal, open_signal
from gdkd_cache.data.recipes.recipe import Recipe
from gdkd_cache.data.source import FullSource, Source, settle
from gdkd_cache.data.subset import labelled
from gdkd_cache.device import choose_device, laid_out
from gdkd_cache.errors import MismatchError, UsageError
from gdkd_cache.models.beginning import Beginning
from gdkd_cache.models.build import build_model
from gdkd_cache.models.card import ModelCard
from gdkd_cache.models.statements import public_name
from gdkd_cache.models.trial import try_student
from gdkd_cache.schema import short
from gdkd_cache.threads import in_threads
from gdkd_cache.training.amounts import parse_interval
from gdkd_cache.training.distributed import broadcast_bytes, parallel, process_group, rank_and_size
from gdkd_cache.training.evaluate import Evaluator
from gdkd_cache.training.feeds import LiveTeacher, Loading, Views, from_cache, from_views
from gdkd_cache.training.loop import Training, TrainResult, result_of
from gdkd_cache.training.mask_task import MaskTask
from gdkd_cache.training.measured import measured
from gdkd_cache.training.options import DISAGREEMENT, TrainOptions
from gdkd_cache.training.preparing import compiled, prepared
from gdkd_cache.training.records.config import config_text
from gdkd_cache.training.records.facts import plain_options, require_same, training_facts
from gdkd_cache.training.records.folder import RunFolder
from gdkd_cache.training.records.layout import LOG
from gdkd_cache.training.records.logs import kept_log
from gdkd_cache.training.records.saved import Stored, load_state, restore
from gdkd_cache.training.reporters.reports import Reports, require_reporters
from gdkd_cache.training.state import State
from gdkd_cache.training.step import Stepper
from gdkd_cache.training.tasks import task_of

_LOG = logging.getLogger(__name__)
_EVALUATED = 512
"""Images a batch of evaluation; fewer where memory is bounded."""


def train(
    options: TrainOptions,
    source: Source,
    eval_source: Source,
    *,
    cache: Cache | Ensemble | None = None,
    strict_replay: bool = False,
    recipe: Recipe | None = None,
    views: Views | None = None,
    teacher: LiveTeacher | Callable[[Tensor], Tensor] | None = None,
    command: Mapping[str, Mapping[str, Any]] | None = None,
) -> TrainResult:
    """Train a network, fresh or from `init`; writes checkpoints and one JSON line of metrics an epoch as it goes.

    A training that was stopped or killed goes on when it is called for again with the same options and data: in one
    process on a CPU to the bit as if it had not been.

    With a cache, views and teacher are the cache's. Without one, `views` are rendered, and a distillation loss
    needs a live `teacher`: uint8 [batch, 3, height, width] -> logits [batch, class]. Images with masks are learnt
    pixel by pixel, from a teacher that says something of each cell of a grid: logits [batch, *grid, class].

    Args:
        options: how to train.
        source: the training images; with a cache, all or some of those that it was built from.
        eval_source: evaluated after each epoch, without augmentation.
        cache: what the distillation loss reads; an ensemble stands for several teachers.
        strict_replay: with a cache, also refuse views that differ from the teacher's by rounding.
        recipe: with a cache, what its views are made with, where the manifest's word is not enough (`compat:`).
        views: without a cache, what to render.
        teacher: without a cache, the live teacher; a `Network` may have several outputs.
        command: what else `run.toml` tells of how to train so again: values by option, in tables.

    Raises:
        UsageError: a distillation loss without cache or teacher, or the reverse.
        NotServedError: the cache cannot serve the loss.
        ModelError: the network cannot be built, cannot take such images, or gives no logit a class.
        MismatchError: source and cache, or the two sources, do not belong together; or `out` holds another
            training, and `force` is off.
        SourceError: an image cannot be read.
        OSError: `out` cannot be written.
    """
    source, eval_source = settle(source), settle(eval_source)
    if options.labelled is not None:
        source = labelled(source, options.labelled)
    task = task_of(options, masks=source.has_masks)
    if (task.distillation is None) != (cache is None and teacher is None):
        raise UsageError("a distillation loss needs a cache (or a live teacher), and cross-entropy takes none")
    if (cache is not None and (views is not None or teacher is not None)) or (cache is None and recipe is not None):
        raise UsageError("a cache brings its own views and its teacher; give either a cache or views")
    if options.views_by == DISAGREEMENT and cache is None:
        raise UsageError("views_by disagreement chooses among the views of a cache, and there is none; leave it out")
    require_reporters(options.report_to)
    _require_same_classes(source, eval_source)
    folder = RunFolder(options.out, force=options.force)
    beginning = None if options.init is None else Beginning.of(options.student, options.init, options.init_key)
    if beginning is not None and beginning.normalization is not None:
        source = replace(source, mean=beginning.normalization.mean, std=beginning.normalization.std)
    device = choose_device(options.device)
    if cache is None:
        views = views or Views()
    signal = _signal(options, cache)
    task = task.given(signal)
    live = teacher.logits if isinstance(teacher, LiveTeacher) else teacher
    facts = training_facts(options, source, eval_source, cache, views, live, signal)
    with process_group(device), ExitStack() as stack:
        rank, world_size = rank_and_size()
        log = None if rank else stack.enter_context(kept_log())
        if options.batch_size % world_size:
            raise UsageError(
                f"batch_size is {options.batch_size}, the images a step of all {world_size} ranks; it must be a "
                "multiple of their number"
            )
        stored = _stored(folder, facts)
        is_whole = stored is None or folder.go_on(stored.lines, stored.progress.get("replaces"))
        if stored is not None and is_whole and len(stored.lines) == options.epochs:
            _LOG.info("%s holds this training, and it is done; --force trains anew", options.out)
            return result_of(stored.lines)
        loading = Loading(batch_size=options.batch_size // world_size, seed=options.seed, device=device)
        if cache is not None:
            feed = from_cache(options, task.distillation, source, cache, strict_replay, recipe, loading)
        else:
            assert views is not None
            feed = from_views(options, task.distillation, source, views, teacher, loading)
        if isinstance(task, MaskTask):
            task = replace(task, outputs=feed.cells.outputs)
        card = ModelCard(
            name=public_name(task.named(options.student)),
            num_classes=len(source.classes),
            size=feed.size,
            mean=source.mean,
            std=source.std,
            eval_recipe=options.eval_recipe or feed.recipe.evaluation(feed.size),
        )
        torch.manual_seed(options.seed)
        model = build_model(options.student, card.num_classes)
        if beginning is not None and stored is None:
            beginning.load(model, card.num_classes)
        model = model.to(device)
        batch_size = loading["batch_size"]
        memory_format = try_student(
            options.student,
            model,
            card.num_classes,
            feed.size,
            num_images=min(batch_size, 2),
            device=device,
            memory_format=options.memory_format,
            dense=source.has_masks,
        )
        if memory_format == "channels_last":
            # Weights too: gradients then have their order, which DistributedDataParallel wants.
            model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (torch's stub lacks it)
        blank = laid_out(torch.zeros(1, 3, *feed.size, device=device), memory_format)
        task.fit(model, card.num_classes, blank, f"model {options.student}")
        model = prepared(options, model, device)
        if rank:
            torch.manual_seed(options.seed + rank)  # the same weights, but dropout of its own
        before = {} if stored is None else stored.progress
        found = measured(options, before, task, model, card.num_classes, feed, memory_format, device)
        evaluator = Evaluator(
            eval_source,
            mean=source.mean,
            std=source.std,
            device=device,
            batch_size=_EVALUATED if options.max_memory is None else min(_EVALUATED, -(-batch_size // found["parts"])),
            num_workers=options.num_workers,
            images_in_memory=options.images_in_memory,
            decoded=options.decoded,
            recipe=card.eval_recipe,
        )
        state = State.begin(options, model, device, _num_steps(len(source), options.batch_size, world_size))
        state.disagreement = feed.disagreement
        if stored is not None:
            restore(state, stored, folder.state, rank, device)
            _LOG.info("going on after step %d of epoch %d", state.steps, state.epoch + 1)
        trained = compiled(options, parallel(model, device))
        if log is not None:
            # Only now, as nothing is left where a training is refused.
            stack.enter_context(folder.held())
            log.to(folder.path / LOG)
        with in_threads(found["threads"]):
            step = Stepper(
                options=options,
                task=task,
                trained=trained,
                device=device,
                memory_format=memory_format,
                parts=found["parts"],
                check=device.type == "cpu",
            )
            reports = Reports(
                options.report_to,
                options.out,
                name=options.out.name,
                options=plain_options(options),
                lines=[json.loads(line) for line in state.lines],
            )
            training = Training(
                options=options,
                step=step,
                batches=feed.batches,
                keys=feed.keys,
                num_images=len(source),
                evaluator=evaluator,
                folder=folder,
                card=card,
                device=device,
                facts=facts,
                found=found,
                config=config_text(options, command or {}, cache),
                views=feed.views,
                reports=reports,
                saving=None if options.save_every is None else parse_interval("save_every", options.save_every),
            )
            if not is_whole:
                training.write_again(state)
            try:
                return training.run(state)
            finally:
                reports.close()


def _signal(options: TrainOptions, cache: Cache | Ensemble | None) -> Signal | None:
    """The signal that the options name, of a cache's data.

    Raises:
        UsageError: there is no cache.
        CacheError, MismatchError: as `open_signal`.
    """
    if options.signal is None:
        return None
    if cache is None:
        raise UsageError(f"signal is {options.signal}; it goes with the cache of whose data it is")
    return open_signal(options.signal, cache.caches[0] if isinstance(cache, Ensemble) else cache)


def _stored(folder: RunFolder, facts: Mapping[str, Any]) -> Stored | None:
    """The state to go on from, which the first rank reads; None for none.

    Raises:
        MismatchError: it is of another training, or damaged.
    """
    data = broadcast_bytes(None if rank_and_size()[0] else folder.read_state())
    if data is None:
        return None
    stored = load_state(data, folder.state)
    require_same(stored.facts, facts, folder.path)
    return stored


def _num_steps(num_images: int, batch_size: int, ranks: int) -> int:
    """Of an epoch, on the rank that has most."""
    of_rank = -(-num_images // ranks)
    return -(-of_rank // (batch_size // ranks))


def _require_same_classes(source: FullSource, eval_source: FullSource) -> None:
    pairs = itertools.zip_longest(source.classes, eval_source.classes)
    for number, (ours, theirs) in enumerate(pairs):
        if ours != theirs:
            there, here = ("absent" if name is None else short(name) for name in (theirs, ours))
            raise MismatchError(
                f"class {number} is {there} in evaluation source {eval_source.name}, which has "
                f"{len(eval_source.classes)} classes, and {here} in training source {source.name}, which has "
                f"{len(source.classes)}; both must have the same, in the same order"
            )
