"""The mean of weights: of tensors that belong together, and of no others."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from gdkd_cache_cli.main import main
from safetensors.torch import load_file

from gdkd_cache.models.average import average
from gdkd_cache.models.build import build_model
from gdkd_cache.models.card import ModelCard
from gdkd_cache.models.weights import load_card, load_model, save_weights

_CARD = ModelCard(name="resnet8", num_classes=10, size=(8, 8), mean=(0.5,) * 3, std=(0.5,) * 3, accuracy=0.5)


def _run(*args: str | Path) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def _weights(path: Path, seed: int, **card: Any) -> Path:
    """A network with batch normalisation that has seen `seed` batches."""
    torch.manual_seed(seed)
    model = build_model("resnet8", 10)
    for _ in range(seed):
        model(torch.randn(4, 3, 8, 8))
    save_weights(model, replace(_CARD, **card), path)
    return path


def test_the_mean(tmp_path: Path) -> None:
    """Of what is floating-point, running statistics too; of counts the last."""
    paths = [_weights(tmp_path / f"{seed}.safetensors", seed, accuracy=seed / 10) for seed in (1, 2, 3)]
    result = _run("average", *paths, "--out", tmp_path / "mean.safetensors")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{tmp_path}/mean.safetensors: the mean of 3 weights of resnet8\n"
    found, parts = load_file(tmp_path / "mean.safetensors"), [load_file(path) for path in paths]
    assert found.keys() == parts[0].keys()
    for name, value in found.items():
        if value.is_floating_point():
            expected = torch.stack([part[name].double() for part in parts]).mean(0).float()
            torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
            assert not torch.equal(value, parts[-1][name]) or torch.equal(parts[0][name], parts[1][name])
        else:
            assert torch.equal(value, parts[-1][name])
            assert int(value) == 3
    assert load_card(tmp_path / "mean.safetensors") == replace(_CARD, accuracy=None)
    load_model("resnet8", 10, tmp_path / "mean.safetensors")


def test_the_mean_of_equals_is_the_same(tmp_path: Path) -> None:
    path = _weights(tmp_path / "a.safetensors", 1)
    tensors, _ = average([path] * 7)
    assert all(torch.equal(value, tensors[name]) for name, value in load_file(path).items())


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (
            lambda path: _weights(path, 2, mean=(0.4,) * 3, size=(32, 32)),
            "b.safetensors are of another network than .*a.safetensors: size is \\(32, 32\\), not \\(8, 8\\), mean is",
        ),
        (
            lambda path: save_weights(build_model("resnet14", 10), _CARD, path),
            "b.safetensors differ from .*a.safetensors: .* is floating-point .*, not absent",
        ),
        (
            lambda path: save_weights(build_model("resnet8", 12), _CARD, path),
            r"'fc.bias' is floating-point \[12\], not floating-point \[10\]",
        ),
        (
            lambda path: torch.save(build_model("resnet8", 10).state_dict(), path),
            "b.safetensors cannot be read",
        ),
        (lambda path: None, "b.safetensors do not exist, or have no card: give them one with gdkd-cache export"),
    ],
)
def test_what_does_not_belong_together(tmp_path: Path, second: Callable[[Path], object], said: str) -> None:
    path, other = _weights(tmp_path / "a.safetensors", 1), tmp_path / "b.safetensors"
    second(other)
    result = _run("average", path, other, "--out", tmp_path / "mean.safetensors")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert re.search(said, line), line
    assert not (tmp_path / "mean.safetensors").exists()


def test_where_it_goes(tmp_path: Path) -> None:
    path = _weights(tmp_path / "a.safetensors", 1)
    before = path.read_bytes()
    for out, code, said in (
        (path, 1, "a.safetensors exists; name another --out, or add --force to replace it"),
        (tmp_path, 1, "is no plain file"),
        (tmp_path / "no" / "a.safetensors", 1, "no is no folder; make it"),
        (tmp_path / "mean.pt", 2, "ends in .safetensors"),
    ):
        result = _run("average", path, path, "--out", out)
        assert (result.exit_code, said in result.stderr) == (code, True), result.output
    assert path.read_bytes() == before
    assert _run("average", path, "--out", tmp_path / "b.safetensors").exit_code == 2
    assert _run("average", path, path, "--force", "--out", path).exit_code == 0
    assert [one.name for one in tmp_path.iterdir()] == ["a.safetensors"]
