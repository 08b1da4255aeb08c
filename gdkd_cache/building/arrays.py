"""Logits, labels and keys from files that other programs wrote. What their headers say is compared with their sizes."""

import io
import math
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy

from gdkd_cache.errors import GdkdCacheError, SourceError, first_line
from gdkd_cache.files import open_plain, read_bounded
from gdkd_cache.limits import LEAST_UNPACKED, MOST_UNPACKED
from gdkd_cache.schema import short

_LOGITS = ("teacher", "logits")
_LABELS = ("label", "labels")
_KEY_BYTES = 1024
"""A row, on average."""
_VALUES = 2**24
"""Logits that are looked at together."""
_HEAD_BYTES = 2**15
"""More than numpy reads of a header."""
_ZIP = b"PK\x03\x04"
_VERSIONS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


@dataclass(frozen=True, kw_only=True)
class PackInput:
    """Arrays read from files: logits [view, row, class], labels [row], keys, and whether the labels are guesses.

    Of rows of several cells logits are [view, row, *grid, class], as `pack` takes them, and labels [row, height, width]
    or None.
    """

    logits: np.ndarray
    labels: np.ndarray | None
    keys: list[str]
    guessed_labels: bool


def read_logits(logits: Path, labels: Path | None, keys: Path | None) -> PackInput:
    """Read logits from a .npy (mapped, not loaded) or .npz file, labels from a .npy or .npz, keys from a text file.

    Args:
        logits: .npy of [view, row, class], or .npz with `teacher` or `logits`, and maybe `label` or `labels`; its other
            arrays are not read. Of a dense network [view, row, height, width, class], of several outputs of one
            [view, row, output, height, width, class].
        labels: .npy of [row], or .npz with `label` or `labels`; None takes the other .npz's, or the top-1 classes of
            view 0; of a dense network there are none then.
        keys: one key a line; None takes the row numbers.

    Raises:
        SourceError: a file is missing, no plain file, no such file, or lacks an array; or an array is of another shape
            or type, or says that it is larger than the file can hold.
        OSError: a file cannot be read.
    """
    array = _read(logits, "logits", _LOGITS)
    if array is None:
        raise SourceError(f"logits {logits} hold no array {' or '.join(_LOGITS)}; name yours so")
    if array.ndim not in (3, 5, 6) or array.dtype.kind != "f" or not array.size:
        raise SourceError(
            f"{logits} holds {array.dtype} {list(array.shape)}; it needs floats [view, row, class], or of a dense "
            "network [view, row, height, width, class] or [view, row, output, height, width, class]"
        )
    if labels is not None:
        found = _read(labels, "labels", _LABELS)
        if found is None:
            raise SourceError(f"labels {labels} hold no array {' or '.join(_LABELS)}; name yours so")
    else:
        found = _read(logits, "labels", _LABELS, only_named=True)
    is_guessed = found is None and array.ndim == 3
    if is_guessed:
        with np.errstate(over="ignore", invalid="ignore"):
            found = _likeliest(array[0])
    return PackInput(
        logits=array,
        labels=found,
        keys=[str(row) for row in range(array.shape[1])] if keys is None else _read_keys(keys, array.shape[1]),
        guessed_labels=is_guessed,
    )


def _likeliest(logits: np.ndarray) -> np.ndarray:
    """The top-1 class of each row, of some rows at a time, so that no copy of all is made: int64 [row]."""
    classes = np.zeros(len(logits), np.int64)
    step = max(_VALUES // max(logits.shape[-1], 1), 1)
    for start in range(0, len(logits), step):
        rows = slice(start, start + step)
        classes[rows] = np.asarray(logits[rows], np.float32).argmax(-1)
    return classes


def _read(path: Path, what: str, names: Sequence[str], *, only_named: bool = False) -> np.ndarray | None:
    """The array of a .npy file, mapped, or the first of these names in a .npz; None where there is none such."""
    with _numbers(path, what) as (file, size):
        start = file.read(_HEAD_BYTES)
        if start.startswith(_ZIP):
            with zipfile.ZipFile(file) as archive:
                name = next((f"{name}.npy" for name in names if f"{name}.npy" in archive.NameToInfo), None)
                return None if name is None else _member(archive, name, max(MOST_UNPACKED * size, LEAST_UNPACKED))
        if only_named:
            return None
        header = _header(start, size)
        if not math.prod(header.shape):
            return np.empty(header.shape, header.dtype)
        order = "F" if header.fortran else "C"
        return np.memmap(file, header.dtype, "r", header.num_bytes, header.shape, order)


def _member(archive: zipfile.ZipFile, name: str, most: int) -> np.ndarray:
    """An array in a .npz, in memory."""
    size = archive.getinfo(name).file_size
    if size > most:
        raise ValueError(f"{name} unpacks to {size:,} bytes, many times the file's size")
    with archive.open(name) as file:
        _header(file.read(_HEAD_BYTES), size)
    with archive.open(name) as file:  # again, as going back would leave its checksum out
        return npy.read_array(file, allow_pickle=False)


class _Header(NamedTuple):
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    num_bytes: int


def _header(start: bytes, size: int) -> _Header:
    """What the beginning of a .npy file of so many bytes says, which must be as many."""
    file = io.BytesIO(start)
    version = npy.read_magic(file)
    if version not in _VERSIONS:
        raise ValueError(f"its format has version {version}; 1.0 and 2.0 are read")
    try:
        shape, fortran, dtype = _VERSIONS[version](file)
    except Exception:  # from TokenError to RecursionError, with words that are of no use
        raise ValueError("its header describes no array") from None
    if any(extent < 0 for extent in shape) or dtype.hasobject:
        raise ValueError(f"its header says {short(dtype)} {short(shape)}")
    said, there = math.prod(shape) * dtype.itemsize, size - file.tell()
    if said != there:
        raise ValueError(f"its header says {short(dtype)} {short(shape)}, which is not {there:,} bytes as in the file")
    return _Header(shape, fortran, dtype, file.tell())


@contextmanager
def _numbers(path: Path, what: str) -> Iterator[tuple[IO[bytes], int]]:
    """A file of arrays that is open, and its size; whatever goes wrong with it is said of it in one line."""
    with open_plain(path, what, SourceError) as file:
        try:
            yield file, os.fstat(file.fileno()).st_size
        except GdkdCacheError:
            raise
        except (
            Exception
        ) as error:  # numpy and zipfile raise anything of a damaged header, from TokenError to MemoryError
            raise SourceError(f"{what} {path} is no .npy or .npz of numbers: {first_line(error)}") from None


def _read_keys(path: Path, num_rows: int) -> list[str]:
    try:
        return read_bounded(path, _KEY_BYTES * (num_rows + 1), "keys", SourceError).decode().splitlines()
    except UnicodeDecodeError as error:
        raise SourceError(f"keys {path} are no text in UTF-8: byte {error.start:,} is no part of it") from None
