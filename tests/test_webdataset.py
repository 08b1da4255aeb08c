"""WebDataset: sidecars carry a whole cache, and streamed images give every view exactly once."""

import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from faulty import FaultyProxy
from gdkd_cache_cli.main import main
from hypothesis import given, settings
from hypothesis import strategies as st
from small import build_small, fork, placed, put_files
from torch import distributed
from webdataset.compat import WebDataset

from gdkd_cache import open_cache, open_source
from gdkd_cache.cache.cache import Cache
from gdkd_cache.checking.verify import verify
from gdkd_cache.data.order import BUFFER_ROWS, epoch_requests
from gdkd_cache.data.shards.source import ShardSource
from gdkd_cache.data.source import ArraySource
from gdkd_cache.errors import CacheError, MismatchError, SourceError, UsageError
from gdkd_cache.models.network import Network
from gdkd_cache.sharing.convert import from_sidecars, to_sidecars
from gdkd_cache.store.manifest import canonical_json
from gdkd_cache.store.sidecars.reader import SidecarReader


def _streamed(folder: Path) -> ShardSource:
    source = open_source(f"wds:{folder}/Train-*.tar", stream=True)
    assert isinstance(source, ShardSource)
    return source


@pytest.fixture(scope="module")
def sidecars(tmp_path_factory: pytest.TempPathFactory, digits_cache: Path, images: Path) -> Path:
    """The digits' cache as sidecars; not to be changed."""
    folder = tmp_path_factory.mktemp("sidecars")
    to_sidecars(digits_cache, folder, _streamed(images))
    return folder


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("codec", ["dense", "topk", "transform"])
def test_there_and_back(tmp_path: Path, images: Path, digits: ArraySource, teacher: Network, codec: str) -> None:
    """Beside the image shards, which stay as they are, and back to the same bytes, several shards a column."""
    manifest = build_small(tmp_path / "c.zarr", digits, teacher, codec=codec, shard_rows=100).manifest
    folder = tmp_path / "images"
    folder.mkdir()
    for name, data in _files(images).items():
        (folder / name).write_bytes(data)
    before = _files(folder)
    written = to_sidecars(tmp_path / "c.zarr", folder, _streamed(folder))
    after = _files(folder)
    assert {name: after[name] for name in before} == before
    assert sorted(after.keys() - before.keys() - {"sidecars.tables.npy"}) == [
        *(f"Train-{number}.logits.tar" for number in range(5)),
        "sidecars.json",
    ]
    for name, sidecar in written.sidecars.items():
        assert hashlib.sha256(after[name]).hexdigest() == sidecar.file.sha256
    # The pattern now matches the sidecars too; they are no images. The same again changes nothing.
    assert to_sidecars(tmp_path / "c.zarr", folder, _streamed(folder)) == written
    assert _files(folder) == after
    assert from_sidecars(folder, tmp_path / "back.zarr").manifest == manifest
    assert _files(tmp_path / "back.zarr") == _files(tmp_path / "c.zarr")
    ours, theirs = open_cache(folder), open_cache(tmp_path / "c.zarr")
    assert ours.keys == theirs.keys
    assert np.array_equal(ours.labels, theirs.labels)
    for mine, other in zip(ours.view(1).decode(range(256)), theirs.view(1).decode(range(256)), strict=True):
        assert all(map(torch.equal, mine, other))
    assert not verify(folder, source=_streamed(folder)).problems


