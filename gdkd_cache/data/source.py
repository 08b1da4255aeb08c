"""A source: a dataset that yields (key, image, label) in a fixed order; a key is a stable, unique string."""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image

from gdkd_cache.errors import SourceError

# ImageNet's statistics: the field's default where a source does not know better.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@runtime_checkable
class Source(Protocol):
    """What `--data` opens, and what a user's own dataset must look like.

    Attributes:
        keys: one stable, unique string a row, without line breaks.
        classes: class names in the order of class ids.
        digest: a string that changes when keys, labels or classes do.

    Optional attributes make it faster: `labels` (int64 [row]; else every row is read once for its label),
    `images` (uint8 [row, 3, height, width]; all pixels in memory, for the batched path), `decode` (as that of
    `EncodedSource`, for recipes with a decode_side), `shard_starts` (int64 [shard + 1]: the first row of each run of
    rows that are read fast together, then the number of rows; shuffling walks these), `fetch_ahead` (as that of
    `RemoteShardSource`: images that come over the network as a pass needs them) and `mean`, `std` (channel statistics
    of pixels in [0, 1]; else ImageNet's).
    """

    @property
    def keys(self) -> Sequence[str]: ...

    @property
    def classes(self) -> Sequence[str]: ...

    @property
    def digest(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        """The row's image, uint8 [height, width, 3], and its class id."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class ArraySource:
    """A source whose images all lie in memory, all of one size.

    Attributes:
        name: what it is, for manifests and messages.
        images: uint8 [row, 3, height, width].
        labels: int64 [row].
        keys, classes, mean, std: see `Source`.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    keys: Sequence[str]
    classes: Sequence[str]
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    @property
    def digest(self) -> str:
        return source_digest(self.keys, self.labels, self.classes)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        return self.images[row].transpose(1, 2, 0), int(self.labels[row])


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedSource:
    """A source whose images are decoded when they are read: a path, or the bytes of a file, for each row.

    Attributes:
        name: what it is, for manifests and messages.
        files: a path or encoded bytes a row.
        labels: int64 [row].
        keys, classes: see `Source`.
    """

    name: str
    files: Sequence[Path | bytes]
    labels: np.ndarray
    keys: Sequence[str]
    classes: Sequence[str]
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    @property
    def digest(self) -> str:
        return source_digest(self.keys, self.labels, self.classes)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        return self.decode(row, None), int(self.labels[row])

    def decode(self, row: int, side: int | None) -> np.ndarray:
        """The row's image, as `decode_image`."""
        return decode_image(self.keys[row], self.files[row], side)


def decode_image(key: str, file: Path | bytes, side: int | None = None) -> np.ndarray:
    """Decode an image file to uint8 RGB [height, width, 3].

    Args:
        key: for messages.
        file: a path, or a file's bytes.
        side: JPEG files are decoded at the smallest of 1, 1/2, 1/4 and 1/8 of their size whose shorter side has
            at least so many pixels; None decodes them whole.

    Raises:
        SourceError: it cannot be decoded; the message names the key.
    """
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            if side is not None:
                image.draft("RGB", (side, side))
            return np.array(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = str(error).split("\n")[0]
        raise SourceError(f"image {key!r} cannot be decoded ({reason}); replace or remove that file") from None


def source_digest(keys: Sequence[str], labels: np.ndarray, classes: Sequence[str]) -> str:
    """`sha256:` over keys, labels and class names in order."""
    digest = hashlib.sha256()
    for part in (keys, [str(label) for label in labels.tolist()], classes):
        digest.update("\n".join(part).encode() + b"\0")
    return f"sha256:{digest.hexdigest()}"


def labels_of(source: Source) -> np.ndarray:
    """The labels of any source: int64 [row].

    Raises:
        SourceError: a label is no class id.
    """
    known = getattr(source, "labels", None)
    labels = np.asarray([source[row][1] for row in range(len(source))] if known is None else known).astype(np.int64)
    outside = np.flatnonzero((labels < 0) | (labels >= len(source.classes)))
    if len(outside):
        row = int(outside[0])
        raise SourceError(
            f"key {source.keys[row]!r} has label {labels[row]}; "
            f"the source names {len(source.classes)} classes, ids 0 to {len(source.classes) - 1}"
        )
    return labels


def normalization_of(source: Source) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Channel means and deviations of any source, for pixels in [0, 1]."""
    return tuple(getattr(source, "mean", IMAGENET_MEAN)), tuple(getattr(source, "std", IMAGENET_STD))


def name_of(source: Source) -> str:
    """A short name for manifests and messages."""
    return str(getattr(source, "name", type(source).__name__))


def check_source(source: Source) -> None:
    """Check what every use relies on.

    Raises:
        SourceError: no rows, a key count that is not the length, repeated keys, or keys with line breaks.
    """
    keys = list(source.keys)
    if not keys or len(keys) != len(source):
        raise SourceError(
            f"source {name_of(source)} has {len(source)} rows and {len(keys)} keys; both must be equal, above 0"
        )
    if len(set(keys)) != len(keys):
        seen: set[str] = set()
        repeated = next(key for key in keys if key in seen or seen.add(key))
        raise SourceError(f"source {name_of(source)}: key {repeated!r} occurs more than once; keys must be unique")
    broken = next((key for key in keys if not key or "\n" in key), None)
    if broken is not None:
        raise SourceError(f"source {name_of(source)}: key {broken!r} is empty or holds a line break")
    if len(source.classes) < 2:
        raise SourceError(f"source {name_of(source)} has {len(source.classes)} classes; at least 2 are needed")
