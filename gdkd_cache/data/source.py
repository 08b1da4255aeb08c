"""A source: a dataset that yields (key, image, label or mask) in a fixed order; a key is a stable, unique string."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from gdkd_cache.data.images.decoding import decode_image
from gdkd_cache.data.masks import MOST_MASK_CLASSES, Masks, check_mask, check_mask_size
from gdkd_cache.errors import SourceError, first_line
from gdkd_cache.limits import MOST_CLASSES, NO_LABEL
from gdkd_cache.models.normalization import IMAGENET


@runtime_checkable
class Source(Protocol):
    """What a user's own dataset must look like at least.

    Attributes:
        keys: one stable, unique string a row, without line breaks.
        classes: class names in the order of class ids.
        digest: a string that changes when keys, labels or classes do.

    Whatever else it has of `FullSource`, under the same name, is used: `labels` (else every row is read once for its
    label), `names`, `wnids`, `images`, `decode`, `mask`, `shard_starts`, `remote`, `mean`, `std` and `name`.
    """

    @property
    def keys(self) -> Sequence[str]: ...

    @property
    def classes(self) -> Sequence[str]: ...

    @property
    def digest(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> tuple[np.ndarray, Any]:
        """The row's image, uint8 [height, width, 3], and its class id; or, for every row, its mask: whole numbers
        [height, width], class ids or `gdkd_cache.data.masks.IGNORE`."""
        ...


@runtime_checkable
class Shards(Protocol):
    """Shards that are there only while they are held."""

    def hold(self, shard: int) -> Future[None]:
        """Have a shard brought over and kept; the future says when it is there."""
        ...

    def release(self, shard: int) -> None:
        """Take back one `hold`."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class FullSource(ABC):
    """A source with all that one may offer; what it does not offer is None. It is right when it exists.

    Attributes:
        name: what it is, for manifests and messages.
        labels: int64 [row], class ids or `NO_LABEL`; zeros where rows have masks, for such a row has no class of its
            own.
        keys, classes: see `Source`.
        names: what people call the classes, in the same order; empty where they have no other names.
        wnids: the WordNet ids of the classes, in the same order; empty where they have none.
        mean, std: statistics of the channels, of pixels in [0, 1]; ImageNet's where a source does not know better.
        images: uint8 [row, 3, height, width], all pixels in memory, for the batched path.
        shard_starts: int64 [shard + 1], the first row of each run of rows that are read fast together, then the
            number of rows; shuffling walks these.
        remote: the shards of such runs, where they come over the network as a pass needs them.
        masks: the rows' masks; None where a row has one class.

    Raises:
        SourceError: no rows, a key count that is not the number of labels, repeated keys, keys that are empty, have
            line breaks or are no text, fewer than 2 classes or more than 131,072 (of masks 32,768), a class name that
            is no text, another number of names or WordNet ids, or a label that is neither a class id nor `NO_LABEL`.
    """

    name: str
    labels: np.ndarray
    keys: Sequence[str]
    classes: Sequence[str]
    names: Sequence[str] = ()
    wnids: Sequence[str] = ()
    mean: tuple[float, ...] = IMAGENET.mean
    std: tuple[float, ...] = IMAGENET.std
    images: np.ndarray | None = None
    shard_starts: np.ndarray | None = None
    remote: Shards | None = None
    masks: Masks | None = None

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "labels", class_ids(self.labels))
        except ValueError as error:
            raise SourceError(f"source {self.name}: labels {error}") from None
        _check(self)

    @property
    def digest(self) -> str:
        return source_digest(self.keys, self.labels, self.classes)

    @property
    def unlabelled(self) -> int:
        """How many rows have no label."""
        return int((self.labels == NO_LABEL).sum())

    def require_labels(self) -> None:
        """Refuse rows without a label.

        Raises:
            SourceError: it says how many there are.
        """
        if self.unlabelled:
            raise SourceError(
                f"source {self.name}: {self.unlabelled} of {len(self)} rows have no label; evaluation needs one of each"
            )

    @property
    def shown_names(self) -> Sequence[str]:
        """The names of the classes for people."""
        return self.names if len(self.names) else self.classes

    @property
    def class_names(self) -> tuple[Sequence[str], ...]:
        """All that the classes are called: lists with one text a class."""
        return tuple(names for names in (self.classes, self.names, self.wnids) if len(names))

    @property
    def scales(self) -> bool:
        """Whether `decode` takes a side."""
        return False

    @property
    def has_masks(self) -> bool:
        """Whether a row's target is a mask."""
        return self.masks is not None

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, row: int) -> tuple[np.ndarray, Any]:
        """The row's image, uint8 [height, width, 3], and its class id or mask; see `decode` and `mask`."""
        image = self.decode(row, None)
        return image, self._of_size(row, self.mask(row), image) if self.has_masks else int(self.labels[row])

    def mask(self, row: int) -> np.ndarray:
        """The row's mask, of a source that has them: int16 [height, width], class ids or `IGNORE`.

        Raises:
            SourceError: it cannot be read, or is none; that it is of its image's size is seen with the image.
        """
        assert self.masks is not None
        return check_mask(self.keys[row], self.masks[row], len(self.classes))

    def _of_size(self, row: int, mask: np.ndarray, image: np.ndarray) -> np.ndarray:
        check_mask_size(self.keys[row], mask, image.shape[:2])
        return mask

    def take(self, rows: np.ndarray) -> "FullSource":
        """The given rows of it, int64 [row], rising: a source of its own, with the same classes."""
        return replace(self, **self._taken(rows))

    def with_labels(self, labels: np.ndarray) -> "FullSource":
        """The same images with other labels, int64 [row]."""
        return replace(self, labels=labels)

    def _taken(self, rows: np.ndarray) -> dict[str, Any]:
        """What it has for each row, of the given ones."""
        taken: dict[str, Any] = {"keys": [self.keys[row] for row in rows.tolist()], "labels": self.labels[rows]}
        if self.images is not None:
            taken["images"] = self.images[rows]
        if self.masks is not None:
            taken["masks"] = self.masks.take(rows)
        if self.shard_starts is not None:  # a shard may be left with no row
            taken["shard_starts"] = np.searchsorted(rows, self.shard_starts)
        return taken

    @abstractmethod
    def decode(self, row: int, side: int | None) -> np.ndarray:
        """The row's image, uint8 [height, width, 3]; with a side, perhaps smaller, as `decode_image` does it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ArraySource(FullSource):
    """A source whose images all lie in memory, all of one size."""

    images: np.ndarray = field()  # required here

    def decode(self, row: int, side: int | None) -> np.ndarray:
        assert side is None
        return self.images[row].transpose(1, 2, 0)


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedSource(FullSource):
    """A source whose images are decoded when they are read.

    Attributes:
        files: a path, or the bytes of a file, a row.
    """

    files: Sequence[Path | bytes]

    @property
    def scales(self) -> bool:
        return True

    def decode(self, row: int, side: int | None) -> np.ndarray:
        return decode_image(self.keys[row], self.files[row], side)

    def _taken(self, rows: np.ndarray) -> dict[str, Any]:
        return super()._taken(rows) | {"files": [self.files[row] for row in rows.tolist()]}


@dataclass(frozen=True, kw_only=True, eq=False)
class _Own(FullSource):
    """A user's own source with what it offers.

    Attributes:
        rows: int64 [row], which of its rows they are; None for all.
    """

    source: Source
    scaled: Callable[[int, int], np.ndarray] | None
    rows: np.ndarray | None = None

    @property
    def digest(self) -> str:
        return self.source.digest if self.rows is None else super().digest

    @property
    def scales(self) -> bool:
        return self.scaled is not None

    def decode(self, row: int, side: int | None) -> np.ndarray:
        row = row if self.rows is None else int(self.rows[row])
        if side is None:
            return self.source[row][0]
        assert self.scaled is not None
        return self.scaled(row, side)

    def __getitem__(self, row: int) -> tuple[np.ndarray, Any]:
        if not self.has_masks:
            return super().__getitem__(row)
        image, mask = self.source[row if self.rows is None else int(self.rows[row])]  # both at once
        return image, self._of_size(row, check_mask(self.keys[row], mask, len(self.classes)), image)

    def with_labels(self, labels: np.ndarray) -> FullSource:
        # Rows that are named have a digest of their own.
        return replace(self, labels=labels, rows=np.arange(len(self)) if self.rows is None else self.rows)

    def _taken(self, rows: np.ndarray) -> dict[str, Any]:
        return super()._taken(rows) | {"rows": rows if self.rows is None else self.rows[rows]}


@dataclass(frozen=True, kw_only=True, eq=False)
class _OwnMasks:
    """The masks of a user's own source, or of the given rows, int64 [row], of it."""

    source: Source
    rows: np.ndarray

    def __getitem__(self, row: int) -> np.ndarray:
        row, alone = int(self.rows[row]), getattr(self.source, "mask", None)
        return self.source[row][1] if alone is None else alone(row)

    def take(self, rows: np.ndarray) -> "_OwnMasks":
        return replace(self, rows=self.rows[rows])