# webdataset itself leaves the shards that it reads open.
@pytest.mark.filterwarnings("ignore:unclosed file", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_plain_webdataset_reads_sidecars(sidecars: Path, images: Path, digits_cache: Path) -> None:
    cache, source = open_cache(digits_cache), _streamed(images)
    positions = {key: row for row, key in enumerate(cache.keys)}
    for number in range(5):
        records = list(WebDataset(str(sidecars / f"Train-{number}.logits.tar"), shardshuffle=False))
        assert [record["__key__"] for record in records] == ["shared", "00000", "00001"]
        arrays: list[dict[str, np.ndarray]] = [
            {
                name.removesuffix(".npy"): np.load(io.BytesIO(data), allow_pickle=False)
                for name, data in record.items()
                if name.endswith(".npy")
            }
            for record in records
        ]
        first, end = source.shard_starts[number : number + 2]
        keys = source.keys[first:end]
        rows = np.array([positions[key] for key in keys])
        assert arrays[0]["keys"].tobytes().decode().splitlines() == keys
        assert np.array_equal(arrays[0]["rows"], rows)
        assert np.array_equal(arrays[0]["labels"], source.labels[first:end])
        for view in (0, 1):
            columns = cache.columns(cache.layouts, view)
            assert arrays[view + 1].keys() == columns.keys()
            for name, column in columns.items():
                assert arrays[view + 1][name].dtype == column.dtype
                assert np.array_equal(arrays[view + 1][name], column[rows])


def _seen(cache: Cache, source: Any, epoch: int, **options: Any) -> dict[str, tuple[bytes, bytes, int]]:
    """Pixels, logits and label of each key of an epoch, in the order that they came."""
    seen = {}
    for pixels, labels, teacher in cache.dataset(source).loader(
        epoch, batch_size=37, shuffle=True, normalize=None, **options
    ):
        for row, image, logits, label in zip(teacher.rows.tolist(), pixels, teacher.logits, labels, strict=True):
            assert cache.keys[row] not in seen
            seen[cache.keys[row]] = (image.numpy().tobytes(), logits.numpy().tobytes(), int(label))
    return seen


def test_streaming_gives_the_same_views(digits: ArraySource, digits_cache: Path, sidecars: Path, images: Path) -> None:
    expected = [_seen(open_cache(digits_cache), digits, epoch) for epoch in range(2)]
    assert len(expected[0]) == 256
    orders = []
    for path, workers in ((digits_cache, 2), (sidecars, 0)):
        cache = open_cache(path)
        assert isinstance(cache, SidecarReader) == (path == sidecars)
        found = [_seen(cache, _streamed(images), epoch, num_workers=workers) for epoch in range(2)]
        assert found == expected
        orders.append([list(seen) for seen in found])
    assert orders[0] == orders[1]
    assert orders[0][0] != orders[0][1] != list(expected[1])


def test_sidecars_in_an_object_store(
    tmp_path: Path, sidecars: Path, images: Path, digits_cache: Path, proxy: FaultyProxy, bucket: str
) -> None:
    """Beside the image shards in a bucket: the same views, each record read once with a local copy, damage refused."""
    for folder in (images, sidecars):
        put_files(bucket, "data", _files(folder))
    url = f"{bucket}/data"
    source = open_source(f"wds:{bucket}/data/Train-{{0..4}}.tar", stream=True)
    expected = _seen(open_cache(digits_cache), _streamed(images), 0)
    kept = tmp_path / "kept"
    for local_copy in (None, kept, kept):
        proxy.requests.clear()
        cache = open_cache(url, digest=open_cache(sidecars).digest, local_copy=local_copy)
        assert _seen(cache, source, 0) == expected
    assert not proxy.sent(r"GET .*\.logits\.tar")
    assert verify(url).problems == ()
    assert from_sidecars(url, tmp_path / "back.zarr").manifest == open_cache(digits_cache).manifest
    name = "Train-1.logits.tar"
    damaged = bytearray(_files(sidecars)[name])
    damaged[len(damaged) // 2] ^= 1
    for data, said in ((damaged, "record"), (damaged[:-512], "instead of"), (None, "is missing")):
        put_files(bucket, "data", {name: None if data is None else bytes(data)})
        with pytest.raises(CacheError, match=rf"{name}.*{said}"):
            _read_all(url)


def test_a_build_from_streamed_images_is_the_same(tmp_path: Path, images: Path, teacher: Network) -> None:
    sources = [_streamed(images), open_source(f"wds:{images}/Train-*.tar")]
    manifests = [build_small(tmp_path / str(number), source, teacher).manifest for number, source in enumerate(sources)]
    assert manifests[0] == manifests[1]


def _checksum(tensor: torch.Tensor) -> int:
    return zlib.crc32(tensor.numpy().tobytes())


def test_two_ranks_of_two_workers(
    tmp_path: Path, digits: ArraySource, digits_cache: Path, sidecars: Path, images: Path
) -> None:
    """Real processes, three epochs: every key exactly once an epoch, with the pixels and logits of the Zarr path."""

    def run(rank: int) -> None:
        distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/init", rank=rank, world_size=2)
        cache = open_cache(sidecars)
        data = cache.dataset(_streamed(images))
        told: list[list[list[Any]]] = []
        for epoch in range(3):
            told.append([])
            for pixels, _, said in data.loader(epoch, batch_size=16, shuffle=True, num_workers=2, normalize=None):
                rows = zip(said.rows.tolist(), pixels, said.logits, strict=True)
                told[-1].append([[cache.keys[row], *map(_checksum, of_row)] for row, *of_row in rows])
        distributed.destroy_process_group()
        (tmp_path / str(rank)).write_text(json.dumps(told))

    ranks = [fork(partial(run, rank)) for rank in range(2)]
    for rank in ranks:
        rank.join(120)
    assert [rank.exitcode for rank in ranks] == [0, 0]
    told = [json.loads((tmp_path / str(rank)).read_text()) for rank in range(2)]
    orders = []
    for epoch in range(3):
        batches = [own[epoch] for own in told]
        assert len(batches[0]) == len(batches[1])
        samples = [sample for own in batches for batch in own for sample in batch]
        orders.append([key for key, _, _ in samples])
        assert sorted(orders[-1]) == sorted(digits.keys)
        expected = _seen(open_cache(digits_cache), digits, epoch)
        for key, pixels, logits in samples:
            assert (pixels, logits) == tuple(map(zlib.crc32, expected[key][:2]))
    assert orders[0] != orders[1] != orders[2] != orders[0]


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=9),
    world_size=st.integers(1, 5),
    batch_size=st.integers(2, 9),
    epoch=st.integers(0, 3),
    data=st.data(),
)
def test_every_row_once_in_any_split(
    sizes: list[int], world_size: int, batch_size: int, epoch: int, data: st.DataObject
) -> None:
    starts = np.cumsum([0, *sizes])
    if starts[-1] < world_size:
        return
    source = placed(starts)
    asked: dict[str, Any] = {"epoch": epoch, "seed": 3, "batch_size": batch_size}
    parts = [epoch_requests(source, 0, part=(rank, world_size), **asked) for rank in range(world_size)]
    assert sorted(row for part in parts for request in part for row in request.rows.tolist()) == list(range(starts[-1]))
    assert len({len(part) for part in parts}) == 1
    assert all(1 <= len(request.rows) <= batch_size for part in parts for request in part)
    first = data.draw(st.integers(0, len(parts[0])))
    rest = epoch_requests(source, 0, part=(0, world_size), first_batch=first, **asked)
    assert [request.rows.tolist() for request in rest] == [request.rows.tolist() for request in parts[0][first:]]


