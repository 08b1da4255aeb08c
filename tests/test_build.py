"""Same bytes: one digest for one thing, interrupted or not, with any number of workers; nothing computed twice."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from gdkd_cache_cli.main import main
from small import build_small, counting, take

from gdkd_cache import open_cache
from gdkd_cache.building.build import BuildOptions
from gdkd_cache.building.compute import Encoder, Said, Work
from gdkd_cache.building.repair import repair
from gdkd_cache.codec.dense import DenseCodec
from gdkd_cache.data.source import ArraySource
from gdkd_cache.errors import CacheError, MismatchError, ModelError, UsageError
from gdkd_cache.models.network import Network
from gdkd_cache.models.opening import open_network
from gdkd_cache.objects.folder import Folder


@pytest.fixture(scope="module")
def digest(tmp_path_factory: pytest.TempPathFactory, digits: ArraySource, teacher: Network) -> str:
    """Of the uninterrupted build in four shards a view."""
    out = tmp_path_factory.mktemp("whole") / "a.zarr"
    return build_small(out, digits, teacher, shard_rows=70).manifest.digest


def test_logits_are_the_teachers(tmp_path: Path, digits: ArraySource, teacher: Network) -> None:
    """Every row of every view, in batches cut at the same places, to the bit."""
    build_small(tmp_path / "a.zarr", digits, teacher, codec="dense:dtype=float32", recipe="none", shard_rows=100)
    for first in range(0, 256, 100):
        shard = np.arange(first, min(first + 100, 256))
        for rows in (shard[:64], shard[64:]):
            expected = teacher.logits(torch.from_numpy(digits.images[rows]))
            if len(rows):
                assert torch.equal(open_cache(tmp_path / "a.zarr").view(1).logits(rows), expected)


def test_workers_do_not_change_a_byte(tmp_path: Path, digits: ArraySource, teacher: Network, digest: str) -> None:
    result = build_small(tmp_path / "a.zarr", digits, teacher, shard_rows=70, num_workers=2)
    assert result.manifest.digest == digest
    assert open_cache(tmp_path / "a.zarr").manifest.digest == digest


def test_an_interrupted_build_resumes(
    tmp_path: Path, digits: ArraySource, teacher: Network, digest: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Interrupted again and again: the same bytes, and the teacher never sees a committed shard again."""
    out = tmp_path / "a.zarr"
    for fail_after in (256 + 100, 150, 200):  # the first run also calibrates on all 256 rows
        with pytest.raises(KeyboardInterrupt):
            build_small(out, digits, counting(teacher, fail_after)[0], shard_rows=70)
        with pytest.raises(CacheError, match="unfinished build"):
            open_cache(out)
    committed = len(list((out / "ledger").rglob("*.json")))
    assert committed >= 3
    counted, model = counting(teacher)
    caplog.set_level("INFO")
    result = build_small(out, digits, counted, shard_rows=70)
    assert f"resuming: {committed} of 8 shards are committed already" in caplog.text
    rows = sum(len(r) for _, _, r in _shards()[committed:])
    assert result.rows_computed == rows
    assert model.rows == rows + 2  # and once on two blank images, to see its number of classes
    assert result.manifest.digest == digest
    assert build_small(out, digits, counted, shard_rows=70).rows_computed == 0