def settle(source: object) -> FullSource:
    """Any source with all that it may offer: ours as they are, and a user's own, read once for its labels.

    A source of one's own has masks where it has `mask`, or no `labels` and a first row whose target has two dimensions.

    Raises:
        SourceError: it is no source, or not right; see `FullSource`.
    """
    if isinstance(source, FullSource):
        return source
    if not isinstance(source, Source):
        kind = type(source).__name__
        raise SourceError(f"{kind} given as data is no source: it must have keys, classes, a digest, a length and rows")
    rows, labels, masks = range(len(source)), getattr(source, "labels", None), None
    first = [source[row][1] for row in rows[:1]] if labels is None else []
    if callable(getattr(source, "mask", None)) or any(np.ndim(target) == 2 for target in first):
        labels, masks = np.zeros(len(rows), np.int64), _OwnMasks(source=source, rows=np.arange(len(rows)))
    elif labels is None:
        labels = [*first, *(source[row][1] for row in rows[1:])]
    return _Own(
        name=str(getattr(source, "name", type(source).__name__)),
        labels=np.asarray([NO_LABEL if label is None else label for label in labels]),
        masks=masks,
        keys=source.keys,
        classes=source.classes,
        names=getattr(source, "names", ()),
        wnids=getattr(source, "wnids", ()),
        mean=tuple(getattr(source, "mean", IMAGENET.mean)),
        std=tuple(getattr(source, "std", IMAGENET.std)),
        images=getattr(source, "images", None),
        shard_starts=getattr(source, "shard_starts", None),
        remote=getattr(source, "remote", None),
        source=source,
        scaled=getattr(source, "decode", None),
    )


