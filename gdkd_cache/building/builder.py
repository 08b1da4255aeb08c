"""What building, planning and repairing share: a source's views, shown to a teacher whose logits are kept."""

from collections.abc import Callable, Iterable
from importlib.metadata import version

import numpy as np
import torch

from gdkd_cache.building.compute import ROWS_AT_ONCE, Commit, Work, compute_shards, finite_logits
from gdkd_cache.building.options import BuildOptions
from gdkd_cache.codec.choose import Calibration, calibration_rows
from gdkd_cache.codec.columns import Codec
from gdkd_cache.data.loader import ViewLoader, default_num_workers
from gdkd_cache.data.probes import probed
from gdkd_cache.data.recipes.presets import open_recipe
from gdkd_cache.data.recipes.recipe import Recipe
from gdkd_cache.data.source import FullSource, Source, settle
from gdkd_cache.data.views import ViewRenderer, ViewRequest, image_size, requests_for
from gdkd_cache.device import describe
from gdkd_cache.models.network import Network
from gdkd_cache.progress import progress
from gdkd_cache.seeding import hash_keys
from gdkd_cache.store.card import make_card
from gdkd_cache.store.layout import PROBE_BYTES, encode_keys
from gdkd_cache.store.manifest import Identity

_SOFTWARE = ("gdkd-cache", "numpy", "pillow", "torch", "torchvision", "zarr")


class Builder:
    """Shows a source's views to a teacher.

    Attributes:
        keys: of the source.
        labels: int64 [row], its class ids.
        recipe: what the views are made with.
        renderer: makes them, with the probes of some rows.
    """

    def __init__(self, options: BuildOptions, source: Source, teacher: Network) -> None:
        """Check that the three belong together: the teacher is run once, on blank images.

        Raises:
            SourceError: the data cannot be read.
            ModelError: the teacher cannot take such views, or knows other classes.
            UsageError: an unknown recipe, or a codec that cannot hold so many classes.
        """
        source = settle(source)
        self._options, self._source, self._teacher = options, source, teacher
        self.keys, self.labels = list(source.keys), source.labels
        given, size = options.recipe, image_size(source)
        self.recipe = given if isinstance(given, Recipe) else open_recipe(given, *size)
        self._probed = probed(hash_keys(self.keys))
        self.renderer = ViewRenderer(source, self.recipe, options.seed, probe_rows=self._probed, device=teacher.device)
        self._view_size = self.renderer[ViewRequest((0,), np.arange(1))][0].pixels.shape[2:]
        teacher.check_classes(len(source.classes), (self._view_size[0], self._view_size[1]))
        options.request.check(len(source.classes))
        self._num_workers = default_num_workers(source) if options.num_workers is None else options.num_workers

    def identity(self) -> Identity:
        """The identity of the cache that comes of it, its codec and fidelity left open."""
        options, source, teacher = self._options, self._source, self._teacher
        return Identity(
            num_rows=len(self.keys),
            num_views=options.num_views,
            classes=tuple(source.classes),
            data={"name": source.name, "digest": source.digest, "keys_bytes": len(encode_keys(self.keys))},
            views={
                "recipe": self.recipe.to_json(),
                "seed": options.seed,
                "size": list(self._view_size),
                "first": options.first_view,
            },
            teacher=teacher.description,
            request=options.request.to_json(),
            codec={},
            fidelity={},
            build={
                "batch_size": options.batch_size,
                "device": describe(teacher.device),
                "precision": teacher.precision,
                "software": {name: version(name) for name in _SOFTWARE},
            },
            shard_rows=options.shard_rows,
            card=make_card(options.license, options.contact),
        )

    def calibrate(self) -> Calibration:
        """Run the teacher on view 0 of the rows that calibration needs: those of the smallest key hashes.

        Raises:
            ModelError: the teacher gives NaN or infinity.
            SourceError: an image cannot be read.
        """
        options, teacher, hashes = self._options, self._teacher, hash_keys(self.keys)
        wanted = calibration_rows(len(hashes), len(self._source.classes))
        rows = np.sort(np.argsort(hashes, kind="stable")[:wanted])
        loader = ViewLoader(self.renderer, num_workers=self._num_workers, pin_memory=teacher.device.type == "cuda")
        logits, labels = [], []
        with progress("calibrate", len(rows), "images") as advance:
            for batch in loader.stream(requests_for(0, rows, options.batch_size)):
                logits.append(finite_logits(teacher, batch.pixels, batch.rows, self.keys).cpu())
                labels.append(batch.targets.labels)
                advance(len(batch.rows))
        stored_rows = len(self.keys) * options.num_views
        return Calibration(options.request, torch.cat(logits), torch.cat(labels), stored_rows=stored_rows)

    def compute(self, work: Iterable[Work], codec: Codec, commit: Commit, advance: Callable[[int], None]) -> None:
        """Render, infer, encode and commit shards; arguments and errors as those of `compute_shards`."""
        options, renderer, teacher = self._options, self.renderer, self._teacher
        compute_shards(
            options.batch_size, work, renderer, self._num_workers, teacher, codec, commit, self.keys, advance
        )

    def source_probes(self) -> np.ndarray:
        """Probes of the decoded images: uint8 [row, 20], zeros where not probed."""
        rows = np.flatnonzero(self._probed)
        return probe_sources(self._source, self.recipe, self._options.seed, rows, self._num_workers)


def probe_sources(source: FullSource, recipe: Recipe, seed: int, rows: np.ndarray, num_workers: int) -> np.ndarray:
    """Probes of the decoded images of some rows: uint8 [row, 20], zeros for the others."""
    renderer = ViewRenderer(source, recipe, seed, probe_rows=np.ones(len(source), bool), probe_sources=True)
    probes = np.zeros((len(source), PROBE_BYTES), np.uint8)
    for batch in ViewLoader(renderer, num_workers=num_workers).stream(requests_for(0, rows, ROWS_AT_ONCE)):
        assert batch.source_probes is not None
        probes[batch.rows] = batch.source_probes
    return probes