def _shards() -> list[tuple[int, int, range]]:
    return [(view, first // 70, range(first, min(first + 70, 256))) for view in (0, 1) for first in range(0, 256, 70)]


def test_a_fitted_codec_is_the_same_bytes(tmp_path: Path, digits: ArraySource, teacher: Network) -> None:
    """Calibrated once, interrupted and resumed with other workers: the same digest, and no second calibration."""
    options: dict[str, Any] = {"shard_rows": 70, "codec": "transform"}
    whole = build_small(tmp_path / "a.zarr", digits, teacher, **options)
    with pytest.raises(KeyboardInterrupt):
        build_small(tmp_path / "b.zarr", digits, counting(teacher, 256 + 150)[0], **options)
    counted, model = counting(teacher)
    resumed = build_small(tmp_path / "b.zarr", digits, counted, num_workers=2, **options)
    assert resumed.manifest.digest == whole.manifest.digest
    assert model.rows == resumed.rows_computed + 2 < 512
    with pytest.raises(KeyboardInterrupt):  # killed between build.json and the tables: calibrated again
        build_small(tmp_path / "c.zarr", digits, counting(teacher, 256 + 10)[0], **options)
    shutil.rmtree(tmp_path / "c.zarr" / "tables")
    assert build_small(tmp_path / "c.zarr", digits, teacher, **options).manifest.digest == whole.manifest.digest


def _unfinished(out: Path, source: ArraySource, teacher: Network, **options: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        build_small(out, source, counting(teacher, 256 + 200)[0], **options)
    assert len(list((out / "ledger/0").iterdir())) >= 2


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _swap(a: Path, b: Path) -> None:
    first, second = a.read_bytes(), b.read_bytes()
    assert first != second
    a.write_bytes(second)
    b.write_bytes(first)


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory, digits: ArraySource, teacher: Network) -> Path:
    """For each codec a build that was interrupted, the whole, and one of another teacher; not to be changed."""
    folder = tmp_path_factory.mktemp("unfinished")
    description = replace(teacher.description, name="another")
    other = replace(teacher, mean=(0.1, 0.1, 0.1), description=description)
    for codec in ("dense", "transform"):
        options: dict[str, Any] = {"codec": codec, "shard_rows": 70}
        build_small(folder / f"{codec}.whole", digits, teacher, **options)
        _unfinished(folder / codec, digits, teacher, **options)
        _unfinished(folder / f"{codec}.other", digits, other, **options)
    return folder


@pytest.mark.parametrize("codec", ["dense", "transform"])
@pytest.mark.parametrize(
    "damage", ["flip", "cut", "delete", "swap", "swap with records", "record", "foreign", "tables", "no record"]
)
def test_what_was_damaged_before_a_resume_is_built_again(
    tmp_path: Path, digits: ArraySource, teacher: Network, unfinished: Path, codec: str, damage: str
) -> None:
    """Between a kill and the resume: bytes that are not those that were committed never reach the cache."""
    out = Path(shutil.copytree(unfinished / codec, tmp_path / "a.zarr"))
    column = "logits" if codec == "dense" else "packed"
    first, second = (out / f"{column}/c/0/{shard}/0" for shard in (0, 1))
    records = [out / f"ledger/0/{shard}.json" for shard in (0, 1)]
    if damage == "flip":
        _flip(first)
    elif damage == "cut":
        first.write_bytes(first.read_bytes()[:5])
    elif damage == "delete":
        first.unlink()
    elif damage == "no record":
        records[0].unlink()
    elif damage.startswith("swap"):
        _swap(first, second)
        if damage == "swap with records":
            _swap(*records)
    elif damage == "record":
        _flip(records[0])
    elif damage == "tables":
        if codec == "dense":
            pytest.skip("dense has no tables")
        _flip(out / "tables/c/0")
    else:  # shards and records of another build of the same shape
        other = unfinished / f"{codec}.other"
        for name in Folder(other).sizes():
            if name.startswith("ledger/") or "/c/0/0" in name:
                shutil.copy(other / name, out / name)
    result = build_small(out, digits, teacher, codec=codec, shard_rows=70)
    assert result.manifest == open_cache(unfinished / f"{codec}.whole").manifest
    assert not [problem for _, problem in open_cache(out).problems() if problem is not None]


def test_a_terminated_build_says_how_to_go_on(tmp_path: Path, weights: Path) -> None:
    """SIGTERM: one line, exit code 143, and the same command finishes the cache."""
    out = tmp_path / "a.zarr"
    command = [
        sys.executable,
        "-c",
        "from gdkd_cache_cli.main import main; main()",
        "build",
        "--data",
        "digits",
        "--accept-teacher",
    ]
    command += ["--teacher", "cnn-s", "--weights", str(weights), "--views", "8", "--codec", "dense", "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not list(out.glob("ledger/*/*.json")):
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[1]
    assert process.returncode == 143
    assert said.splitlines()[-1].startswith(
        "Error: terminated; a build, a training or a copy goes on when the same command is run again"
    )
    assert "Traceback" not in said
    done = len(list(out.glob("ledger/*/*.json")))
    assert 0 < done < 8
    again = CliRunner().invoke(main, command[3:])
    assert again.exit_code == 0, again.output
    assert open_cache(out).num_views == 8


@pytest.mark.parametrize(
    ("change", "said"),
    [({"seed": 1}, "views.seed is 0 there, 1 asked"), ({"num_views": 3}, "num_views is 2 there, 3 asked"),
     ({"batch_size": 32}, "build.batch_size is 64 there, 32 asked"), ({"recipe": "none"}, "views.recipe.name"),
     ({"codec": "dense"}, "request.spec is topk there, dense asked")],
)  # fmt: skip
@pytest.mark.parametrize("finished", [True, False])
def test_another_build_is_refused(
    tmp_path: Path, digits: ArraySource, teacher: Network, change: dict[str, Any], said: str, finished: bool
) -> None:
    out = tmp_path / "a.zarr"
    if finished:
        build_small(out, digits, teacher)
    else:
        with pytest.raises(KeyboardInterrupt):
            build_small(out, digits, counting(teacher, 256 + 100)[0])
    before = {name: (out / name).read_bytes() for name in Folder(out).sizes()}
    with pytest.raises(MismatchError, match=said):
        build_small(out, digits, teacher, **change)
    assert {name: (out / name).read_bytes() for name in Folder(out).sizes()} == before
    forced = build_small(out, digits, teacher, force=True, **change)
    fresh = build_small(tmp_path / "b.zarr", digits, teacher, **change)
    assert forced.manifest.digest == fresh.manifest.digest
    assert Folder(out).sizes() == Folder(tmp_path / "b.zarr").sizes()


@pytest.mark.parametrize("force", [False, True])
def test_a_foreign_folder_is_left_alone(tmp_path: Path, digits: ArraySource, teacher: Network, force: bool) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(CacheError, match="not empty and holds no cache"):
        build_small(tmp_path, digits, teacher, force=force)
    with pytest.raises(CacheError, match="a file is in the way"):
        build_small(tmp_path / "thesis.tex", digits, teacher, force=force)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_full_disk_loses_nothing(tmp_path: Path, digits: ArraySource, teacher: Network) -> None:
    """No file may grow beyond 2000 bytes: one line with the file's name, and later the same bytes."""
    options: dict[str, Any] = {"codec": "dense:dtype=float32", "shard_rows": 70}
    whole = build_small(tmp_path / "whole.zarr", digits, teacher, **options).manifest
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(OSError, match=r"File too large: .*logits/c/0/0/0"):
            build_small(tmp_path / "a.zarr", digits, teacher, **options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with pytest.raises(CacheError, match="unfinished"):
        open_cache(tmp_path / "a.zarr")
    assert not list(tmp_path.rglob("*.partial"))
    assert build_small(tmp_path / "a.zarr", digits, teacher, **options).manifest == whole


def test_what_fails_in_the_writing_thread_surfaces() -> None:
    """After a few shards at most, while there would be more; and at the end."""

    def commit(view: int, shard: int, columns: dict[str, np.ndarray]) -> None:
        raise OSError(28, f"shard {shard} of {len(columns['logits'])} rows")

    finished: list[int] = []

    def run(num_shards: int) -> None:
        said = Said(
            torch.zeros(5, 3), torch.zeros(5, dtype=torch.int64), np.zeros((5, 20), np.uint8), np.full((5, 2), 8)
        )
        with Encoder(DenseCodec(num_classes=3, num_top=1), commit) as encoder:
            for shard in range(num_shards):
                work = Work((0,), shard, range(10 * shard, 10 * shard + 10))
                encoder.add(0, work, said)
                encoder.add(0, work, said)
                encoder.finish(0, work)
                finished.append(shard)

    for num_shards in (1, 100):
        finished.clear()
        with pytest.raises(OSError, match="shard 0 of 10 rows"):
            run(num_shards)
        assert len(finished) < 5


def test_lost_permission_loses_nothing(digits: ArraySource, teacher: Network) -> None:
    """A folder that may no longer be written: an error with a name and a reason, and nothing changes."""
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "a.zarr"
        _unfinished(out, digits, teacher, shard_rows=70)
        before = {file: (out / file).read_bytes() for file in Folder(out).sizes()}
        folders = [Path(name), out, *(path for path in out.rglob("*") if path.is_dir())]
        for folder in folders:
            folder.chmod(0o555)
        user = os.geteuid()
        os.seteuid(65534 if user == 0 else user)  # the superuser may write anywhere
        try:
            with pytest.raises(PermissionError) as caught:
                build_small(out, digits, teacher, shard_rows=70)
        finally:
            os.seteuid(user)
            for folder in folders:
                folder.chmod(0o755)
        assert caught.value.filename
        assert caught.value.strerror == "Permission denied"
        assert {file: (out / file).read_bytes() for file in Folder(out).sizes()} == before
        build_small(out, digits, teacher, shard_rows=70)


@pytest.mark.parametrize("name", ["manifest.json", "build.json"])
def test_a_damaged_manifest_is_replaced_by_force_alone(
    tmp_path: Path, digits: ArraySource, teacher: Network, name: str
) -> None:
    out = tmp_path / "a.zarr"
    whole = build_small(out, digits, teacher, shard_rows=70).manifest
    if name == "build.json":
        shutil.rmtree(out)
        _unfinished(out, digits, teacher, shard_rows=70)
    _flip(out / name)
    with pytest.raises(CacheError, match=f"{name}.*or build it again with --force"):
        build_small(out, digits, teacher, shard_rows=70)
    assert build_small(out, digits, teacher, shard_rows=70, force=True).manifest == whole
    (out / "manifest.json").write_text('{"name": "my app"}')  # a web page's, say
    with pytest.raises(CacheError, match=r"manifest\.json was edited"):
        build_small(out, digits, teacher, force=True)
    assert (out / "labels/c/0").exists()


def test_nan_names_the_key(tmp_path: Path, digits: ArraySource, teacher: Network) -> None:
    class Broken(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits = torch.zeros(len(images), 10)
            logits[5 if len(images) > 5 else 0] = torch.nan
            return logits

    broken = replace(teacher, model=Broken())
    with pytest.raises(ModelError, match=f"NaN or infinity for {digits.keys[5]!r}"):
        build_small(tmp_path / "a.zarr", digits, broken)
    with pytest.raises(CacheError, match="is no cache"):
        open_cache(tmp_path / "a.zarr")


def test_a_teacher_of_other_classes_is_refused(
    tmp_path: Path, digits: ArraySource, teacher: Network, weights: Path
) -> None:
    two = take(digits, np.flatnonzero(digits.labels < 2))
    two = replace(two, classes=["0", "1"])
    with pytest.raises(ModelError, match=r"\[2, 10\] for 2 images, expected \[2, 2\]: the data has 2 classes"):
        build_small(tmp_path / "a.zarr", two, teacher)
    with pytest.raises(ModelError, match="know 10 classes; the data has 2"):
        open_network("cnn-s", weights, len(two.classes))
    with pytest.raises(ModelError, match="are of cnn-s, not of cnn-l"):
        open_network("cnn-l", weights, 10)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "fields", [{"num_views": 0}, {"num_views": -1}, {"num_views": 2**40}, {"batch_size": 0}, {"num_workers": -1}]
)
def test_options_are_validated(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(fields))):
        BuildOptions(**({"out": Path("x"), "num_views": 1} | fields))


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"accuracy": 10**60}, "identity.teacher.accuracy is 1000"),
        ({"accuracy": float("nan")}, "cannot be written: Out of range float values"),
        ({"mean": (0.3, float("inf"), 0.3)}, "cannot be written: Out of range float values"),
        ({"name": "\ud800"}, "cannot be written: 'utf-8' codec can't encode"),
    ],
)
def test_what_no_reader_would_accept_is_not_begun(
    tmp_path: Path, digits: ArraySource, teacher: Network, facts: dict[str, Any], said: str
) -> None:
    """A manifest that could be written, or not even that, and would be refused once all shards are computed."""
    wrong = replace(teacher, description=replace(teacher.description, **facts))
    with pytest.raises(CacheError) as caught:
        build_small(tmp_path / "c.zarr", digits, wrong)
    assert said in str(caught.value)
    assert [
        path.name for path in (tmp_path / "c.zarr").rglob("*") if path.is_file() and "claims" not in str(path)
    ] == []


