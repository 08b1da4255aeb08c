"""What the views that predict others say of some rows: decoded once, and held while these are written or read."""

from collections.abc import Callable, Mapping
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from gdkd_cache.codec.base import Codec, References, coded
from gdkd_cache.data.nearness import Nearness
from gdkd_cache.data.recipes.recipe import Recipe
from gdkd_cache.schema import to_json
from gdkd_cache.seeding import Words, hash_keys
from gdkd_cache.store.manifest import Identity
from gdkd_cache.store.reader import CacheReader

_ROWS_AT_ONCE = 16384


class ReferenceRows:
    """What the references say of a range of rows: an int8 for each reference, row and predicted component.

    Args:
        codec: one with references.
        nearness: of the views.
        rows: the range, among the rows that `nearness` knows.
        labels: int64 [row] of the range.
        load: gives the checked columns of a reference, each [row, ...] of the range; asked only for what `put` has not
            told.
    """

    def __init__(
        self,
        codec: Codec,
        nearness: Nearness,
        rows: range,
        labels: np.ndarray,
        load: Callable[[int], Mapping[str, np.ndarray]],
    ) -> None:
        self._codec, self._nearness, self._rows, self._labels, self._load = codec, nearness, rows, labels, load
        self._deviations = np.zeros((codec.num_references, len(rows), codec.num_predicted), np.int8)
        self._known = [0] * codec.num_references  # of so many rows, from the first on
        self._columns: dict[int, Mapping[str, np.ndarray]] = {}
        self._sizes = np.zeros((len(rows), 2), np.int64)
        self._lock = Lock()

    def see(self, part: slice, sizes: np.ndarray | None) -> None:
        """Take the sizes of some rows' images, [n, 2], where there are some; before anything else is asked of them."""
        if sizes is not None:
            self._sizes[part] = sizes

    def weights(self, view: int, part: slice) -> np.ndarray:
        """How near the references before a view are to it: int16 [row, reference]."""
        others = range(min(view, self._codec.num_references))
        return self._nearness.weights(view, others, np.array(self._rows[part]), self._sizes[part])

    def before(self, view: int, part: slice) -> References | None:
        """What a view's rows are predicted from; None of the first."""
        count = min(view, self._codec.num_references)
        if not count:
            return None
        with self._lock:
            self._decode(count, part.stop)
        return self._given(view, count, part)

    def _given(self, view: int, count: int, part: slice) -> References | None:
        if not count:
            return None
        deviations = torch.from_numpy(self._deviations[:count, part]).transpose(0, 1)
        return References(deviations, torch.from_numpy(self.weights(view, part)))

    def put(self, view: int, part: slice, columns: Mapping[str, Tensor], references: References | None) -> None:
        """Take what a reference says that has just been encoded, rows after rows."""
        if view < len(self._known) and self._known[view] == part.start:
            labels = torch.from_numpy(coded(self._labels[part])).to(next(iter(columns.values())).device)
            self._deviations[view, part] = self._codec.deviations(columns, labels, references).cpu().numpy()
            self._known[view] = part.stop

    def _decode(self, count: int, stop: int) -> None:
        """Decode what the first references say of the rows up to one."""
        for view in range(count):
            while self._known[view] < stop:
                if view not in self._columns:
                    self._columns[view] = self._load(view)
                part = slice(self._known[view], min(self._known[view] + _ROWS_AT_ONCE, stop))
                columns = {name: torch.from_numpy(column[part]) for name, column in self._columns[view].items()}
                self.put(view, part, columns, self._given(view, view, part))
            if self._known[view] == len(self._rows):
                self._columns.pop(view, None)

    def of_view(self, view: int) -> "ViewReferences | None":
        """What all the rows of a view are predicted from; None of the first."""
        if not min(view, self._codec.num_references):
            return None
        whole = slice(0, len(self._rows))
        self.before(view, whole)
        return ViewReferences(self._deviations, self.weights(view, whole))


class ViewReferences:
    """What a view is predicted from: the deviations are those of all views, the weights its own.

    Args:
        deviations: int8 [reference, row, predicted].
        weights: int16 [row, reference], of the first of these.
    """

    def __init__(self, deviations: np.ndarray, weights: np.ndarray) -> None:
        self._deviations, self._weights = deviations[: weights.shape[1]], weights

    @property
    def nbytes(self) -> int:
        """What it takes in memory for itself alone."""
        return self._weights.nbytes

    def take(self, rows: np.ndarray, device: str | torch.device) -> References:
        """Those of some rows, int64 [batch]."""
        deviations = torch.from_numpy(self._deviations[:, rows]).transpose(0, 1)
        return References(*(part.to(device) for part in (deviations, torch.from_numpy(self._weights[rows]))))


def nearness_of(identity: Identity, key_hashes: Words) -> Nearness:
    """How near the views of a cache are, as its manifest says."""
    if identity.views is None:
        return Nearness(None, 0, key_hashes)
    return Nearness(Recipe.from_json(to_json(identity.views.recipe)), identity.views.seed, key_hashes)


def references_of(cache: CacheReader, check: Callable[[int, Mapping[str, np.ndarray]], None]) -> ReferenceRows:
    """What the references of a cache say of all its rows, held with the cache.

    Args:
        cache: of a codec with references.
        check: refuses a view's columns that no encoder writes.
    """

    def load(view: int) -> Mapping[str, np.ndarray]:
        columns = cache.reference_columns(view)
        check(view, columns)
        return columns

    def make() -> ReferenceRows:
        nearness = nearness_of(cache.manifest.identity, hash_keys(cache.keys))
        rows = ReferenceRows(cache.codec, nearness, range(cache.manifest.identity.num_rows), cache.labels, load)
        rows.see(slice(None), cache.image_sizes())
        return rows

    return cache.once("references", make)
