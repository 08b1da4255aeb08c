"""Verify finds what is wrong: values that no encoder writes, another teacher, any damage to any file."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from gdkd_cache_cli.main import main
from small import build_small, forge

import gdkd_cache as gc
from gdkd_cache import open_cache
from gdkd_cache.checking.verify import verify
from gdkd_cache.codec.base import Decoded
from gdkd_cache.codec.dense import DenseCodec
from gdkd_cache.data.source import ArraySource
from gdkd_cache.errors import UsageError
from gdkd_cache.models.build import build_model
from gdkd_cache.models.network import Network


def _other(teacher: Network, seed: int) -> Network:
    """The same architecture with other weights, and a description that says nothing of it."""
    torch.manual_seed(seed)
    model = build_model("cnn-s", 10)
    with torch.no_grad():
        for parameter in list(model.parameters())[-2:]:
            parameter.mul_(10)
    return replace(teacher, model=model.eval())


@pytest.mark.parametrize("codec", ["topk", "dense", "dense:dtype=float32", "transform"])
def test_the_teacher_is_known(tmp_path: Path, digits: ArraySource, teacher: Network, codec: str) -> None:
    """The right teacher passes; one of other weights, or with an untrue normalisation, is found by its logits."""
    losses = (gc.loss("gdkd:temperature=4.0"), gc.loss("kd:temperature=1.0"))
    build_small(tmp_path / "a.zarr", digits, teacher, codec=codec, losses=losses)
    right = verify(tmp_path / "a.zarr", deep=True, source=digits, teacher=teacher, num_rows=64)
    assert right.problems == ()
    assert right.views_decoded == 2
    assert right.rerun is not None
    assert (right.rerun.rows, right.rerun.top_agreement) == (64, 1.0)
    assert len(right.rerun.gradient_error) == 2
    for measured, stated in right.rerun.gradient_error.values():
        assert measured == pytest.approx(stated, rel=0.5, abs=1e-3)
    wrong = [_other(teacher, seed) for seed in (2, 3)] + [replace(teacher, mean=(0.5, 0.5, 0.5))]
    for other in wrong:
        found = verify(tmp_path / "a.zarr", source=digits, teacher=other, num_rows=64).problems
        assert any("ranks other classes at the top" in problem for problem in found)
        assert any("gradient error against this teacher" in problem for problem in found)
    description = replace(teacher.description, weights="sha256:0")
    (problem,) = verify(
        tmp_path / "a.zarr", source=digits, teacher=replace(teacher, description=description), num_rows=16
    ).problems
    assert "the teacher's weights is sha256:0 here" in problem


def test_deep_verification_decodes_every_row(digits_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What passes all checks, but comes out of the codec as no number, is found too."""
    decode = DenseCodec.decode
    rows: list[int] = []

    def broken(codec: DenseCodec, columns: Any, labels: Any, temperature: float | None = None) -> Decoded:
        decoded = decode(codec, columns, labels, temperature)
        rows.append(len(labels))
        decoded.logits[7, 3] = torch.nan
        return decoded

    monkeypatch.setattr(DenseCodec, "decode", broken)
    assert verify(digits_cache).problems == ()
    assert rows == []
    (problem,) = verify(digits_cache, deep=True).problems
    assert rows == [256]
    assert "view 0: row 7 decodes to logits that are not finite" in problem


def test_a_shard_of_other_logits_is_found(tmp_path: Path, digits: ArraySource, teacher: Network) -> None:
    """Logits of another teacher under a manifest of the right one, its digest forged to fit."""
    build_small(tmp_path / "a.zarr", digits, _other(teacher, 2), codec="dense")
    result = verify(tmp_path / "a.zarr", deep=True, source=digits, teacher=teacher, num_rows=32)
    assert len(result.problems) == 2
    assert result.replay is not None


def test_what_a_teacher_needs(digits: ArraySource, digits_cache: Path, teacher: Network) -> None:
    with pytest.raises(UsageError, match="give the data too"):
        verify(digits_cache, teacher=teacher)
    with pytest.raises(UsageError, match="rows is 15"):
        verify(digits_cache, source=digits, teacher=teacher, num_rows=15)


def test_the_command(tmp_path: Path, weights: Path, digits_cache: Path) -> None:
    def run(*args: Any) -> Any:
        return CliRunner().invoke(main, [str(arg) for arg in args])

    common = ["--data", "digits", "--teacher", "cnn-s", "--weights", weights]
    assert (
        run(
            "build", *common, "--accept-teacher", "--views", 2, "--codec", "dense", "--out", tmp_path / "a.zarr"
        ).exit_code
        == 0
    )
    result = run("verify", tmp_path / "a.zarr", "--deep", *common, "--rows", 32, "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert (facts["views_decoded"], facts["teacher"]["rows"], facts["problems"]) == (2, 32, [])
    result = run("verify", tmp_path / "a.zarr", "--deep", *common, "--rows", 32)
    assert "teacher run again on 32 views" in result.stdout
    assert "2 views decoded, whole" in result.stdout
    forge(tmp_path / "a.zarr", lambda stored: stored["identity"]["teacher"].update(weights="sha256:1"))
    result = run("verify", tmp_path / "a.zarr", *common)
    assert result.exit_code == 1
    assert "in the manifest" in result.stderr
    for line in (["--teacher", "cnn-s"], ["--weights", weights], ["--teacher", "cnn-s", "--weights", weights]):
        assert run("verify", digits_cache, *line).exit_code == 2


def test_hostile_text_is_printed_harmlessly(tmp_path: Path, digits: ArraySource, teacher: Network) -> None:
    build_small(tmp_path / "a.zarr", digits, teacher, codec="dense")
    forge(tmp_path / "a.zarr", lambda stored: stored["identity"]["data"].update(name="\x1b[2J\nwhole"))
    result = CliRunner().invoke(main, ["inspect", str(tmp_path / "a.zarr")])
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout
    assert "\ufffd[2J\ufffdwhole: 256 rows" in result.stdout


def test_leftovers_are_found(tmp_path: Path, digits: ArraySource, teacher: Network) -> None:
    """And the same build again tidies them up."""
    path = tmp_path / "a.zarr"
    build_small(path, digits, teacher, codec="dense")
    (path / "build.json").write_text("{}")
    (path / "ledger/0").mkdir(parents=True)
    (path / "ledger/0/0.json").write_text("{}")
    (path / "linked").symlink_to(tmp_path)
    problems = verify(path).problems
    assert [problem.split(" is not listed")[0].rsplit("a.zarr/")[1] for problem in problems] == [
        "build.json", "ledger/0/0.json", "linked"
    ]  # fmt: skip
    (path / "linked").unlink()
    build_small(path, digits, teacher, codec="dense")
    assert verify(path).problems == ()
    assert np.array_equal(open_cache(path).labels, digits.labels)