def _larger(digits: ArraySource) -> ArraySource:
    """The digits at 32 pixels, where a CPU computes in another memory format."""
    return replace(digits, images=digits.images.repeat(4, axis=-2).repeat(4, axis=-1))


@pytest.mark.parametrize("finished", [True, False])
def test_the_memory_format_is_that_of_the_build(
    tmp_path: Path, digits: ArraySource, teacher: Network, finished: bool
) -> None:
    """What an earlier version built, or began, has none in its manifest: it stays, and goes on, as it was."""
    source, options = _larger(digits), {"codec": "dense:dtype=float32", "shard_rows": 70}
    assert build_small(tmp_path / "new.zarr", source, teacher, **options).manifest.identity.build.memory_format == (
        "channels_last"
    )
    earlier = replace(teacher, memory_format="contiguous")
    whole = build_small(tmp_path / "whole.zarr", source, earlier, **options).manifest
    assert whole.identity.build.memory_format is None
    assert whole.digest != open_cache(tmp_path / "new.zarr").manifest.digest
    out = tmp_path / "a.zarr"
    if finished:
        build_small(out, source, earlier, **options)
    else:
        _unfinished(out, source, earlier, **options)
    for force in (False, True):
        result = build_small(out, source, teacher, force=force, **options)
        assert result.manifest == whole
        assert (result.rows_computed > 0) == (not finished and not force)
    changed = build_small(out, source, teacher, force=True, seed=1, **options).manifest
    assert changed.identity.build.memory_format == "channels_last"


