"""A part of the data by key: which rows it is, and how it meets caches of the whole and caches of a part."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from gdkd_cache_cli.main import main

from gdkd_cache import open_cache, open_source
from gdkd_cache.data.order import shuffled_rows
from gdkd_cache.data.shards.source import ShardSource
from gdkd_cache.data.source import ArraySource, settle
from gdkd_cache.data.subset import subset
from gdkd_cache.errors import SourceError, UsageError

_FIVE = ["digits/0046", "digits/0212", "digits/0287", "digits/0307", "digits/0318"]


def _run(*args: str | Path) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def test_a_number_takes_the_smallest_hashes(digits: ArraySource) -> None:
    """Which ones depends on the keys alone: known ones, in any order of the data, and within any larger number's."""
    few, more = subset(digits, 5), subset(digits, "40")
    assert list(few.keys) == _FIVE
    assert set(few.keys) < set(more.keys)
    rows = np.arange(len(digits))[::-1]
    turned = replace(
        digits, images=digits.images[rows], labels=digits.labels[rows], keys=[digits.keys[row] for row in rows]
    )
    assert list(subset(turned, 5).keys) == _FIVE[::-1]
    assert few.classes == digits.classes
    assert subset(digits, 256).digest == digits.digest != few.digest
    for row, key in enumerate(few.keys):
        whole = list(digits.keys).index(key)
        assert np.array_equal(few[row][0], digits[whole][0])
        assert few[row][1] == digits[whole][1]


def test_a_file_takes_its_keys(tmp_path: Path, digits: ArraySource) -> None:
    """In the order of the data; blank lines and repeated keys are nothing."""
    path = tmp_path / "keys.txt"
    path.write_text("\n".join([digits.keys[9], "", digits.keys[2], digits.keys[9]]) + "\r\n")
    assert list(subset(digits, str(path)).keys) == [digits.keys[2], digits.keys[9]]
    opened = open_source("digits", subset=str(path))
    assert [opened[0][1], opened[1][1]] == [digits[2][1], digits[9][1]]


@pytest.mark.parametrize(
    ("chosen", "text", "error", "said"),
    [
        ("0", None, UsageError, "subset is 0; source digits/train has 256 rows: it must be 1 to that"),
        ("257", None, UsageError, "subset is 257; source digits/train has 256 rows"),
        ("keys.txt", None, SourceError, "list keys.txt does not exist"),
        ("-3", None, SourceError, "list -3 does not exist"),
        ("keys.txt", "\n\n", SourceError, "subset keys.txt is empty; it must hold keys of source digits/train"),
        (
            "keys.txt",
            "digits/0000\nx\ny\n",
            SourceError,
            "2 of its 3 keys are not in source digits/train; the first is ",
        ),
        ("keys.txt", "\xff", SourceError, "is no text in UTF-8"),
    ],
)
def test_wrong_parts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    digits: ArraySource,
    chosen: str,
    text: str | None,
    error: type[Exception],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if text is not None:
        (tmp_path / chosen).write_text(text, "latin-1")
    with pytest.raises(error, match=re.escape(said)) as caught:
        subset(digits, chosen)
    assert "\n" not in str(caught.value)


def test_parts_of_shards(images: Path) -> None:
    """Rows stay in their shards, of which one may have none left; an epoch has each of them once."""
    spec = f"wds:{images}/Train-{{0..4}}.tar"
    whole, held = open_source(spec, stream=True), open_source(spec)
    assert isinstance(whole, ShardSource)
    part = subset(whole, 30)
    assert isinstance(part, ShardSource)
    assert list(part.keys) == list(subset(held, 30).keys)
    for row in range(30):
        assert np.array_equal(part[row][0], held[list(held.keys).index(part.keys[row])][0])
    assert sorted(shuffled_rows(part, 0, 1).tolist()) == list(range(30))
    assert np.diff(part.shard_starts).min() == 0


class _Mine:
    keys = tuple("abcdefgh")
    classes = ("x", "y")
    digest = "mine"

    def __len__(self) -> int:
        return 8

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        return np.full((4, 4, 3), row, np.uint8), row % 2


def test_parts_of_a_users_source() -> None:
    whole = settle(_Mine())
    part = whole.take(np.array([1, 4, 6]))
    assert [int(part[row][0][0, 0, 0]) for row in range(3)] == [1, 4, 6]
    assert part.labels.tolist() == [1, 0, 0]
    assert int(part.take(np.array([0, 2]))[1][0][0, 0, 0]) == 6
    assert part.digest != whole.digest == "mine"


