"""What building, planning and repairing share: a source's views, shown to a teacher whose logits are kept."""

import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from importlib.metadata import version

import numpy as np
from torch import Tensor

from gdkd_cache.building.compute import Commit, Encoder, Load, Said, Work, gathered
from gdkd_cache.building.decoded import probe_sources
from gdkd_cache.building.examine import Sample, check_teacher, examine
from gdkd_cache.building.examine_masks import CellTally
from gdkd_cache.building.noise import SECRET_BYTES, Noise
from gdkd_cache.building.options import BuildOptions
from gdkd_cache.building.sampling import Sampling
from gdkd_cache.cache.cache import open_cache
from gdkd_cache.cache.references import ReferenceRows
from gdkd_cache.codec.base import Codec
from gdkd_cache.codec.calibration import Calibration
from gdkd_cache.data.images.memory import decoded_once
from gdkd_cache.data.loader import ViewLoader, default_num_workers
from gdkd_cache.data.nearness import Nearness
from gdkd_cache.data.probes import probed
from gdkd_cache.data.recipes.presets import open_recipe
from gdkd_cache.data.recipes.recipe import Recipe
from gdkd_cache.data.recipes.registry import STEPS
from gdkd_cache.data.source import Source, settle
from gdkd_cache.data.targets import MaskTargets
from gdkd_cache.data.views import ViewBatch, ViewRenderer, ViewRequest, image_size, requests_for
from gdkd_cache.device import describe, usual_memory_format
from gdkd_cache.errors import ModelError, UsageError
from gdkd_cache.limits import NO_LABEL, usual_shard_rows
from gdkd_cache.models.network import Network
from gdkd_cache.progress import progress
from gdkd_cache.schema import from_json
from gdkd_cache.seeding import hash_keys
from gdkd_cache.store.card import make_card
from gdkd_cache.store.differences import check_parts
from gdkd_cache.store.facts import UNFITTED, UNMEASURED, Build, Data, Examination, RecipeFacts, RequestFacts, Views
from gdkd_cache.store.layout import encode_keys, reference_layouts
from gdkd_cache.store.manifest import Identity
from gdkd_cache.store.place import Begun

Render = Callable[[ViewRenderer, Iterable[ViewRequest]], Iterator[ViewBatch]]
"""Gives one batch for each request and each of its views, in order; requests are drawn as they are rendered."""

_LOG = logging.getLogger(__name__)
_ROWS_AT_ONCE = 64  # a request of images that are decoded: 8 views of 224x224 are 77 MB
_NO_KEYS = np.zeros(0, np.uint64)
_SOFTWARE = ("gdkd-cache", "numpy", "pillow", "torch", "torchvision", "zarr")


