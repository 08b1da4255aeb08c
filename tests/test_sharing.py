"""Caches between teams: their card, joining parts of one cache, averaging several teachers."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner, Result
from gdkd_cache_cli.main import main
from small import build_small, forge

import gdkd_cache as gc
from gdkd_cache import open_cache
from gdkd_cache.data import ArraySource, Recipe
from gdkd_cache.data.recipes import HorizontalFlip, RandomCrop, RandomErasing
from gdkd_cache.errors import CacheError, MismatchError, UsageError
from gdkd_cache.pipeline.copy import copy
from gdkd_cache.pipeline.teacher import Teacher
from gdkd_cache.store.card import readme

_README = "README.md"


def _run(*args: str | Path) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def _bytes(path: Path) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def _metadata(page: str) -> dict[str, Any]:
    start, metadata, _ = page.split("---\n", 2)
    assert not start
    return yaml.safe_load(metadata)


def test_a_cache_is_a_dataset_repository(tmp_path: Path, digits: ArraySource, teacher: Teacher) -> None:
    """Its README.md has the Hub's metadata and the facts that `inspect` prints, and is checked like the rest."""
    path = tmp_path / "a.zarr"
    card = {"license": "CC-BY-4.0", "contact": "Ada <ada@example.org>"}
    recipe = Recipe("jitter", (RandomCrop(size=8, padding=1), HorizontalFlip(), RandomErasing()))
    manifest = build_small(path, digits, teacher, recipe=recipe, **card).manifest
    assert manifest.identity.card == card
    page = (path / _README).read_text()
    assert _metadata(page) == {
        "pretty_name": "Logits of cnn-s on digits/train",
        "license": "cc-by-4.0",
        "task_categories": ["image-classification"],
        "tags": ["gdkd-cache", "knowledge-distillation", "zarr"],
        "size_categories": ["n<1K"],
        "viewer": False,
    }
    lines = _run("inspect", path).stdout.splitlines()
    facts = {line[:10].strip(): line[12:] for line in lines}
    assert [line for line in lines if line not in page] == [
        line for line in lines if line[:10].strip() in ("size", "digest")
    ]
    assert manifest.digest not in page
    assert readme(manifest.identity) == readme(open_cache(path).manifest.identity) == page.encode()
    assert str(tmp_path) not in page
    assert facts["teacher"] == f"cnn-s, 10.00% accuracy on held-out images, weights {teacher.description['weights']}"
    assert facts["recipe"].startswith("random_crop (padding 1, size 8), horizontal_flip (probability 0.5), random_er")
    assert (facts["license"], facts["contact"]) == ("CC-BY-4.0", "Ada <ada@example.org>")
    (path / _README).write_text(page.replace("CC-BY-4.0", "CC-BY-3.0"))
    assert [name for name, problem in open_cache(path).reader.problems() if problem] == [_README]
    assert copy(tmp_path / "a.zarr", tmp_path / "c.zarr", num_views=1).manifest.identity.card == card


@pytest.mark.parametrize("rows", [1, 999, 1000, 9999, 50_000, 1_281_167, 10**9, 10**13])
def test_size_categories(digits_cache: Path, rows: int) -> None:
    identity = open_cache(digits_cache).manifest.identity
    (category,) = _metadata(readme(replace(identity, num_rows=rows)).decode())["size_categories"]
    found = re.fullmatch(r"(?:(\w+)<)?n[<>](\w+)", category)
    assert found is not None
    unit = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
    low, high = (0 if text is None else int(text[:-1]) * unit[text[-1]] for text in found.groups())
    assert low <= rows < high or rows > high == 10**12


_HOSTILE = [
    '"\n---\n# Free\n',
    "\n```\n<script>alert(1)</script>\n",
    "```\r\n# x",
    "\u2028---\u2029```\x85---",
    '", "evil": "yes\\',
    "\x1b[2J\u202egnp.exe \x7f\ufffe",
    "{0} {facts} %s",
    "- [x](javascript:alert(1)) | ![](http://x/y.png)",
    "a" * 100_000,
]


