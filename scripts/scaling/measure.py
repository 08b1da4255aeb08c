"""The constants of this machine, of the project's own code, in processor time: others that run beside hardly count."""

import resource
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from benches.pictures import photographs, small_images
from kill_builds import save_untrained

from gdkd_cache import open_cache, pack
from gdkd_cache.building.build import build
from gdkd_cache.building.options import BuildOptions
from gdkd_cache.data.recipes.presets import open_recipe
from gdkd_cache.data.source import FullSource
from gdkd_cache.data.views import VIEWS_AT_ONCE, ViewRenderer, requests_for
from gdkd_cache.models.opening import open_network
from gdkd_cache.objects.folder import Folder
from gdkd_cache.objects.record import ObjectRecord
from gdkd_cache.store.layout import decode_keys, encode_keys, encode_shard, view_layouts
from gdkd_cache.store.manifest import Manifest
from scaling.model import Constants

BATCH = 64
KINDS = {"small": ("crop-flip", 32), "photo64": ("imagenet:size=64", 64), "photo224": ("imagenet:size=224", 224)}
"""Recipe and side of the views of each kind of image."""
_SCRIPTS = Path(__file__).parents[1]


def images(kind: str, rows: int) -> FullSource:
    """So many of a kind, of 10 classes."""
    if kind == "small":
        return small_images(rows, 10)
    few = photographs(None, BATCH)  # which take long to make
    turns = rows // BATCH
    keys = [f"{turn}/{key}" for turn in range(turns) for key in few.keys]
    return replace(few, files=[*few.files] * turns, labels=np.tile(few.labels, turns), keys=keys)


def build_some(kind: str, rows: int, views: int, out: Path, shard_rows: int) -> None:
    """Build a cache in this process: top classes alone, by an untrained cnn-s."""
    recipe, side = KINDS[kind]
    source, weights = images(kind, rows), out.parent / f"{kind}.safetensors"
    if not weights.exists():
        save_untrained(weights, len(source.classes), (side, side))
    teacher = open_network("cnn-s", weights, len(source.classes), device="cpu")
    options = BuildOptions(
        out=out,
        num_views=views,
        recipe=recipe,
        codec="topk:k=4",
        batch_size=BATCH,
        num_workers=0,
        shard_rows=shard_rows,
        accept_teacher=True,
        images_in_memory=0,
    )
    build(options, source, teacher)


def in_processes(number: int, *arguments: object) -> tuple[float, float]:
    """Processor and wall seconds of so many processes that build one cache with one thread each."""
    command = [sys.executable, "-m", "scaling.measure", *map(str, arguments)]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    running = [subprocess.Popen(command, cwd=_SCRIPTS) for _ in range(number)]
    if any(process.wait() for process in running):
        raise SystemExit("a build failed")
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - start
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def _seconds(call: Callable[[], object]) -> float:
    """Processor time of a call, the median of five."""
    times = []
    for _ in range(5):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return float(np.median(times))


def _rendering(kind: str, num_views: int) -> float:
    source = images(kind, BATCH)
    renderer = ViewRenderer(source, open_recipe(KINDS[kind][0], 32, 32), 0, probe_rows=np.zeros(BATCH, bool))
    views = tuple(range(num_views))
    (request,) = requests_for(views, np.arange(BATCH), BATCH)
    return _seconds(lambda: renderer[request]) / BATCH / len(views)


def _teaching(kind: str, folder: Path) -> float:
    side = KINDS[kind][1]
    save_untrained(folder / "teacher.safetensors", 10, (side, side))
    teacher = open_network("cnn-s", folder / "teacher.safetensors", 10, device="cpu").tried(10, (side, side))
    pixels = torch.zeros(BATCH, 3, side, side, dtype=torch.uint8)
    return _seconds(lambda: teacher.logits(pixels)) / BATCH


def _storing(num_classes: int, folder: Path) -> tuple[float, float]:
    """Seconds to encode and to pack a view of made logits, by the codec that a build would take (of 10: `topk`)."""
    rng, rows = np.random.default_rng(0), 8192
    logits = rng.normal(size=(rows, 24)) @ rng.normal(size=(24, num_classes)) + rng.normal(size=(rows, num_classes))
    keys, labels, logits = [f"{row}" for row in range(rows)], logits.argmax(1), logits.astype(np.float32)
    codec = "topk:k=4" if num_classes == 10 else "auto"
    pack(folder / f"{num_classes}.zarr", [logits], keys=keys, labels=labels, codec=codec, fidelity=0.17)
    cache = open_cache(folder / f"{num_classes}.zarr")
    given = torch.from_numpy(logits), torch.from_numpy(labels)
    columns = {name: column.numpy() for name, column in cache.codec.encode(*given).items()}
    layouts = view_layouts(cache.manifest.identity, cache.codec)
    encode = _seconds(lambda: cache.codec.encode(*given)) / rows
    return encode, _seconds(lambda: encode_shard(layouts, 0, 0, columns)) / rows