class Builder:
    """Shows a source's views to a teacher.

    Attributes:
        keys: of the source.
        labels: int64 [row], its class ids.
        recipe: what the views are made with.
        renderer: makes them, with the probes of some rows.
        noise: what is added to what the teacher says of them; of a secret of its own until it is given another.
    """

    def __init__(
        self,
        options: BuildOptions,
        source: Source,
        teacher: Network,
        *,
        eval_source: Source | None = None,
        source_checks: bool = True,
        render: Render | None = None,
    ) -> None:
        """Check that the three belong together: the teacher is run once, on blank images.

        Args:
            options, source, teacher: what is built.
            eval_source: what the teacher is evaluated on, besides.
            source_checks: whether the cache gets the checks of the decoded images; `codec_from` decides where given.
            render: who renders; worker processes, or this one, where nobody is named.

        Raises:
            SourceError: the data cannot be read.
            ModelError: the teacher cannot take such views, or knows other classes.
            UsageError: an unknown recipe, a codec that cannot hold so many classes, or a declared loss that needs
                labels which some rows lack.
            CacheError: `codec_from` is no cache, or is damaged.
        """
        source = settle(source)
        self._options, self._source, self._teacher = options, source, teacher
        self.keys, self.labels = list(source.keys), source.labels
        given, size = options.recipe, image_size(source)
        self.recipe = given if isinstance(given, Recipe) else open_recipe(given, *size)
        self._given = None if options.codec_from is None else open_cache(options.codec_from)
        if self._given is not None:
            theirs = self._given.manifest.identity.views
            source_checks = theirs is not None and theirs.source_checks  # which all parts of one cache have, or none
        self._source_checks = source_checks
        self._eval_source = None if eval_source is None else settle(eval_source)
        self._render = render or self._load
        self._said: dict[tuple[int, bytes], Tensor] = {}  # by view and rows of a batch
        self._probed = probed(hash_keys(self.keys))
        self.renderer = self._renderer()
        self._view_size = self.renderer[ViewRequest((0,), np.arange(1))][0].pixels.shape[2:]
        size = self._view_size[0], self._view_size[1]
        self._teacher = teacher.tried(len(source.classes), size, dense=source.has_masks)
        if options.noise is not None and source.has_masks:
            raise UsageError("noise is for one distribution an image; leave --noise out for images with masks")
        self.noise = None if options.noise is None else Noise(epsilon=options.noise, secret=os.urandom(SECRET_BYTES))
        self._seen_cells = CellTally()
        if self._given is None:  # else that cache's codec and losses count, not those of the options
            options.request.check(len(source.classes), source.unlabelled)

    def _renderer(self) -> ViewRenderer:
        return ViewRenderer(
            self._source,
            self.recipe,
            self._options.seed,
            probe_rows=self._probed,
            check_with=self._options.first_view if self._source_checks else None,
            device=self._teacher.device,
        )

    @property
    def _num_workers(self) -> int:
        asked = self._options.num_workers
        return default_num_workers(self._source) if asked is None else asked

    def hold_images(self) -> None:
        """Decode the images into memory, where they fit, or a file, where one is asked for.

        Raises:
            UsageError, SourceError, OSError: as `decoded_once`.
        """
        options = self._options
        budget, folder = options.images_in_memory, options.decoded
        held = decoded_once(self._source, self.recipe, budget, folder, num_workers=options.num_workers)
        if held is not self._source:
            self._source = held
            self.renderer = self._renderer()

    def identity(self) -> Identity:
        """The identity of the cache that comes of it; codec and fidelity are open, unless another cache gives them.

        Raises:
            MismatchError: that one is of another teacher, data, recipe or seed; it says what differs.
        """
        options, source, teacher = self._options, self._source, self._teacher
        is_usual = teacher.memory_format == usual_memory_format(teacher.device)
        identity = Identity(
            num_rows=len(self.keys),
            num_views=options.num_views,
            classes=tuple(source.classes),
            data=Data(
                name=source.name,
                digest=source.digest,
                keys_bytes=len(encode_keys(self.keys)),
                unlabelled=source.unlabelled,
            ),
            views=Views(
                recipe=from_json(RecipeFacts, self.recipe.to_json()),
                seed=options.seed,
                size=tuple(self._view_size),
                first=options.first_view,
                source_checks=self._source_checks,
            ),
            teacher=teacher.description,
            request=from_json(RequestFacts, options.request.to_json()),
            codec=UNFITTED,
            fidelity=UNMEASURED,
            build=Build(
                batch_size=options.batch_size,
                device=describe(teacher.device),
                precision=teacher.precision,
                memory_format=None if is_usual else teacher.memory_format,
                software={name: version(name) for name in _SOFTWARE},
            ),
            shard_rows=teacher.cells.shard_rows(options.shard_rows or usual_shard_rows(len(self.keys))),
            cells=teacher.cells,
            card=make_card(options.license, options.contact),
            noise=None if self.noise is None else self.noise.facts,
        )

        if self._given is None:
            return identity
        theirs = self._given.manifest.identity
        identity = replace(
            identity,
            request=theirs.request,
            codec=theirs.codec,
            fidelity=theirs.fidelity,
            examination=theirs.examination,
        )
        check_parts(self._given.path, theirs, "this build", identity)
        return identity

    def fit(self) -> Begun:
        """What a build begins with: what another cache gives, or a calibration.

        Raises:
            SourceError, ModelError: as `calibrate` and `examine`.
        """
        if self._given is not None:
            theirs = self._given.manifest.identity
            return Begun(self._given.codec, theirs.fidelity, theirs.examination)
        calibration = self.calibrate()
        examination = self.examine(calibration)
        choice, asked = calibration.choose(), self._options.request.fidelity
        if choice.worst_error > asked:
            _LOG.info(
                "codec %s loses more than --fidelity %g: gradient error %.3g, the worst of the declared losses",
                *(choice.codec.name, asked, choice.worst_error),
            )
        return Begun(choice.codec, choice.fidelity, examination)

    def examine(self, calibration: Calibration) -> Examination | None:
        """How right the teacher is, of calibration rows with labels; None where none has one, or with noise.

        Raises:
            ModelError: it is wrong, and nobody has accepted that.
            MismatchError: what it is evaluated on has other classes.
        """
        if self.noise is not None:
            _LOG.info("the teacher is not examined, as the noise would be: build a view without --noise for that")
            return None
        if self._source.has_masks:
            return self._seen_cells.examination(accept=self._options.accept_teacher)
        logits, labels = calibration.labelled
        known = labels != NO_LABEL
        if not known.any():
            return None
        rows = np.argsort(hash_keys(self.keys), kind="stable")[: len(labels)]
        sample = Sample(
            logits=logits[known],
            labels=labels[known],
            unseen=np.flatnonzero(known) >= calibration.num_fitted,
            rows=rows[self.labels[rows] != NO_LABEL],
            views=lambda rows: self._stream(requests_for(0, np.sort(rows), self._options.batch_size)),
            is_mixed=self.recipe.mix is not None,
        )
        workers = self._options.num_workers
        found = examine(self._teacher, self._source, sample, eval_source=self._eval_source, num_workers=workers)
        if not self._options.accept_teacher:
            check_teacher(self._teacher, self._source, sample, found)
        return found

    def calibrate(self) -> Calibration:
        """Run the teacher on what calibration needs, as `Sampling` says.

        Of views whose rows it saw all, `compute` takes what it said of the batches that it would be shown again.

        Raises:
            ModelError: the teacher gives NaN or infinity.
            SourceError: an image cannot be read.
            UsageError: references are asked for that the views cannot have.
        """
        options, hashes, num_classes = self._options, hash_keys(self.keys), len(self._source.classes)
        cells, unpredictable = self._teacher.cells, self._unpredictable()
        sampling = Sampling.of(options.request, hashes, num_classes, options.num_views, unpredictable, cells)
        requests = sampling.requests(options.batch_size)

        def said(advance: Callable[[int], None]) -> Iterator[tuple[ViewBatch, Tensor]]:
            for batch in self._stream(requests):
                logits = self._logits(batch).cpu()
                if batch.view >= options.first_view and sampling.is_whole(batch.view):
                    self._said[batch.view, batch.rows.tobytes()] = logits
                if batch.view == 0 and isinstance(batch.targets, MaskTargets):
                    self._seen_cells.add(logits, batch.targets.masks)
                advance(len(batch.rows))
                yield batch, logits

        with progress("calibrate", sum(len(request.rows) for request in requests), "images") as advance:
            return sampling.calibration(said(advance), Nearness(self.recipe, options.seed, hashes))

    def _unpredictable(self) -> str | None:
        """Why no view can be predicted from others; None where they can."""
        if self._options.first_view:
            return "the first ones are not among the views; give --codec-from a cache that has them"
        if any(step.name not in STEPS for step in self.recipe.steps):
            return f"no reader knows where the views of recipe {self.recipe.name} look"
        return None

    def reference_objects(self, codec: Codec) -> dict[str, bytes]:
        """The objects of views that predict those that are built and come before them: those of `codec_from`.

        Raises:
            CacheError: that cache is damaged.
        """
        objects: dict[str, bytes] = {}
        if self._given is not None:
            identity = self.identity()
            for name, layout in reference_layouts(identity, codec).items():
                for view in range(layout.num_views or 0):
                    held = view in self._given.manifest.identity.view_numbers
                    theirs = self._given.layouts[name] if held else self._given.reference_layouts[name]
                    names = zip(layout.object_names(view), theirs.object_names(view), strict=True)
                    objects |= {here: self._given.read(there) for here, there in names}
        return objects

    def given_columns(self, view: int, shard: int) -> Mapping[str, np.ndarray]:
        """The columns of a view of `codec_from` that predicts those that are built."""
        assert self._given is not None
        return self._given.shard_columns(view, shard)

    def compute(
        self, work: Iterable[Work], codec: Codec, commit: Commit, load: Load, advance: Callable[[int], None]
    ) -> None:
        """Render, infer, encode and commit shards; one thread encodes, compresses and writes meanwhile.

        Args:
            work: the shards; each is asked for only when its rendering is about to begin.
            codec: what they are encoded with.
            commit: takes view, shard and the columns by name, each [row, ...].
            load: gives back shards of views that predict others.
            advance: called with the number of views that were seen by the teacher.

        Raises:
            SourceError, ModelError, OSError: as `build`.
        """
        batch_size, work = self._options.batch_size, iter(work)
        begun = next(work, None)
        if begun is None:  # no worker is started
            return
        # Batches are cut inside a shard, at places that do not depend on what was committed before.
        ahead, cuts = itertools.tee(
            (shards, batch)
            for shards in itertools.chain([begun], work)
            for batch in requests_for(shards.views, np.array(shards.rows), batch_size)
        )
        part_size = batch_size if self.renderer.in_memory else _ROWS_AT_ONCE
        first_view = self._options.first_view
        nearness = Nearness(self.recipe, self._options.seed, hash_keys(self.keys) if codec.num_references else _NO_KEYS)

        def references(shards: Work) -> ReferenceRows:
            rows = slice(shards.rows.start, shards.rows.stop)
            return ReferenceRows(codec, nearness, shards.rows, self.labels[rows], lambda view: load(view, shards.shard))

        rendered = self._stream(part for _, batch in ahead for part in requests_for(batch.views, batch.rows, part_size))
        size_view = first_view if codec.num_references else None
        with Encoder(codec, commit, references, cells=self._teacher.cells, size_view=size_view) as encoder:
            for shards, batch in cuts:
                for view, views in gathered(rendered, batch).items():
                    logits = self._logits(views)
                    assert views.probes is not None
                    assert views.sizes is not None
                    checks = views.source_checks if view == first_view else None
                    encoder.add(view, shards, Said(logits, views.targets.labels, views.probes, views.sizes, checks))
                    advance(len(batch.rows))
                    if batch.rows[-1] == shards.rows[-1]:
                        encoder.finish(view, shards)

    def _stream(self, requests: Iterable[ViewRequest]) -> Iterator[ViewBatch]:
        return self._render(self.renderer, requests)

    def _load(self, renderer: ViewRenderer, requests: Iterable[ViewRequest]) -> Iterator[ViewBatch]:
        on_gpu = self._teacher.device.type == "cuda"
        return ViewLoader(renderer, num_workers=self._num_workers, pin_memory=on_gpu).stream(requests)

    def _logits(self, batch: ViewBatch) -> Tensor:
        """The teacher's logits, float32 [n, *grid, class] on its device: with noise if any, and calibration's if kept.

        Raises:
            ModelError: NaN or infinity; it names the key.
        """
        said = self._said.pop((batch.view, batch.rows.tobytes()), None)
        if said is not None:
            return said.to(self._teacher.device)
        logits = self._teacher.logits(batch.pixels)
        finite = logits.isfinite().flatten(1).all(1)
        if not finite.all():
            key = self.keys[int(batch.rows[int(finite.logical_not().nonzero()[0])])]
            raise ModelError(f"the teacher gives NaN or infinity for {key!r}; check its weights and precision")
        if self.noise is not None:  # before anything is made of them: codec, figures and shards
            logits = self.noise.added(logits, batch.view, [self.keys[row] for row in batch.rows.tolist()])
        return logits

    def source_probes(self) -> np.ndarray:
        """Probes of the decoded images: uint8 [row, 20], zeros where not probed."""
        rows = np.flatnonzero(self._probed)
        return probe_sources(self._source, self.recipe, self._options.seed, rows, self._num_workers)