@pytest.mark.parametrize("text", _HOSTILE, ids=range(len(_HOSTILE)))
def test_hostile_names(tmp_path: Path, digits_cache: Path, text: str) -> None:
    """A forged manifest's texts stay inside their YAML string, and inside the one fenced block of the page."""

    def change(stored: dict[str, Any]) -> None:
        identity = stored["identity"]
        identity["classes"][0] = identity["teacher"]["name"] = identity["data"]["name"] = text
        identity["views"]["recipe"]["name"] = identity["views"]["recipe"]["steps"][0]["step"] = text
        identity["build"]["software"] = {text: text}
        identity["card"] = {"license": text, "contact": text}

    whole = copy(digits_cache, tmp_path / "a.zarr").manifest
    plain = copy(digits_cache, tmp_path / "b.zarr", num_views=1)
    forge(tmp_path / "a.zarr", change)
    copy(tmp_path / "a.zarr", tmp_path / "c.zarr", num_views=1)
    page, before = ((tmp_path / name / _README).read_text() for name in ("c.zarr", "b.zarr"))
    metadata = _metadata(page)
    assert metadata.keys() == _metadata(before).keys() | {"license_name"}
    assert metadata["license"] == "other"
    assert all(len(metadata[name]) <= 200 for name in ("license_name", "pretty_name"))
    body, facts, rest = re.split(r"^```text\n(.*?)^```\n", page.split("---\n", 2)[2], flags=re.MULTILINE | re.DOTALL)
    expected = re.split(r"^```text\n(.*?)^```\n", before.split("---\n", 2)[2], flags=re.MULTILINE | re.DOTALL)
    assert (body, rest) == (expected[0], expected[2])
    assert [line[:12] for line in facts.splitlines()] == [line[:12] for line in expected[1].splitlines()]
    assert all(len(line) <= 412 for line in facts.splitlines())
    shown = _run("inspect", tmp_path / "c.zarr").stdout
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e]", shown)
    assert whole.digest != plain.manifest.digest


@pytest.mark.parametrize("text", ["", " ", "two\nlines", "a\x1b[0m", "x" * 201])
def test_bad_cards(tmp_path: Path, text: str) -> None:
    logits = np.random.default_rng(0).normal(size=(1, 30, 10))
    with pytest.raises(UsageError, match=r"contact is .* one line of 1 to 200") as caught:
        gc.pack(tmp_path / "a", logits, keys=[str(i) for i in range(30)], labels=np.arange(30) % 10, contact=text)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a").exists()


def test_a_forged_card_is_refused(tmp_path: Path, digits_cache: Path) -> None:
    for card in ({"license": 3}, {"other": "x"}, "x"):
        copy(digits_cache, tmp_path / "a.zarr")
        forge(tmp_path / "a.zarr", lambda stored, card=card: stored["identity"].update(card=card))
        with pytest.raises(CacheError, match="card"):
            open_cache(tmp_path / "a.zarr")
        shutil.rmtree(tmp_path / "a.zarr")


def test_the_card_of_a_resumed_build(tmp_path: Path) -> None:
    """While a build is unfinished its card may change; a finished cache keeps its own."""
    logits = np.random.default_rng(0).normal(size=(2, 30, 10))
    given: dict[str, Any] = {"keys": [str(i) for i in range(30)], "labels": np.arange(30) % 10, "codec": "dense"}
    first = gc.pack(tmp_path / "a", logits, contact="Ada", **given)
    (tmp_path / "a/manifest.json").unlink()
    (tmp_path / "a/build.json").write_text(json.dumps(first.identity.to_json()))
    second = gc.pack(tmp_path / "a", logits, contact="Bob", license="mit", **given)
    assert second.identity.card == {"license": "mit", "contact": "Bob"}
    assert _bytes(tmp_path / "a")[_README].count(b"Bob") == 1
    with pytest.raises(MismatchError, match=r"card.contact is Bob there, Eve asked"):
        gc.pack(tmp_path / "a", logits, contact="Eve", license="mit", **given)