def _requests(folder: Path) -> float:
    """What the place is asked for each shard more."""
    asked = []
    for shards in (4, 8):
        count = 0

        def counted(name: str) -> Callable[..., object]:
            method = getattr(Folder, name)

            def call(*given: object, **named: object) -> object:
                nonlocal count
                count += 1
                return method(*given, **named)

            return call

        names = ("size", "sizes", "read", "record", "stamp", "write", "create", "holds")
        with ExitStack() as patched:
            for name in names:
                patched.enter_context(patch.object(Folder, name, counted(name)))
            build_some("small", shards * BATCH, 1, folder / f"asked-{shards}.zarr", BATCH)
        asked.append(count)
    return (asked[1] - asked[0]) / 4


def _keys(rows: int = 300_000) -> tuple[float, float]:
    """Seconds and most bytes of a key that is read and looked up."""
    data = encode_keys([f"train/n{row % 1000:08d}/n{row % 1000:08d}_{row}.JPEG" for row in range(rows)])

    def look_up() -> None:
        keys = decode_keys(data, rows)
        {key: row for row, key in enumerate(keys)}

    seconds = _seconds(look_up)
    tracemalloc.start()
    look_up()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return seconds / rows, most / rows


def _loading(folder: Path) -> float:
    """Seconds of a row more of a view that is loaded."""
    seconds = []
    for rows in (2**14, 2**18):
        logits = np.random.default_rng(0).normal(size=(rows, 10)).astype(np.float16)
        keys, out = [f"{row}" for row in range(rows)], folder / f"loaded-{rows}.zarr"
        pack(out, [logits], keys=keys, labels=logits.argmax(1), codec="topk:k=6")
        cache = open_cache(out)
        cache.view(0)
        seconds.append(_seconds(lambda cache=cache: cache.view(0)))
    return (seconds[1] - seconds[0]) / (2**18 - 2**14)


def _calibrating(folder: Path, shown: float, stored: float) -> float:
    """Seconds of a row more that a codec is fitted to, which is shown and, with what it is built of, shown again."""
    seconds = []
    for rows in (BATCH, 4096):
        turns = [in_processes(1, "small", rows, 1, folder / f"fit-{rows}-{turn}.zarr", rows)[0] for turn in range(2)]
        seconds.append(min(turns))
    return (seconds[1] - seconds[0]) / (4096 - BATCH) - 2 * shown - stored


def _manifest(folder: Path, objects: int = 50_000) -> tuple[float, float]:
    """Seconds and bytes of an object more in a manifest."""
    identity = open_cache(folder / "1000.zarr").manifest.identity
    record = ObjectRecord.of(b"")
    data = Manifest(identity, {f"coefficients/c/{n}/0/0": record for n in range(objects)}).to_bytes()
    return _seconds(lambda: Manifest.from_bytes(data)) / objects, len(data) / objects


def measured() -> Constants:
    """All of them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        render = {kind: _rendering(kind, 1 if kind == "small" else VIEWS_AT_ONCE) for kind in KINDS}
        forward = {kind: _teaching(kind, folder) for kind in ("small", "photo64")}
        stored = {str(number): _storing(number, folder) for number in (10, 100, 1000)}
        (folder / "one").mkdir()
        one, writes = Folder(folder / "one"), iter(range(10**6))
        cost = render["small"] + forward["small"] + sum(stored["10"])
        alone = [in_processes(1, "small", BATCH, 1, folder / f"alone-{turn}.zarr", BATCH)[0] for turn in range(3)]
        both = [in_processes(2, "small", BATCH, 1, folder / f"both-{turn}.zarr", BATCH)[0] for turn in range(3)]
        key_seconds, key_bytes = _keys()
        object_seconds, object_bytes = _manifest(folder)
        piece = bytes(2**24)
        return Constants(
            render=render,
            alone={kind: _rendering(kind, 1) for kind in KINDS},
            calibrate=_calibrating(folder, render["small"] + forward["small"], sum(stored["10"])),
            forward=forward,
            encode={number: encode for number, (encode, _) in stored.items()},
            pack={number: packing for number, (_, packing) in stored.items()},
            write=_seconds(lambda: one.write(f"{next(writes)}", bytes(1000))),
            start=float(np.median(alone)) - BATCH * cost,
            follow=float(np.median(both) - np.median(alone)),
            requests=_requests(folder),
            key_seconds=key_seconds,
            key_bytes=key_bytes,
            row_seconds=_loading(folder),
            object_seconds=object_seconds,
            object_bytes=object_bytes,
            hash_rate=len(piece) / _seconds(lambda: ObjectRecord.of(piece)),
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    kind, rows, views, out, shard_rows = sys.argv[1:]
    build_some(kind, int(rows), int(views), Path(out), int(shard_rows))
