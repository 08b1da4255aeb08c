"""Files of the kinds that users give, whole and wrong, and how they must be refused."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gdkd_cache.errors import GdkdCacheError

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)


def encoded(kind: str, mode: str = "RGB", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(file, kind, **options)
    return file.getvalue()


def shard(path: Path, samples: dict[str, bytes] | None = None) -> bytes:
    default = {"a.png": encoded("PNG"), "a.cls": b"0", "b.png": encoded("PNG"), "b.cls": b"1"}
    with tarfile.open(path, "w") as tar:
        for name, data in (default if samples is None else samples).items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path.read_bytes()


def refused(call: Callable[[], object], said: str | None, kind: type[GdkdCacheError] = GdkdCacheError) -> None:
    with pytest.raises(kind, match=said) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert " object at 0x" not in message
    assert len(message) < 600
