"""Signals: what else a teacher left of the data of a cache, a few arrays of a class or of a row, in a file beside it.

A signal names the data (its digest: keys, labels and classes, in their order), which every cache of that data states.
So nothing of what stands is touched, it can be made later and shared apart, and it stays right for the caches that are
merged, pulled in part or built again. What is said of each view and row, in classes of its own, is a cache: `gc.pack`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import safetensors.torch
import torch
from torch import Tensor
from xxhash import xxh3_128

from gdkd_cache.cache.cache import Cache
from gdkd_cache.errors import CacheError, GdkdCacheError, MismatchError, UsageError, first_line, is_out_of_memory
from gdkd_cache.files import open_plain, replace_file, require_free
from gdkd_cache.models.safetensors_file import CARD_KEY, SafetensorsFile
from gdkd_cache.schema import check_json, short
from gdkd_cache.store.manifest import Identity

Axis = Literal["class", "row"]
FEATURES, NORMS = "features", "norms"
"""Of a signal of features: their mean of each class, [class, d], and the mean of their norms, [class]."""
_FORMAT = "gdkd-cache-signal/1"
_KIND = {"format": str, "data": str, "per": str, "about": str, "checksum": str}
_MOST_VALUES = 2**16
"""Of a class or a row."""
_LONGEST = 1000


@dataclass(frozen=True, kw_only=True)
class Signal:
    """Arrays of a class each, or of a row each.

    Attributes:
        per: `class` or `row`: what the first axis counts; rows are those of the cache.
        arrays: float16 or float32 [class or row, ...] by name, finite.
        about: what they are, in a line.
        checksum: of all that.
    """

    per: Axis
    arrays: Mapping[str, Tensor]
    about: str
    checksum: str


def pack_signal(
    path: str | Path,
    cache: Cache,
    arrays: Mapping[str, np.ndarray | Tensor],
    *,
    per: Axis,
    about: str = "",
    force: bool = False,
) -> Signal:
    """Write a signal.

    Args:
        path: the file.
        cache: of whose data it is.
        arrays: by name, [class, ...] in the order of class ids, or [row, ...] in the order of the cache's keys; float16
            is kept so, other numbers become float32.
        per: `class` or `row`.
        about: what they are, in a line.
        force: replace a file of that name.

    Raises:
        UsageError: other shapes, numbers that are not finite, or a long text.
        MismatchError: the file exists, and `force` is off.
        OSError: it cannot be written.
    """
    path = Path(path)
    require_free(path, force=force)
    tensors = {name: _stored(torch.as_tensor(value)) for name, value in arrays.items()}
    try:
        _check(tensors, per, about, cache.manifest.identity)
    except CacheError as error:
        raise UsageError(f"signal {path}: {error}") from None
    facts = {"format": _FORMAT, "data": cache.manifest.identity.data.digest, "per": per, "about": about}
    facts["checksum"] = _checksum(tensors, facts)
    replace_file(path, safetensors.torch.save(tensors, {CARD_KEY: json.dumps(facts, sort_keys=True)}))
    return Signal(per=per, arrays=tensors, about=about, checksum=facts["checksum"])


def open_signal(path: str | Path, cache: Cache) -> Signal:
    """Read a signal, every byte of it checked.

    Args:
        path: the file.
        cache: that it is to go with.

    Raises:
        CacheError: it is no signal, damaged, or not made of such arrays as a signal has.
        MismatchError: it is of other data than the cache.
    """
    path, identity = Path(path), cache.manifest.identity
    with open_plain(path, "signal", CacheError) as file:
        try:
            stored = SafetensorsFile(file)
            facts = json.loads(stored.card or "{}")
            check_json("its header", facts, _KIND)
            if facts["format"] != _FORMAT:
                raise CacheError(f"its format is {short(facts['format'])}; this version reads {_FORMAT}")
            if facts["data"] != identity.data.digest:
                raise MismatchError(
                    f"signal {path} is of data {short(facts['data'])}, and {cache.path} of {identity.data.digest}; use "
                    "the one that was made of this cache's data"
                )
            tensors = stored.read(stored.described)
            if facts.pop("checksum") != (checksum := _checksum(tensors, facts)):
                raise CacheError("its checksum is another: it is damaged; copy it again")
            _check(tensors, facts["per"], facts["about"], identity)
        except MismatchError:
            raise
        except Exception as error:  # of damaged files, anything
            if is_out_of_memory(error):
                raise
            reason = str(error) if isinstance(error, GdkdCacheError) else first_line(error)
            raise CacheError(f"signal {path} cannot be read: {reason}") from None
    return Signal(per=facts["per"], arrays=tensors, about=facts["about"], checksum=checksum)


def _stored(value: Tensor) -> Tensor:
    return value.detach().cpu().to(value.dtype if value.dtype == torch.float16 else torch.float32).contiguous()


def _check(tensors: Mapping[str, Tensor], per: str, about: str, identity: Identity) -> None:
    """Refuse what is no signal of such a cache.

    Raises:
        CacheError: it says why.
    """
    extents = {"class": len(identity.classes), "row": identity.num_rows}
    if per not in extents:
        raise CacheError(f"it is per {short(per)}; it must be per {' or '.join(extents)}")
    if len(about) > _LONGEST or not about.isprintable():
        raise CacheError(f"what it says of itself must be a line of at most {_LONGEST} characters")
    if not tensors:
        raise CacheError("it has no arrays")
    for name, value in tensors.items():
        if not name.isidentifier():
            raise CacheError(f"array {short(name)} must be named as a variable is")
        if value.dtype not in (torch.float16, torch.float32):
            raise CacheError(f"array {name} is {value.dtype}; it must be float16 or float32")
        if not value.ndim or len(value) != extents[per] or not 0 < value[0].numel() <= _MOST_VALUES:
            raise CacheError(
                f"array {name} is {list(value.shape)}; it must be [{per}, ...]: {extents[per]} of at most "
                f"{_MOST_VALUES} numbers each"
            )
        if not value.isfinite().all():
            raise CacheError(f"array {name} holds NaN or infinity")


def _checksum(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> str:
    digest = xxh3_128(json.dumps(facts, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)} ".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
