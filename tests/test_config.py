"""`run.toml`: a training repeated from it is the same one; what a stranger's file may not say is refused."""

import json
import logging
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from gdkd_cache_cli.main import main
from safetensors.torch import load_file
from torch import equal

from gdkd_cache.data.source import ArraySource

_TIMED = ("images_per_second", "memory_bytes")


def _train(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["train", *arguments])


def test_a_training_repeated(
    tmp_path: Path, digits: ArraySource, digits_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """From the cache, with rare options: the same weights and metrics, in another folder, with no other option."""
    first, second, keys = tmp_path / "first", tmp_path / "second", str(tmp_path / "keys.txt")
    caplog.set_level(logging.INFO)
    Path(keys).write_text("\n".join(digits.keys))
    run = _train(
        *(
            "--loss",
            "gdkd:k=3",
            "--data",
            "digits",
            "--subset",
            keys,
            "--cache",
            str(digits_cache),
            "--student",
            "cnn-s",
        ),
        *("--epochs", "2", "--out", str(first), "--lr", "0.02", "--views", "1", "--ema", "0.5", "--threads", "1"),
        *("--schedule", "multistep:at=1", "--optimizer", "adamw:betas=0.8/0.9", "--label-smoothing", "0.1"),
    )
    assert run.exit_code == 0, run.output
    told = tomllib.loads((first / "run.toml").read_text())
    assert told["train"]["loss"].startswith("gdkd:")
    assert (told["train"]["views"], told["train"]["seed"], told["data"]["subset"]) == ("1", 0, keys)
    assert "out" not in told["train"]
    assert told["cache"][0]["digest"].startswith("sha256:")
    assert told["cache"][0]["bytes_per_view"] > 1
    repeated = _train("--config", str(first / "run.toml"), "--out", str(second))
    assert repeated.exit_code == 0, repeated.output
    ours, theirs = (load_file(folder / "last-ema.safetensors") for folder in (first, second))
    assert all(equal(ours[name], theirs[name]) for name in ours)
    lines = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in (first, second)
    ]
    for one, other in zip(*lines, strict=True):
        assert one["view"] == 1
        assert {name: one[name] for name in one if name not in _TIMED} == {
            name: other[name] for name in other if name not in _TIMED
        }
    assert (second / "log.txt").read_text().count("epoch 2/2") == 1
    changed = _train("--config", str(first / "run.toml"), "--out", str(first), "--lr", "0.5")
    assert changed.exit_code == 1
    assert "option lr is 0.02 there and 0.5 now" in changed.output


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[train]\nstudent = 'os:system'", "names code|code that no file may load"),
        ("[train]\nforce = true", "train.force is no option that a file gives"),
        ("[teachers]\nuse = ['os:system']", "teachers.use is no option that a file gives"),
        ("[train]\nlr = 'much'", "lr is 'much'"),
        ("[train]\nlearning_rate = 1", "train.learning_rate is no option"),
        ("[others]\nlr = 1", "others is none of its tables"),
        ("train = 1", "train is none of its tables"),
        ("[train", "cannot be read"),
        ("x = " + "[" * 10_000, "cannot be read"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text)
    run = _train(
        "--config", str(path), "--data", "digits", "--student", "cnn-s", "--epochs", "1", "--out", str(tmp_path / "s")
    )
    assert run.exit_code == 2
    assert said.split("|")[-1] in run.output.replace("\n", " ")
    assert not (tmp_path / "s").exists()
