"""What several tests make: parts of a source, small caches, forged manifests."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gdkd_cache.codec import CodecRequest
from gdkd_cache.data import ArraySource, Source
from gdkd_cache.pipeline.build import BuildOptions, BuildResult, build
from gdkd_cache.pipeline.teacher import Teacher
from gdkd_cache.store.manifest import MANIFEST_NAME, canonical_json


def take(source: Source, rows: np.ndarray) -> ArraySource:
    """The given rows of an in-memory source, in the given order."""
    assert isinstance(source, ArraySource)
    return ArraySource(
        name=source.name,
        images=source.images[rows],
        labels=source.labels[rows],
        keys=[str(source.keys[row]) for row in rows.tolist()],
        classes=source.classes,
        mean=source.mean,
        std=source.std,
    )


def build_small(
    out: str | Path, source: Source, teacher: Teacher, *, codec: str = "topk", **options: Any
) -> BuildResult:
    """Build a cache of two views in batches of 64, unless the options say otherwise."""
    defaults: dict[str, Any] = {"num_views": 2, "batch_size": 64, "num_workers": 0, "request": CodecRequest(spec=codec)}
    return build(BuildOptions(out=out, **(defaults | options)), source, teacher)


def forge(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Edit a manifest and give it a digest that is its own again, as a forger would."""
    stored = json.loads((path / MANIFEST_NAME).read_bytes())
    change(stored)
    del stored["digest"]
    stored["digest"] = "sha256:" + hashlib.sha256(canonical_json(stored)).hexdigest()
    (path / MANIFEST_NAME).write_bytes(canonical_json(stored))