def _build(out: Path, weights: Path, *more: str) -> None:
    common = ["--data", "digits", "--teacher", "cnn-s", "--weights", weights, "--views", "1", "--codec", "dense"]
    built = _run("build", *common, *more, "--workers", "0", "--out", out)
    assert built.exit_code == 0, built.output


def test_a_cache_of_a_part(tmp_path: Path, weights: Path) -> None:
    """It meets the whole data with one line that says what to add, and trains, verifies and shows with its part."""
    cache = tmp_path / "c.zarr"
    _build(cache, weights, "--subset", "100")
    assert open_cache(cache).keys == list(open_source("digits", subset=100).keys)
    train = ["train", "--loss", "kd", "--data", "digits", "--cache", cache, "--student", "cnn-s", "--epochs", "1"]
    whole = _run(*train, "--out", tmp_path / "whole")
    assert whole.exit_code == 1
    assert f"is not in {cache} (1338 of 1438 are not); the cache is of 100 of these: add the --subset" in whole.stderr
    assert whole.stderr.count("\n") == 1
    part = _run(*train, "--subset", "100", "--out", tmp_path / "part")
    assert part.exit_code == 0, part.output
    assert _run(*train, "--subset", "50", "--out", tmp_path / "less").exit_code == 0
    more = _run(*train, "--subset", "150", "--out", tmp_path / "more")
    assert "(50 of 150 are not)" in more.stderr
    verified = _run("verify", cache, "--data", "digits", "--subset", "100", "--json")
    assert verified.exit_code == 0, verified.output
    assert '"images": 100' in verified.stdout
    assert _run("show", cache, "--data", "digits", "--subset", "9", "--out", tmp_path / "v.png").exit_code == 0
    own = ["--teacher", "cnn-s", "--weights", weights, "--data", "digits"]
    (labels,) = [name for name in open_cache(cache).manifest.objects if name.startswith("labels/c/")]
    (cache / labels).write_bytes(b"x")
    refused = _run("repair", cache, *own)
    assert "it has 100 rows, digits/train has 1438: give the --subset that it was built with" in refused.stderr
    repaired = _run("repair", cache, *own, "--subset", "100")
    assert repaired.exit_code == 0, repaired.output


def test_a_part_of_a_cache(digits: ArraySource, digits_cache: Path) -> None:
    """Rows are found by key, so that a part of the data gets its own logits of a cache of the whole."""
    cache = open_cache(digits_cache)
    part = subset(digits, 40)
    dataset = cache.dataset(part)
    rows = [list(cache.keys).index(key) for key in part.keys]
    assert dataset.cache_rows.tolist() == rows
    for _, labels, said in dataset.loader(0, batch_size=40):
        assert labels.tolist() == part.labels.tolist()
        assert np.array_equal(said.logits.numpy(), cache.view(0).logits(np.array(rows)).numpy())


def test_evaluation_is_on_the_whole(tmp_path: Path) -> None:
    trained = _run(
        *("train", "--loss", "ce", "--data", "digits", "--subset", "64", "--student", "cnn-s", "--epochs", "1"),
        *("--out", tmp_path / "o"),
    )
    assert trained.exit_code == 0, trained.output
    evaluated = _run("eval", "--data", "digits", "--weights", tmp_path / "o" / "best.safetensors")
    assert evaluated.stdout.endswith("on 359 images\n")
    part = _run("eval", "--data", "digits", "--subset", "10", "--weights", tmp_path / "o" / "best.safetensors")
    assert part.stdout.endswith("on 10 images\n")
    assert f"accuracy {_accuracy(tmp_path):.2%}" in evaluated.stdout


def _accuracy(folder: Path) -> float:
    return float(re.findall(r'"accuracy": ([\d.]+)', (folder / "o" / "metrics.jsonl").read_text())[-1])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("verify {cache} --subset 9", "--subset goes with --data"),
        ("repair {cache} --subset 9", "--subset goes with --data"),
        (
            "build --data wds:x.tar --teacher cnn-s --weights w --out o --views 1 --sidecars s --subset 9",
            "--sidecars are of whole shards, which --subset takes apart",
        ),
    ],
)
def test_options_that_do_not_go_together(digits_cache: Path, line: str, said: str) -> None:
    run = _run(*line.format(cache=digits_cache).split())
    assert run.exit_code == 2
    assert said in run.stderr