def test_shuffling_stays_near_a_few_shards() -> None:
    """At any time the rows in use come from a few shards; over epochs and seeds shards and rows are in other orders."""
    source = placed(np.arange(0, 200_001, 1000))
    requests = epoch_requests(source, 0, epoch=0, batch_size=1000)
    assert max(len({row // 1000 for row in request.rows.tolist()}) for request in requests) <= BUFFER_ROWS // 1000 + 3
    assert min(len({row // 1000 for row in request.rows.tolist()}) for request in requests[10:-10]) >= 5
    orders = {
        tuple(
            np.concatenate(
                [request.rows for request in epoch_requests(source, 0, epoch=epoch, seed=seed, batch_size=1000)]
            )
        )
        for epoch in range(2)
        for seed in range(2)
    }
    assert len(orders) == 4
    assert len({order[0] // 1000 for order in orders}) > 1
    one_shard = [epoch_requests(placed(np.array([0, 99])), 0, epoch=epoch, batch_size=99)[0].rows for epoch in range(2)]
    assert not np.array_equal(one_shard[0], one_shard[1])


def test_wrong_parts_are_refused() -> None:
    source = placed(np.array([0, 3]))
    asked: dict[str, Any] = {"epoch": 0, "batch_size": 2}
    wrongs: list[dict[str, Any]] = [{"part": part} for part in ((2, 2), (0, 4), (-1, 2))]
    for wrong in [*wrongs, {"first_batch": -1}, {"batch_size": 0}]:
        with pytest.raises(UsageError, match=r"part is|first_batch"):
            epoch_requests(source, 0, **(asked | wrong))


def test_an_interrupted_epoch_goes_on(digits_cache: Path, images: Path) -> None:
    cache = open_cache(digits_cache)
    whole = list(_seen(cache, _streamed(images), 1).items())
    assert list(_seen(cache, _streamed(images), 1, first_batch=3).items()) == whole[3 * 37 :]


def _forge(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Edit sidecars.json, make its checksums those of the files, and its digest its own again."""
    stored = json.loads((folder / "sidecars.json").read_bytes())
    change(stored)
    del stored["digest"]
    digest = hashlib.sha256(canonical_json(stored)).hexdigest()
    (folder / "sidecars.json").write_bytes(canonical_json(stored | {"digest": f"sha256:{digest}"}))


def _copy(folder: Path, to: Path) -> Path:
    to.mkdir()
    for name, data in _files(folder).items():
        (to / name).write_bytes(data)
    return to


def _read_all(folder: str | Path) -> None:
    cache = open_cache(folder)
    _ = cache.keys
    for view in range(cache.num_views):
        cache.view(view)


def test_every_damage_is_found(tmp_path: Path, sidecars: Path) -> None:
    folder = _copy(sidecars, tmp_path / "copy")
    rng = np.random.default_rng(0)
    path = folder / "Train-2.logits.tar"
    whole = path.read_bytes()
    end = len(whole) - 1024  # what ends a tar file carries nothing
    for position in [*range(0, 512, 64), *rng.integers(0, end, 40).tolist()]:
        flipped = bytearray(whole)
        flipped[position] ^= 1 << rng.integers(8)
        path.write_bytes(flipped)
        with pytest.raises(CacheError, match=r"Train-2.*(checksum|not the array)"):
            _read_all(folder)
    for damage in (whole[:-1], b"", whole + b"\0", None, (folder / "Train-1.logits.tar").read_bytes()):
        path.unlink(missing_ok=True)
        if damage is not None:
            path.write_bytes(damage)
        with pytest.raises(CacheError, match="Train-2"):
            _read_all(folder)
    path.unlink(missing_ok=True)
    path.symlink_to(sidecars / "Train-2.logits.tar")
    with pytest.raises(CacheError, match=r"Train-2.*a link"):
        _read_all(folder)


def _first_data(folder: Path, header: Callable[[bytes], bytes]) -> None:
    """Rewrite the first 640 bytes of one view's record, its first member's headers, with checksums that agree."""
    path = folder / "Train-2.logits.tar"
    with tarfile.open(path) as tar:
        start = next(member.offset for member in tar if member.name.startswith("00000."))
        end = next(member.offset for member in tar if member.name.startswith("00001."))
    data = bytearray(path.read_bytes())
    data[start : start + 640] = header(bytes(data[start : start + 640]))
    path.write_bytes(data)

    def change(stored: dict[str, Any]) -> None:
        stored["sidecars"][path.name]["records"][1] = hashlib.sha256(data[start:end]).hexdigest()

    _forge(folder, change)


def _npy(text: str) -> Callable[[bytes], bytes]:
    return lambda header: header[:522] + text.ljust(117).encode() + b"\n"


@pytest.mark.parametrize(
    "header",
    [
        _npy("{'descr': '<f2', 'fortran_order': False, 'shape': (1000000000000, 10), }"),
        _npy("{'descr': '|O', 'fortran_order': False, 'shape': (60, 10), }"),
        lambda header: header[:124] + b"77777777777\0" + header[136:],
        lambda header: b"../../escape".ljust(100, b"\0") + header[100:],
    ],
    ids=["rows", "objects", "size", "name"],
)
def test_forged_headers_are_refused(tmp_path: Path, sidecars: Path, header: Callable[[bytes], bytes]) -> None:
    folder = _copy(sidecars, tmp_path / "copy")
    _first_data(folder, header)
    with pytest.raises(CacheError, match="is not the array that the manifest says"):
        _read_all(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda stored: stored["sidecars"]["Train-2.logits.tar"].update(rows=10**12),
            "the sidecars have 1000000000196",
        ),
        (lambda stored: stored["sidecars"]["Train-2.logits.tar"].update(keys_bytes=10**12), "bytes of keys"),
        (
            lambda stored: stored["sidecars"]["Train-2.logits.tar"].update(file=[0, "0" * 64]),
            "rows, bytes of keys and size",
        ),
        (lambda stored: stored["sidecars"]["Train-2.logits.tar"].update(file=[9, "0" * 64]), "instead of 9"),
        (lambda stored: stored["sidecars"]["Train-2.logits.tar"]["records"].pop(), "one record for each of 2 views"),
        (
            lambda stored: stored["sidecars"].update({"../x.logits.tar": stored["sidecars"].pop("Train-2.logits.tar")}),
            "is not the name of a sidecar",
        ),
        (lambda stored: stored["sidecars"].pop("Train-2.logits.tar"), "the sidecars have 196 rows, the cache 256"),
        (
            lambda stored: stored["sidecars"]["Train-0.logits.tar"].update(rows=10**40),
            "bytes of keys and size of Train-0",
        ),
        (lambda stored: stored.update(format="gdkd-cache-sidecars/9"), "this version reads"),
        (lambda stored: stored["manifest"]["identity"].update(num_rows=10**12), "its digest is not its own"),
        (lambda stored: stored.update(sidecars=[]), "sidecars is \\[\\]; expected"),
    ],
)
def test_forged_listings_are_refused(
    tmp_path: Path, sidecars: Path, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    folder = _copy(sidecars, tmp_path / "copy")
    _forge(folder, change)
    with pytest.raises(CacheError, match=said):
        _read_all(folder)


def test_repeated_rows_are_refused(tmp_path: Path, sidecars: Path) -> None:
    folder = _copy(sidecars, tmp_path / "copy")
    path = folder / "Train-1.logits.tar"  # one row
    data = bytearray(path.read_bytes())
    data[640:648] = (5 if data[640] != 5 else 6).to_bytes(8, "little")
    path.write_bytes(data)
    with tarfile.open(path) as tar:
        end = next(member.offset for member in tar if member.name.startswith("00000."))

    def change(stored: dict[str, Any]) -> None:
        stored["sidecars"][path.name]["records"][0] = hashlib.sha256(data[:end]).hexdigest()

    _forge(folder, change)
    with pytest.raises(CacheError, match="rows are not the cache's"):
        _read_all(folder)


def test_foreign_columns_do_not_become_the_cache(tmp_path: Path, sidecars: Path) -> None:
    """Forged columns with checksums that agree have another digest, and never convert."""
    folder = _copy(sidecars, tmp_path / "copy")
    pinned = open_cache(folder).digest
    path = folder / "Train-2.logits.tar"
    with tarfile.open(path) as tar:
        start, end = (next(m.offset for m in tar if m.name.startswith(view)) for view in ("00000.", "00001."))
    data = bytearray(path.read_bytes())
    data[start + 640] ^= 1
    path.write_bytes(data)

    def change(stored: dict[str, Any]) -> None:
        stored["sidecars"][path.name]["records"][1] = hashlib.sha256(data[start:end]).hexdigest()

    _forge(folder, change)
    assert open_cache(folder).digest != pinned
    with pytest.raises(MismatchError, match="not the sha256:"):
        open_cache(folder, digest=pinned)
    with pytest.raises(CacheError, match="is not what the manifest lists"):
        from_sidecars(folder, tmp_path / "back.zarr")
    with pytest.raises(CacheError, match="unfinished"):
        open_cache(tmp_path / "back.zarr")
    assert verify(folder).problems


def test_wrong_conversions(tmp_path: Path, digits_cache: Path, sidecars: Path, images: Path) -> None:
    part = open_source(f"wds:{images}/Train-{{0,1}}.tar", stream=True)
    assert isinstance(part, ShardSource)
    with pytest.raises(MismatchError, match="185 of 256 are in none"):
        to_sidecars(digits_cache, tmp_path / "out", part)
    with pytest.raises(CacheError, match="holds a Zarr cache"):
        to_sidecars(sidecars, digits_cache, _streamed(images))
    with pytest.raises(UsageError, match="is a Zarr cache already"):
        from_sidecars(digits_cache, tmp_path / "out")
    with pytest.raises(UsageError, match="written to a folder"):
        to_sidecars(digits_cache, "s3://bucket/out", _streamed(images))
    precious = tmp_path / "Train-3.logits.tar"
    precious.write_bytes(b"precious")
    with pytest.raises(MismatchError, match="is another file"):
        to_sidecars(digits_cache, tmp_path, _streamed(images))
    assert precious.read_bytes() == b"precious"
    assert not list(tmp_path.glob("*.partial"))
    with pytest.raises(CacheError, match="is no cache"):  # the listing comes last
        open_cache(tmp_path)
    precious.unlink()
    to_sidecars(digits_cache, tmp_path, _streamed(images))
    assert _files(tmp_path) == _files(sidecars)


def test_unreadable_shards(tmp_path: Path, images: Path) -> None:
    compressed = tmp_path / "a.tar"
    with tarfile.open(compressed, "w:gz") as tar:
        tar.add(images / "classes.txt")
    with pytest.raises(SourceError, match="is compressed; only plain tar files can be streamed"):
        open_source(f"wds:{compressed}", stream=True)
    (tmp_path / "b.tar").write_bytes((images / "Train-0.tar").read_bytes())
    source = open_source(f"wds:{tmp_path}/b.tar", stream=True)
    (tmp_path / "b.tar").unlink()
    with pytest.raises(SourceError, match=r"b\.tar cannot be read: No such file"):
        source[0]


def test_the_command_line(tmp_path: Path, digits_cache: Path, images: Path, weights: Path) -> None:
    def run(*arguments: str | Path) -> str:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output
        return result.output

    spec = f"wds:{images}/Train-*.tar"
    said = run("convert", digits_cache, tmp_path / "sidecars", "--data", spec)
    assert "5 sidecars" in said
    pin = said.split("--digest ")[1].strip()
    student = tmp_path / "student"
    line = f"train --loss gdkd:k=2 --data {spec} --stream --eval-data {spec} --student cnn-s --epochs 1 --workers 0"
    run(*line.split(), "--cache", tmp_path / "sidecars", "--digest", pin, "--out", student)
    assert json.loads((student / "metrics.jsonl").read_text())["epoch"] == 1
    run("verify", tmp_path / "sidecars", "--data", spec)
    assert open_cache(digits_cache).manifest.digest in run("convert", tmp_path / "sidecars", tmp_path / "back.zarr")
    teacher = f"--teacher cnn-s --weights {weights} --views 2 --device cpu --workers 0".split()
    said = run(
        "build",
        "--accept-teacher",
        "--data",
        spec,
        *teacher,
        "--out",
        tmp_path / "c.zarr",
        "--sidecars",
        tmp_path / "more",
    )
    assert open_cache(tmp_path / "c.zarr").manifest == open_cache(tmp_path / "more").manifest
    assert open_cache(tmp_path / "more").digest in said
    wrong = CliRunner().invoke(main, ["build", "--data", spec, *teacher, "--out", "x", "--sidecars", "s3://bucket/x"])
    assert (wrong.exit_code, "written to a folder" in wrong.output) == (2, True)
    wrong = CliRunner().invoke(
        main,
        ["train", "--loss", "ce", "--data", "digits", "--stream", "--student", "cnn-s", "--epochs", "1", "--out", "x"],
    )
    assert (wrong.exit_code, wrong.output) == (2, "Error: digits takes no --stream; leave it out\n")
