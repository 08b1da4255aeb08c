"""What several tests make: parts of a source, small caches, forged manifests."""

import hashlib
import io
import json
import multiprocessing
import os
import shutil
import tarfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pytest
import torch
from PIL import Image

from gdkd_cache import open_cache
from gdkd_cache.building.build import BuildOptions, BuildResult, build
from gdkd_cache.data.shards.source import ShardSource
from gdkd_cache.data.source import ArraySource, Source
from gdkd_cache.models.network import Network
from gdkd_cache.store.arrays import ArrayLayout
from gdkd_cache.store.layout import row_layouts
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
    out: str | Path, source: Source, teacher: Network, *, codec: str = "topk", **options: Any
) -> BuildResult:
    """Build a cache of two views in batches of 64, with whatever teacher, unless the options say otherwise."""
    defaults: dict[str, Any] = {"num_views": 2, "batch_size": 64, "num_workers": 0, "codec": codec}
    defaults |= {"accept_teacher": True}
    return build(BuildOptions(out=out, **(defaults | options)), source, teacher)


def write_shards(folder: Path, source: Source, sizes: Sequence[int]) -> None:
    """Write a source's images as WebDataset shards of so many samples, in another order, and its classes."""
    order = np.random.default_rng(0).permutation(len(source))
    for number, rows in enumerate(np.split(order, np.cumsum(sizes)[:-1])):
        with tarfile.open(folder / f"Train-{number}.tar", "w") as tar:
            for row in rows.tolist():
                image, label = source[row]
                png = io.BytesIO()
                Image.fromarray(image).save(png, "PNG")
                for kind, data in (("cls", str(label).encode()), ("png", png.getvalue())):
                    member = tarfile.TarInfo(f"{source.keys[row]}.{kind}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    (folder / "classes.txt").write_text("\n".join(source.classes))


def placed(starts: np.ndarray) -> ShardSource:
    """A source of rows in shards that start there, for orders alone: there are no files."""
    count = int(starts[-1])
    return ShardSource(
        name="placed",
        shards=[Path(f"{number}.tar") for number in range(len(starts) - 1)],
        shard_starts=starts,
        offsets=np.zeros(count, np.int64),
        sizes=np.zeros(count, np.int64),
        labels=np.zeros(count, np.int64),
        keys=[str(row) for row in range(count)],
        classes=["a", "b"],
    )


def forge(path: Path, change: Callable[[dict[str, Any]], object], name: str = MANIFEST_NAME) -> None:
    """Edit a manifest (or build.json) and give it a digest that is its own again, as a forger would."""
    stored = json.loads((path / name).read_bytes())
    change(stored)
    stored.pop("digest", None)
    stored["digest"] = "sha256:" + hashlib.sha256(canonical_json(stored)).hexdigest()
    (path / name).write_bytes(canonical_json(stored))


def forge_object(path: Path, name: str, data: bytes) -> None:
    """Replace an object, and the manifest's record of it."""
    (path / name).write_bytes(data)
    record = [len(data), hashlib.sha256(data).hexdigest()]
    forge(path, lambda stored: stored["objects"].update({name: record}))


def without_checks(path: Path) -> None:
    """Make a cache what version 0.1.0 would have written: without the checks of its images."""

    def strip(stored: dict[str, Any]) -> None:
        del stored["identity"]["views"]["source_checks"]
        names = [name for name in stored["objects"] if name.startswith("source_check/")]
        for name in names:
            del stored["objects"][name]

    shutil.rmtree(path / "source_check")
    forge(path, strip)


def layouts_of(path: Path) -> dict[str, ArrayLayout]:
    """The layouts of all arrays of a cache."""
    reader = open_cache(path)
    return row_layouts(reader.manifest.identity) | reader.layouts


def stored_array(path: Path, layout: ArrayLayout, view: int | None) -> np.ndarray:
    """A writable copy of an array's first shard, of one view."""
    names = layout.object_names(view)
    array = layout.decode({name: (path / name).read_bytes() for name in names}, view)
    return array[: layout.shard_rows].copy()


def put_files(bucket: str, folder: str, files: Mapping[str, bytes | None]) -> None:
    """Put files into a folder of a bucket on this machine, whatever their names; None removes one."""
    store = obstore.store.from_url(f"{bucket}/{folder}", client_options={"allow_http": True})
    for name, data in files.items():
        if data is None:
            obstore.delete(store, name)
        else:
            obstore.put(store, name, data)


def linear_student(num_classes: int) -> torch.nn.Module:
    """A network without batch statistics, for images of 8x8."""
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, num_classes))


class Counting(torch.nn.Module):
    """Counts the rows that a teacher is run on, and may fail after some."""

    def __init__(self, model: torch.nn.Module, fail_after: int | None = None) -> None:
        super().__init__()
        self.model, self.rows, self.fail_after = model, 0, fail_after
        self.batches: set[int] = set()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.rows += len(images)
        self.batches.add(len(images))
        if self.fail_after is not None and self.rows > self.fail_after:
            raise KeyboardInterrupt
        return self.model(images)


def counting(teacher: Network, fail_after: int | None = None) -> tuple[Network, Counting]:
    """A teacher that counts its rows, and may be interrupted after some."""
    model = Counting(teacher.model, fail_after)
    return replace(teacher, model=model), model


def fork(call: Callable[[], object], **environment: str) -> BaseProcess:
    """Start a call in a process of its own, a copy of this one, in which torch is imported already."""
    context = multiprocessing.get_context("fork")

    def run() -> None:
        os.environ.update(environment)
        torch.set_num_threads(1)  # threads of a pool are not copied
        pytest.MonkeyPatch().setattr(multiprocessing, "get_context", lambda _: context)  # nor is a fork server
        call()

    process = context.Process(target=run)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This process", DeprecationWarning)  # of forking beside threads
        process.start()
    return process