def source_digest(keys: Sequence[str], labels: np.ndarray, classes: Sequence[str]) -> str:
    """`sha256:` over keys, labels and class names in order."""
    digest = hashlib.sha256()
    for part in (keys, [str(label) for label in labels.tolist()], classes):
        digest.update("\n".join(part).encode() + b"\0")
    return f"sha256:{digest.hexdigest()}"


def class_ids(labels: Any) -> np.ndarray:
    """Labels, of whatever numpy makes an array, as int64 of the same shape.

    Raises:
        ValueError: they are no whole numbers; it says what they are.
    """
    try:
        given = np.asarray(labels)
    except Exception as error:  # of a ragged list, a tensor on a GPU, anything
        raise ValueError(f"make no array ({first_line(error)}); give class ids") from None
    whole = given.dtype.kind in "iub" or not given.size
    if given.dtype.kind == "f":  # 3.0 is a class id, as far as floats count exactly
        with np.errstate(invalid="ignore"):
            whole = bool((np.abs(given) < 2**53).all() and (given == np.rint(given)).all())
    if not whole:
        raise ValueError(f"are {given.dtype}, not all whole numbers; give class ids")
    return given.astype(np.int64, copy=False)


def is_text(name: object) -> bool:
    """Whether a key or a class name can be written in UTF-8: file names on disk can hold other bytes."""
    try:
        return isinstance(name, str) and (name.isascii() or bool(name.encode()))
    except UnicodeEncodeError:
        return False


def _check(source: FullSource) -> None:
    keys, num_classes = list(source.keys), len(source.classes)
    if not keys or len(keys) != len(source.labels):
        raise SourceError(
            f"source {source.name} has {len(source.labels)} rows and {len(keys)} keys; both must be equal, above 0"
        )
    if (
        unreadable := next((name for name in (*keys, *source.classes, *source.names) if not is_text(name)), None)
    ) is not None:
        raise SourceError(
            f"source {source.name}: {unreadable!r} is no text in UTF-8; rename that file, member or class"
        )
    if len(set(keys)) != len(keys):
        seen: set[str] = set()
        repeated = next(key for key in keys if key in seen or seen.add(key))
        raise SourceError(f"source {source.name}: key {repeated!r} occurs more than once; keys must be unique")
    broken = next((key for key in keys if not key or "\n" in key), None)
    if broken is not None:
        raise SourceError(f"source {source.name}: key {broken!r} is empty or holds a line break")
    if not 2 <= num_classes <= MOST_CLASSES:
        raise SourceError(f"source {source.name} has {num_classes} classes; it must have 2 to {MOST_CLASSES}")
    if source.has_masks and num_classes > MOST_MASK_CLASSES:
        raise SourceError(f"source {source.name} has {num_classes} classes; masks hold {MOST_MASK_CLASSES} at most")
    if len(source.names) not in (0, num_classes):
        raise SourceError(
            f"source {source.name} has {num_classes} classes and {len(source.names)} names; give each one"
        )
    if len(source.wnids) not in (0, num_classes):
        raise SourceError(f"source {source.name} has {num_classes} classes and {len(source.wnids)} WordNet ids")
    outside = np.flatnonzero((source.labels < NO_LABEL) | (source.labels >= num_classes))
    if len(outside):
        row = int(outside[0])
        raise SourceError(
            f"key {keys[row]!r} has label {source.labels[row]}; "
            f"the source names {num_classes} classes, ids 0 to {num_classes - 1}; {NO_LABEL} is no label"
        )
