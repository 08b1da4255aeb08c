"""Same bytes: one digest for one thing, interrupted or not, with any number of workers; nothing computed twice."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import build_small, take

from gdkd_cache import open_cache
from gdkd_cache.data import ArraySource
from gdkd_cache.errors import CacheError, MismatchError, ModelError, UsageError
from gdkd_cache.pipeline.build import BuildOptions
from gdkd_cache.pipeline.teacher import Teacher, open_teacher
from gdkd_cache.store.folder import Folder


class _Counting(torch.nn.Module):
    """Counts the rows that a teacher is run on, and may fail after some."""

    def __init__(self, model: torch.nn.Module, fail_after: int | None = None) -> None:
        super().__init__()
        self.model, self.rows, self.fail_after = model, 0, fail_after

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.rows += len(images)
        if self.fail_after is not None and self.rows > self.fail_after:
            raise KeyboardInterrupt
        return self.model(images)


def _counting(teacher: Teacher, fail_after: int | None = None) -> tuple[Teacher, _Counting]:
    model = _Counting(teacher.model, fail_after)
    return replace(teacher, model=model), model


@pytest.fixture(scope="module")
def digest(tmp_path_factory: pytest.TempPathFactory, digits: ArraySource, teacher: Teacher) -> str:
    """Of the uninterrupted build in four shards a view."""
    out = tmp_path_factory.mktemp("whole") / "a.zarr"
    return build_small(out, digits, teacher, shard_rows=70).manifest.digest


def test_logits_are_the_teachers(tmp_path: Path, digits: ArraySource, teacher: Teacher) -> None:
    """Every row of every view, in batches cut at the same places, to the bit."""
    build_small(tmp_path / "a.zarr", digits, teacher, codec="dense:dtype=float32", recipe="none", shard_rows=100)
    for first in range(0, 256, 100):
        shard = np.arange(first, min(first + 100, 256))
        for rows in (shard[:64], shard[64:]):
            expected = teacher.logits(torch.from_numpy(digits.images[rows]))
            if len(rows):
                assert torch.equal(open_cache(tmp_path / "a.zarr").view(1).logits(rows), expected)


def test_workers_do_not_change_a_byte(tmp_path: Path, digits: ArraySource, teacher: Teacher, digest: str) -> None:
    result = build_small(tmp_path / "a.zarr", digits, teacher, shard_rows=70, num_workers=2)
    assert result.manifest.digest == digest
    assert open_cache(tmp_path / "a.zarr").manifest.digest == digest


def test_an_interrupted_build_resumes(tmp_path: Path, digits: ArraySource, teacher: Teacher, digest: str) -> None:
    """Interrupted again and again: the same bytes, and the teacher never sees a committed shard again."""
    out = tmp_path / "a.zarr"
    for fail_after in (256 + 100, 150, 200):  # the first run also calibrates on all 256 rows
        with pytest.raises(KeyboardInterrupt):
            build_small(out, digits, _counting(teacher, fail_after)[0], shard_rows=70)
        with pytest.raises(CacheError, match="unfinished build"):
            open_cache(out)
    committed = len(list((out / "ledger").rglob("*.json")))
    assert committed >= 3
    counting, model = _counting(teacher)
    result = build_small(out, digits, counting, shard_rows=70)
    rows = sum(len(r) for _, _, r in _shards()[committed:])
    assert result.rows_computed == rows
    assert model.rows == rows + 2  # and once on two blank images, to see its number of classes
    assert result.manifest.digest == digest
    assert build_small(out, digits, counting, shard_rows=70).rows_computed == 0


def _shards() -> list[tuple[int, int, range]]:
    return [(view, first // 70, range(first, min(first + 70, 256))) for view in (0, 1) for first in range(0, 256, 70)]


def test_a_fitted_codec_is_the_same_bytes(tmp_path: Path, digits: ArraySource, teacher: Teacher) -> None:
    """Calibrated once, interrupted and resumed with other workers: the same digest, and no second calibration."""
    options: dict[str, Any] = {"shard_rows": 70, "codec": "transform"}
    whole = build_small(tmp_path / "a.zarr", digits, teacher, **options)
    with pytest.raises(KeyboardInterrupt):
        build_small(tmp_path / "b.zarr", digits, _counting(teacher, 256 + 150)[0], **options)
    counting, model = _counting(teacher)
    resumed = build_small(tmp_path / "b.zarr", digits, counting, num_workers=2, **options)
    assert resumed.manifest.digest == whole.manifest.digest
    assert model.rows == resumed.rows_computed + 2 < 512
    with pytest.raises(KeyboardInterrupt):  # killed between build.json and the tables: calibrated again
        build_small(tmp_path / "c.zarr", digits, _counting(teacher, 256 + 10)[0], **options)
    shutil.rmtree(tmp_path / "c.zarr" / "tables")
    assert build_small(tmp_path / "c.zarr", digits, teacher, **options).manifest.digest == whole.manifest.digest


_SCRIPT = """
import sys
from pathlib import Path
import numpy as np
sys.path.insert(0, {tests!r})
from small import build_small, take
from gdkd_cache import open_source
from gdkd_cache.pipeline.teacher import open_teacher
digits = take(open_source("digits"), np.arange(256))
teacher = open_teacher("cnn-s", Path({weights!r}), digits, device="cpu")
print("ready", flush=True)
build_small(Path({out!r}), digits, teacher, shard_rows=70)
"""


def test_a_killed_build_resumes(
    tmp_path: Path, weights: Path, digits: ArraySource, teacher: Teacher, digest: str
) -> None:
    """kill -9 at several instants of one build, then the same build again: the same digest."""
    out = tmp_path / "a.zarr"
    script = _SCRIPT.format(tests=str(Path(__file__).parent), weights=str(weights), out=str(out))
    killed = 0
    for delay in (0.02, 0.06):
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        assert process.stdout is not None
        with process:
            assert process.stdout.readline() == b"ready\n"
            time.sleep(delay)
            os.kill(process.pid, signal.SIGKILL)
        killed += process.returncode == -signal.SIGKILL
    assert killed
    assert build_small(out, digits, teacher, shard_rows=70).manifest.digest == digest
    assert not list(out.rglob("*.partial"))
    assert not (out / "ledger").exists()


def test_a_damaged_shard_is_built_again(tmp_path: Path, digits: ArraySource, teacher: Teacher, digest: str) -> None:
    """A committed object that lost bytes before the build finished is computed again on resume."""
    out = tmp_path / "a.zarr"
    with pytest.raises(KeyboardInterrupt):
        build_small(out, digits, _counting(teacher, 256 + 200)[0], shard_rows=70)
    victim = next(path for path in sorted((out / "classes" / "c").rglob("0")) if path.is_file())
    victim.write_bytes(victim.read_bytes()[:5])
    assert build_small(out, digits, teacher, shard_rows=70).manifest.digest == digest


@pytest.mark.parametrize(
    ("change", "said"),
    [({"seed": 1}, "views.seed is 0 there, 1 asked"), ({"num_views": 3}, "num_views is 2 there, 3 asked"),
     ({"batch_size": 32}, "build.batch_size is 64 there, 32 asked"), ({"recipe": "none"}, "views.recipe.name"),
     ({"codec": "dense"}, "request.spec is topk there, dense asked")],
)  # fmt: skip
@pytest.mark.parametrize("finished", [True, False])
def test_another_build_is_refused(
    tmp_path: Path, digits: ArraySource, teacher: Teacher, change: dict[str, Any], said: str, finished: bool
) -> None:
    out = tmp_path / "a.zarr"
    if finished:
        build_small(out, digits, teacher)
    else:
        with pytest.raises(KeyboardInterrupt):
            build_small(out, digits, _counting(teacher, 256 + 100)[0])
    before = {name: (out / name).read_bytes() for name in Folder(out).sizes()}
    with pytest.raises(MismatchError, match=said):
        build_small(out, digits, teacher, **change)
    assert {name: (out / name).read_bytes() for name in Folder(out).sizes()} == before
    forced = build_small(out, digits, teacher, force=True, **change)
    fresh = build_small(tmp_path / "b.zarr", digits, teacher, **change)
    assert forced.manifest.digest == fresh.manifest.digest
    assert Folder(out).sizes() == Folder(tmp_path / "b.zarr").sizes()


@pytest.mark.parametrize("force", [False, True])
def test_a_foreign_folder_is_left_alone(tmp_path: Path, digits: ArraySource, teacher: Teacher, force: bool) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(CacheError, match="not empty and holds no cache"):
        build_small(tmp_path, digits, teacher, force=force)
    with pytest.raises(CacheError, match="a file is in the way"):
        build_small(tmp_path / "thesis.tex", digits, teacher, force=force)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_full_disk_loses_nothing(
    tmp_path: Path, digits: ArraySource, teacher: Teacher, digest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, left = Folder.write, [9]

    def full(folder: Folder, name: str, data: bytes) -> None:
        if not left[0]:
            raise OSError(28, "No space left on device", name)
        left[0] -= 1
        write(folder, name, data)

    out = tmp_path / "a.zarr"
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "write", full)
        with pytest.raises(OSError, match="No space left"):
            build_small(out, digits, teacher, shard_rows=70)
    with pytest.raises(CacheError, match="unfinished"):
        open_cache(out)
    result = build_small(out, digits, teacher, shard_rows=70)
    assert result.manifest.digest == digest
    assert result.rows_computed < 512


def test_nan_names_the_key(tmp_path: Path, digits: ArraySource, teacher: Teacher) -> None:
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
    tmp_path: Path, digits: ArraySource, teacher: Teacher, weights: Path
) -> None:
    two = take(digits, np.flatnonzero(digits.labels < 2))
    two = replace(two, classes=["0", "1"])
    with pytest.raises(ModelError, match="has 2 classes: the teacher must know the same classes"):
        build_small(tmp_path / "a.zarr", two, teacher)
    with pytest.raises(ModelError, match="know 10 classes; source digits/train has 2"):
        open_teacher("cnn-s", weights, two)
    with pytest.raises(ModelError, match="are of cnn-s, not of cnn-l"):
        open_teacher("cnn-l", weights, digits)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "fields", [{"num_views": 0}, {"num_views": -1}, {"num_views": 2**40}, {"batch_size": 0}, {"num_workers": -1}]
)
def test_options_are_validated(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(fields))):
        BuildOptions(**({"out": Path("x"), "num_views": 1} | fields))