@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
def test_logits_are_of_the_stated_memory_format(
    tmp_path: Path, digits: ArraySource, teacher: Network, memory_format: str
) -> None:
    """Of a network whose last bits it moves: in the build, and where a shard is built again."""
    seen: set[bool] = set()

    class Watching(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.add(images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous())
            return teacher.model(images)

    source, out = _larger(digits), tmp_path / "a.zarr"
    watched = replace(teacher, model=Watching())
    build_small(out, source, replace(watched, memory_format=memory_format), codec="dense")
    assert seen == {memory_format == "channels_last"}
    whole = open_cache(out).manifest
    shutil.rmtree(out / "logits/c/1")
    seen.clear()
    assert repair(out, source=source, teacher=watched).manifest == whole
    assert open_cache(out).manifest == whole
    assert seen == {memory_format == "channels_last"}


@pytest.mark.parametrize(("shard_rows", "again"), [(256, 0), (128, 0), (70, 192)])
def test_what_calibration_saw_is_not_computed_again(
    tmp_path: Path, digits: ArraySource, teacher: Network, shard_rows: int, again: int
) -> None:
    """Of sources that it sees whole, the batches that are cut at the same places; a resumed build is the same bytes."""
    options: dict[str, Any] = {"shard_rows": shard_rows, "codec": "dense:dtype=float32"}
    counted, model = counting(teacher)
    whole = build_small(tmp_path / "a.zarr", digits, counted, **options).manifest
    assert model.rows == 2 + 512 + again
    assert model.batches <= {2, 64, 6, 46}
    with pytest.raises(KeyboardInterrupt):
        build_small(tmp_path / "b.zarr", digits, counting(teacher, 258)[0], **options)
    shutil.rmtree(tmp_path / "b.zarr/ledger", ignore_errors=True)
    counted, model = counting(teacher)
    assert build_small(tmp_path / "b.zarr", digits, counted, **options).manifest == whole
    assert model.rows == 2 + 512
    logits = open_cache(tmp_path / "a.zarr").view(1).logits(range(256))
    whole = build_small(tmp_path / "c.zarr", digits, teacher, first_view=1, **options).manifest
    assert torch.equal(open_cache(tmp_path / "c.zarr").view(1).logits(range(256)), logits)
    assert build_small(tmp_path / "d.zarr", digits, teacher, first_view=1, **options).manifest == whole


@pytest.mark.parametrize("first_view", [0, 2])
def test_few_images_are_calibrated_on_in_several_views(
    tmp_path: Path, few: ArraySource, teacher: Network, first_view: int
) -> None:
    """40 images of 10 classes in four views, each shown once where it is built; one of them examines the teacher."""
    counted, model = counting(teacher)
    options: dict[str, Any] = {"codec": "dense:dtype=float32", "num_views": 5, "first_view": first_view}
    manifest = build_small(tmp_path / "a.zarr", few, counted, **options).manifest
    assert model.rows == 2 + 40 * (5 + first_view)
    assert manifest.identity.examination is not None
    assert manifest.identity.examination.views.rows == 40
