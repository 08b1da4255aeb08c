"""A cache as its users see it: open it, look at its views, join it with its source."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from gdkd_cache.cache.dataset import CachedDataset
from gdkd_cache.cache.view import View
from gdkd_cache.codec.expected import expected_error
from gdkd_cache.data.recipes.recipe import Recipe
from gdkd_cache.data.source import Source, settle
from gdkd_cache.errors import MismatchError, NotServedError, UsageError
from gdkd_cache.losses.base import ForeignLoss, Loss, loss_from_json
from gdkd_cache.objects.objects import open_objects
from gdkd_cache.store.cells import ONE_CELL
from gdkd_cache.store.reader import CacheReader
from gdkd_cache.store.sidecars.reader import SidecarReader, holds_sidecars

_ESTIMATED_LOGITS = 2**19
_DIGEST = re.compile(r"sha256:[0-9a-f]{1,64}")  # a shorter one is merely another cache's


class GradientError(NamedTuple):
    """How far a loss's gradient is from that of the full logits; measured at the build, or estimated since."""

    value: float
    is_measured: bool


class Cache(CacheReader):
    """A finished cache, read-only. Made by `open_cache`.

    Attributes:
        path: where it is: a folder, or a URL without credentials.
        manifest: what it is: `identity`, `objects` and `digest`.
        keys: key strings in row order.
        labels: class ids, int64 [row].
    """

    @property
    def num_views(self) -> int:
        return self.manifest.identity.num_views

    @property
    def view_numbers(self) -> range:
        """The numbers of the views; they begin above 0 in a part of a larger cache."""
        return self.manifest.identity.view_numbers

    @property
    def num_rows(self) -> int:
        return self.manifest.identity.num_rows

    @property
    def num_classes(self) -> int:
        return len(self.manifest.identity.classes)

    def view(self, number: int) -> View:
        """Load one view, every byte checked.

        Args:
            number: one of `view_numbers`.

        Raises:
            UsageError: no such view.
            CacheError: its data is damaged.
        """
        numbers = self.view_numbers
        if number not in numbers:
            raise UsageError(f"view {number} does not exist; {self.path} has views {numbers[0]} to {numbers[-1]}")
        return View(self, number)

    def dataset(
        self,
        source: Source,
        *,
        temperature: float | None = None,
        strict_replay: bool = False,
        recipe: Recipe | None = None,
        size: int | None = None,
        views: str | Sequence[int] | None = None,
        images_in_memory: int | None = None,
        decoded: Path | None = None,
        num_workers: int | None = 0,
    ) -> CachedDataset:
        """Join with the images: rows are found by key, so another order or a subset of the rows is fine.

        Args:
            source: what `open_source` gives, or an object of your own with the `Source` protocol.
            temperature: of the loss, for a `topk` cache with several declared temperatures; None is the first.
            strict_replay: also refuse pixels that differ from the teacher's by rounding.
            recipe: what the views are made with, as `open_recipe` gives it; None takes the manifest's word, which
                is enough except for `compat:` recipes. Another than the cache's is refused.
            size: side of the student's views in pixels, if it is not the teacher's: the same boxes of the same
                images at another resolution.
            views: which views the epochs show, in turn, as numbers or a text such as `0-19` or `0-4,7`; None is all.
            images_in_memory: bytes of memory for decoded images: those of a source that fit, all of one size, are
                decoded once, here. 0 is for none, None a quarter of what is free.
            decoded: a folder on a local disk, where a file keeps the decoded pixels of other images.
            num_workers: processes that decode the images of a source of your own for that; None is one a core.

        Raises:
            MismatchError: other classes, an unknown key, another label, another recipe, or other pixels in a
                probed image or view.
            UsageError: a size for views that are not square, or a view that the cache lacks.
        """
        return CachedDataset(
            [self],
            settle(source),
            temperature=temperature,
            strict_replay=strict_replay,
            recipe=recipe,
            size=size,
            views=views,
            images_in_memory=images_in_memory,
            decoded=decoded,
            num_workers=num_workers,
        )

    def require(self, loss: Loss) -> None:
        """Refuse a loss that this cache cannot serve.

        Raises:
            NotServedError: it says why, and what the cache serves.
        """
        if loss.needs_labels and (unlabelled := self.manifest.identity.data.unlabelled):
            raise NotServedError(f"{self.path} has no label of {unlabelled} rows; {loss} needs one of each")
        if reason := self.codec.refusal(loss):
            name = self.manifest.identity.codec.name
            raise NotServedError(f"{self.path} (codec {name}) cannot serve {loss}: {reason}")

    def gradient_error(self, loss: Loss, view: View | None = None) -> GradientError | None:
        """How far the gradient of a loss is from that of the full logits: ||G_cache - G_full|| / ||G_full||.

        It was measured for the declared losses when the cache was built; for another one it is estimated, to within a
        factor of two. None where nothing was measured, or rows are of several cells.

        Args:
            loss: any that the cache serves.
            view: some of whose rows an estimate takes; None loads the first.

        Raises:
            NotServedError: as `require`.
            CacheError: the view is damaged.
        """
        self.require(loss)
        stated = self.manifest.identity.fidelity.gradient_error
        if str(loss) in stated:
            return GradientError(stated[str(loss)], is_measured=True)
        declared = map(loss_from_json, self.manifest.identity.request.losses)
        measured = [
            (one, stated[str(one)]) for one in declared if str(one) in stated and not isinstance(one, ForeignLoss)
        ]
        if not measured or self.manifest.identity.cells != ONE_CELL:
            return None
        rows = np.arange(min(self.num_rows, max(_ESTIMATED_LOGITS // self.num_classes, 1)))
        logits, top = (view or self.view(self.view_numbers[0])).decode(rows, temperature=loss.temperature)
        labels = torch.from_numpy(self.labels[rows])
        exact = self.codec.exact_values
        error = expected_error(loss, measured, logits, labels, top.classes, exact_values=exact)
        return GradientError(error, is_measured=False)


class _SidecarCache(Cache, SidecarReader):
    """A cache in sidecars."""


def open_cache(path: str | Path, *, digest: str | None = None, local_copy: str | Path | None = None) -> Cache:
    """Open a cache: reads its manifest, nothing else.

    Args:
        path: the cache folder, or a URL: `s3://`, `gs://`, `az://` or `https://`, credentials in the environment; or
            `hf://datasets/ORG/NAME[@REVISION][/FOLDER]`, of which all is read at the commit that it is at now.
        digest: `sha256:...`; refuse any other cache.
        local_copy: a folder where everything that is read is kept, to be read there the next time; each object lies
            under its SHA-256 and is checked at every read. It only grows, may serve several caches, and may be deleted.

    Raises:
        CacheError: no cache, an unfinished build or copy, or a damaged manifest.
        MismatchError: another digest.
        StoreError: the object store or the Hub cannot be reached, or refuses.
        UsageError: `digest` is none, the URL is broken, or what it needs is not installed.
    """
    if digest is not None and not _DIGEST.fullmatch(digest):
        raise UsageError(f"digest is {digest!r}; it must be sha256: and 64 hexadecimal digits, as inspect prints it")
    place = path if isinstance(path, Path) else open_objects(path).location  # with a commit, where there are some
    cache = (_SidecarCache if holds_sidecars(place) else Cache)(place, local_copy=local_copy)
    if digest is not None and digest != cache.digest:
        raise MismatchError(f"{cache.path} has digest {cache.digest}, not the {digest} asked for")
    return cache
