"""Caches between teams: their card, joining parts of one cache, averaging several teachers."""

import json
import re
import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from gdkd_cache_cli.main import main
from small import build_small, forge, take

import gdkd_cache as gc
from gdkd_cache import Cache, open_cache
from gdkd_cache.cache.dataset import mean_logits
from gdkd_cache.checking.verify import verify
from gdkd_cache.data.recipes.erasing import RandomErasing
from gdkd_cache.data.recipes.geometry import HorizontalFlip, RandomCrop
from gdkd_cache.data.recipes.recipe import Recipe
from gdkd_cache.data.source import ArraySource
from gdkd_cache.errors import CacheError, GdkdCacheError, MismatchError, NotServedError, UsageError
from gdkd_cache.losses.partition import top_classes
from gdkd_cache.models.network import Network
from gdkd_cache.objects.record import ObjectRecord
from gdkd_cache.sharing.copy import copy
from gdkd_cache.sharing.merge import merge
from gdkd_cache.store.card import readme
from gdkd_cache.store.facts import Card
from gdkd_cache.store.layout import row_layouts
from gdkd_cache.store.manifest import Manifest
from gdkd_cache.store.pictures import pictures

_README = "README.md"


def _run(*args: str | Path) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def _bytes(path: Path) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def _metadata(page: str) -> dict[str, Any]:
    start, metadata, _ = page.split("---\n", 2)
    assert not start
    return yaml.safe_load(metadata)


def test_a_cache_is_a_dataset_repository(tmp_path: Path, digits: ArraySource, teacher: Network) -> None:
    """Its README.md has the Hub's metadata and the facts that `inspect` prints, and is checked like the rest."""
    path = tmp_path / "a.zarr"
    card = {"license": "CC-BY-4.0", "contact": "Ada <ada@example.org>"}
    recipe = Recipe("jitter", (RandomCrop(size=8, padding=1), HorizontalFlip(), RandomErasing()))
    manifest = build_small(path, digits, teacher, recipe=recipe, **card).manifest
    assert manifest.identity.card == Card(**card)
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
        line for line in lines if line[:10].strip() in ("sees", "size", "digest")
    ]
    assert manifest.digest not in page
    assert readme(manifest.identity) == readme(open_cache(path).manifest.identity) == page.encode()
    assert str(tmp_path) not in page
    assert facts["teacher"] == f"cnn-s, 10.00% accuracy on held-out images, weights {teacher.description.weights}"
    assert facts["recipe"].startswith("random_crop (padding 1, size 8), horizontal_flip (probability 0.5), random_er")
    assert (facts["license"], facts["contact"]) == ("CC-BY-4.0", "Ada <ada@example.org>")
    (path / _README).write_text(page.replace("CC-BY-4.0", "CC-BY-3.0"))
    assert [name for name, problem in open_cache(path).problems() if problem] == [_README]
    assert copy(tmp_path / "a.zarr", tmp_path / "c.zarr", views=range(1)).manifest.identity.card == Card(**card)


def test_pictures(tmp_path: Path, digits_cache: Path) -> None:
    """The page says how right the teacher is, and shows two pictures, which are checked like the rest."""
    cache = open_cache(digits_cache)
    examination, page = cache.manifest.identity.examination, (digits_cache / _README).read_text()
    assert examination is not None
    assert f"**{examination.views.top1:.1%}** of augmented views" in page
    assert "**10.0%** of held-out images, as its weights say" in page
    for name, target in (("card/teacher.svg", None), ("card/fidelity.svg", cache.manifest.identity.request.fidelity)):
        assert f"]({name})" in page
        drawn = (digits_cache / name).read_bytes()
        root = ElementTree.fromstring(drawn)
        texts = [element.text or "" for element in root.iter() if element.tag.endswith("text")]
        if target is None:
            assert f"first class, {examination.views.rows:,} of the views here" in texts
            assert f"{examination.views.top5:.1%}" in texts
        else:
            assert next(iter(cache.manifest.identity.fidelity.gradient_error))[:60] in " ".join(texts)
            assert any(text.endswith(f"asked for (the line): {target:g}") for text in texts)
        assert pictures(cache.manifest.identity)[name] == drawn
    assert pictures(replace(cache.manifest.identity, examination=None)) == {}
    copy(digits_cache, tmp_path / "c", views=range(1))
    assert (tmp_path / "c" / "card" / "teacher.svg").read_bytes() == (digits_cache / "card/teacher.svg").read_bytes()
    (tmp_path / "c" / "card" / "teacher.svg").write_text("<svg/>")
    assert [name for name, problem in open_cache(tmp_path / "c").problems() if problem] == ["card/teacher.svg"]


def test_hostile_pictures(digits_cache: Path) -> None:
    """Texts of a forged manifest stay texts, and numbers that no cache has are drawn inside."""
    identity = open_cache(digits_cache).manifest.identity
    assert identity.examination is not None
    views = replace(identity.examination.views, top1=10**400, top5=-(10**400), rows=10**400)
    errors = dict.fromkeys(_HOSTILE, 10**400)
    forged = replace(
        identity,
        examination=replace(
            identity.examination, views=views, evaluated=views, data="</text><script>" + "\u202e" * 999
        ),
        fidelity=replace(identity.fidelity, gradient_error=errors),
    )
    before, after = pictures(identity), pictures(forged)
    for name, drawn in after.items():
        tags = {element.tag for element in ElementTree.fromstring(before[name]).iter()}
        assert {element.tag for element in ElementTree.fromstring(drawn).iter()} == tags
        assert len(drawn) < 20_000
        assert "\u202e" not in drawn.decode()
        assert max(map(int, re.findall(r' (?:x|width)="(\d+)"', drawn.decode()))) <= 640


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
    "\u061c\u180e\U000e0041\U000e007f",
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
    plain = copy(digits_cache, tmp_path / "b.zarr", views=range(1))
    forge(tmp_path / "a.zarr", change)
    copy(tmp_path / "a.zarr", tmp_path / "c.zarr", views=range(1))
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
    assert page.replace("\n", "").isprintable()
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
    (tmp_path / "a/build.json").write_bytes(Manifest(first.identity, {}).to_bytes())
    second = gc.pack(tmp_path / "a", logits, contact="Bob", license="mit", **given)
    assert second.identity.card == Card(license="mit", contact="Bob")
    assert _bytes(tmp_path / "a")[_README].count(b"Bob") == 1
    with pytest.raises(MismatchError, match=r"card.contact is Bob there, Eve asked"):
        gc.pack(tmp_path / "a", logits, contact="Eve", license="mit", **given)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, digits: ArraySource, teacher: Network) -> Path:
    """A transform cache of four views, in four shards a view; not to be changed."""
    path = tmp_path_factory.mktemp("whole") / "all.zarr"
    build_small(path, digits, teacher, codec="transform", num_views=4, shard_rows=70)
    return path


def _part(out: Path, source: ArraySource, teacher: Network, first: int, count: int, **options: Any) -> Path:
    defaults: dict[str, Any] = {"codec": "transform", "shard_rows": 70}
    build_small(out, source, teacher, first_view=first, num_views=count, **(defaults | options))
    return out


def test_parts_make_the_whole(tmp_path: Path, digits: ArraySource, teacher: Network, whole: Path) -> None:
    """Two teams build half each; joined, in any order and from a second run, it is the one build's every byte."""
    one, two = (_part(tmp_path / f"{first}.zarr", digits, teacher, first, 2) for first in (0, 2))
    result = merge([two, one], tmp_path / "all.zarr")
    assert result.manifest.digest == open_cache(whole).manifest.digest
    assert _bytes(tmp_path / "all.zarr") == _bytes(whole)
    assert merge([one, two], tmp_path / "all.zarr").num_sent == 0
    assert verify(tmp_path / "all.zarr", source=digits).problems == ()
    for numbers in (range(1, 3), range(2, 4)):  # and the whole is cut into what a build of those views makes
        copied = copy(whole, tmp_path / f"cut{numbers.start}.zarr", views=numbers)
        _part(tmp_path / f"built{numbers.start}.zarr", digits, teacher, numbers.start, 2)
        assert _bytes(tmp_path / f"cut{numbers.start}.zarr") == _bytes(tmp_path / f"built{numbers.start}.zarr")
        assert copied.manifest.identity.view_numbers == numbers


def test_a_part_trains_as_the_whole_does(tmp_path: Path, digits: ArraySource, whole: Path) -> None:
    """Views keep their numbers: the pixels, the logits and the replay of view 3 are those of view 3 of the whole."""
    copy(whole, tmp_path / "part.zarr", views=range(2, 4))
    part, full = open_cache(tmp_path / "part.zarr"), open_cache(whole)
    assert (part.num_views, part.view_numbers) == (2, range(2, 4))
    assert torch.equal(part.view(3).logits(range(256)), full.view(3).logits(range(256)))
    for number in (1, 4):
        with pytest.raises(UsageError, match="has views 2 to 3"):
            part.view(number)
    ours, theirs = part.dataset(digits), full.dataset(digits)
    assert ours.replay.exact > 30
    for epoch, same in ((0, 2), (1, 3), (2, 2), (5, 3)):
        for (images, labels, said), (images_full, labels_full, said_full) in zip(
            ours.loader(epoch, batch_size=100), theirs.loader(same, batch_size=100), strict=True
        ):
            assert said.view == same
            assert torch.equal(images, images_full)
            assert torch.equal(labels, labels_full)
            assert torch.equal(said.logits, said_full.logits)
    assert verify(tmp_path / "part.zarr", source=digits).problems == ()
    assert "2 (2 to 3) of 8x8" in _run("inspect", tmp_path / "part.zarr").stdout


def test_a_codec_from_another_cache(tmp_path: Path, digits: ArraySource, teacher: Network, whole: Path) -> None:
    """What another machine would fit otherwise is taken as it is, and the result says which builds it joins."""
    first = copy(whole, tmp_path / "first.zarr", views=range(2)).manifest
    other: dict[str, Any] = {"codec": "dense", "batch_size": 100}  # another machine: other last bits
    second = _part(tmp_path / "second.zarr", digits, teacher, 2, 2, codec_from=tmp_path / "first.zarr", **other)
    identity = open_cache(second).manifest.identity
    assert (identity.codec, identity.fidelity, identity.request) == (
        first.identity.codec, first.identity.fidelity, first.identity.request,
    )  # fmt: skip
    joined = merge([tmp_path / "first.zarr", second], tmp_path / "all.zarr").manifest
    parts = joined.identity.parts
    assert [(run.first, run.num_views, run.batch_size) for run in parts] == [(0, 2, 64), (2, 2, 100)]
    assert verify(tmp_path / "all.zarr", source=digits).problems == ()
    assert _run("inspect", tmp_path / "all.zarr").exit_code == 0
    cut = copy(tmp_path / "all.zarr", tmp_path / "cut.zarr", views=range(1, 3)).manifest.identity.parts
    assert [(run.first, run.num_views) for run in cut] == [(1, 1), (2, 1)]
    last = copy(tmp_path / "all.zarr", tmp_path / "last.zarr", views=range(2, 4)).manifest
    assert last.digest == open_cache(second).manifest.digest
    one, two, three = (tmp_path / f"p{i}.zarr" for i in range(3))
    for path, numbers in ((one, range(1)), (two, range(1, 3)), (three, range(3, 4))):
        copy(tmp_path / "all.zarr", path, views=numbers)
    merge([one, two], tmp_path / "left.zarr")
    assert merge([three, tmp_path / "left.zarr"], tmp_path / "again.zarr").manifest.digest == joined.digest
    with pytest.raises(MismatchError, match=r"first.zarr and this build are not parts of one cache: views.seed is 0"):
        _part(tmp_path / "x.zarr", digits, teacher, 2, 2, codec_from=tmp_path / "first.zarr", seed=1)
    assert not (tmp_path / "x.zarr").exists()
    built = _part(tmp_path / "x.zarr", digits, teacher, 2, 2, codec="dense")
    with pytest.raises(MismatchError, match=r"holds another build: .*--force"):
        _part(built, digits, teacher, 2, 2, codec_from=tmp_path / "first.zarr")
    _part(built, digits, teacher, 2, 2, codec_from=tmp_path / "first.zarr", force=True)
    assert open_cache(built).manifest.identity.codec == identity.codec


def test_what_does_not_join(tmp_path: Path, digits: ArraySource, teacher: Network, whole: Path) -> None:
    for numbers in (range(1), range(1, 2), range(2, 4)):
        copy(whole, tmp_path / f"{numbers.start}.zarr", views=numbers)
    _part(tmp_path / "seed.zarr", digits, teacher, 2, 1, seed=5)
    _part(tmp_path / "dense.zarr", digits, teacher, 2, 1, codec="dense")
    fewer = take(digits, np.arange(255))
    _part(tmp_path / "rows.zarr", fewer, teacher, 2, 1)
    shutil.copytree(tmp_path / "2.zarr", tmp_path / "bad.zarr")
    victim = next(path for path in sorted((tmp_path / "bad.zarr/probe/c/1").rglob("0")) if path.is_file())
    victim.write_bytes(victim.read_bytes()[:-1] + b"\1")
    keys, labels = [str(i) for i in range(30)], np.arange(30) % 10
    gc.pack(tmp_path / "packed.zarr", np.random.default_rng(0).normal(size=(1, 30, 10)), keys=keys, labels=labels)
    for names, said in (
        (["0", "2"], "view 1 is in none of the caches"),
        (["1", "2", "1"], "both hold view 1"),
        (["0"], "1 cache to merge"),
        (["2", "packed"], "packed.zarr was packed|not parts of one cache"),
        (["packed", "packed"], "its views have no numbers"),
        (["1", "seed"], "views.seed is 5 there, 0 here"),
        (["1", "dense"], "codec.dtype is float16 there, None here.*--codec-from"),
        (["1", "rows"], "data.digest"),
        (["1", "nowhere"], "is no cache"),
        (["1", "bad"], "probe/c/1/.*checksum"),
    ):
        with pytest.raises(GdkdCacheError, match=said) as caught:
            merge([tmp_path / f"{name}.zarr" for name in names], tmp_path / "out.zarr")
        assert "\n" not in str(caught.value)
        if names != ["1", "bad"]:
            assert not (tmp_path / "out.zarr").exists()
    with pytest.raises(CacheError, match="unfinished build or copy"):
        open_cache(tmp_path / "out.zarr")
    shutil.rmtree(tmp_path / "bad.zarr")
    shutil.copytree(tmp_path / "2.zarr", tmp_path / "bad.zarr")  # mended: the merge goes on
    assert merge([tmp_path / "1.zarr", tmp_path / "bad.zarr"], tmp_path / "out.zarr").num_sent < 60
    with pytest.raises(MismatchError, match="holds another cache"):
        merge([tmp_path / "0.zarr", tmp_path / "1.zarr"], tmp_path / "out.zarr")


def test_cards_of_parts(tmp_path: Path, digits: ArraySource, teacher: Network) -> None:
    one = _part(tmp_path / "a.zarr", digits, teacher, 0, 1, license="mit", contact="Ada")
    two = _part(tmp_path / "b.zarr", digits, teacher, 1, 1, license="mit", contact="Bob")
    with pytest.raises(MismatchError, match=r"contact is 'Bob' in .*b.zarr and 'Ada' in .*a.zarr; say .* --contact"):
        merge([one, two], tmp_path / "c.zarr")
    result = _run("merge", one, two, "--contact", "Ada and Bob", "--out", tmp_path / "c.zarr")
    assert result.exit_code == 0, result.output
    assert open_cache(tmp_path / "c.zarr").manifest.identity.card == Card(license="mit", contact="Ada and Bob")


def test_other_tables_are_refused(tmp_path: Path, digits: ArraySource, whole: Path) -> None:
    """Tables that decode otherwise, under a codec of the same description."""
    copy(whole, tmp_path / "a.zarr", views=range(2))
    copy(whole, tmp_path / "b.zarr", views=range(2, 4))
    reader = open_cache(tmp_path / "b.zarr")
    layout = row_layouts(reader.manifest.identity)["tables"]
    tables = reader.codec.tables_bytes().copy()
    tables[0] ^= 1
    (data,) = layout.encode(tables).values()
    (name,) = layout.object_names()
    (tmp_path / "b.zarr" / name).write_bytes(data)
    record = ObjectRecord.of(data)
    forge(tmp_path / "b.zarr", lambda stored: stored["objects"].update({name: [record.size, record.sha256]}))
    with pytest.raises(MismatchError, match=r"their codec tables differ.*--codec-from"):
        merge([tmp_path / "a.zarr", tmp_path / "b.zarr"], tmp_path / "c.zarr")


@pytest.fixture(scope="module")
def other(teacher: Network) -> Network:
    """Another teacher of the digits."""
    torch.manual_seed(7)
    model = deepcopy(teacher.model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * parameter.std(correction=0) * torch.randn_like(parameter))
    return replace(teacher, model=model.eval(), description=replace(teacher.description, weights="sha256:other"))


@pytest.fixture(scope="module")
def pair(
    tmp_path_factory: pytest.TempPathFactory, digits: ArraySource, teacher: Network, other: Network
) -> tuple[Path, Path]:
    """Two teachers' caches of the same two views, float32; not to be changed."""
    folder = tmp_path_factory.mktemp("pair")
    for name, one in (("a", teacher), ("b", other)):
        build_small(folder / f"{name}.zarr", digits, one, codec="dense:dtype=float32")
    return folder / "a.zarr", folder / "b.zarr"


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("given", [None, [0.7, 0.3], [1, 9]])
def test_the_mean_of_live_teachers(
    digits: ArraySource,
    teacher: Network,
    other: Network,
    pair: tuple[Path, Path],
    temperature: float,
    given: list[float] | None,
) -> None:
    both = gc.ensemble([open_cache(path) for path in pair], given)
    shares = [0.5, 0.5] if given is None else [weight / sum(given) for weight in given]
    assert both.weights == pytest.approx(shares)
    data = both.dataset(digits, temperature=temperature)
    assert data.replay.exact > 30
    assert not data.replay.rounding
    student = torch.randn(64, 10, requires_grad=True)
    for epoch in (0, 1):
        for images, labels, said in data.loader(epoch, batch_size=64, normalize=None):
            live = [one.logits(images) for one in (teacher, other)]
            probabilities = [
                share * (z.double() / temperature).softmax(-1) for share, z in zip(shares, live, strict=True)
            ]
            mean = torch.stack(probabilities).sum(0)
            torch.testing.assert_close((said.logits / temperature).softmax(-1), mean.float(), rtol=1e-5, atol=1e-6)
            assert torch.equal(said.top, top_classes(said.logits, 8))
            settings = gc.loss(f"gdkd:temperature={temperature}")
            losses = [settings(student, z, labels, said.top) for z in (said.logits, temperature * mean.log().float())]
            torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)
            assert not torch.allclose(said.logits.softmax(-1), live[0].softmax(-1), atol=1e-2)


def test_the_mean_of_sure_teachers() -> None:
    """In log space: teachers that are sure of other classes give finite logits."""
    one, two = torch.tensor([[300.0, 0, -300]]), torch.tensor([[-300.0, 0, 300]])
    logits = mean_logits([one, two], [0.25, 0.75], 1.0)
    torch.testing.assert_close(
        logits, torch.tensor([[0.25, 0.0, 0.75]]).log().nan_to_num(neginf=-300.0), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(mean_logits([one + 7, one], [0.5, 0.5], 4.0).diff(), one.diff())


def test_what_cannot_be_averaged(tmp_path: Path, digits: ArraySource, other: Network, pair: tuple[Path, Path]) -> None:
    def built(name: str, source: ArraySource = digits, **options: Any) -> Cache:
        build_small(tmp_path / name, source, other, **({"codec": "topk"} | options))
        return open_cache(tmp_path / name)

    first = open_cache(pair[0])
    labels = digits.labels.copy()
    labels[3] = (labels[3] + 1) % 10
    reverse = np.arange(256)[::-1].copy()
    gc.pack(tmp_path / "packed", np.zeros((2, 256, 10)), keys=list(digits.keys), labels=digits.labels, codec="dense")
    for cache, said in (
        (built("seed", seed=3), "views.seed is 3 there, 0 here"),
        (built("recipe", recipe="none"), "views.recipe.steps"),
        (built("views", num_views=3), "num_views is 3 there, 2 here"),
        (built("first", first_view=1), "views.first is 1 there, 0 here"),
        (built("order", take(digits, reverse)), "their keys, or the keys' order, differ"),
        (built("labels", replace(digits, labels=labels)), "their labels differ"),
        (built("rows", take(digits, np.arange(99))), "num_rows is 99 there, 256 here"),
        (open_cache(tmp_path / "packed"), "packed from logits computed elsewhere"),
    ):
        with pytest.raises(GdkdCacheError, match=said) as caught:
            gc.ensemble([first, cache])
        assert "\n" not in str(caught.value)
    for weights in ([1.0], [1.0, 0.0], [1.0, -1.0], [1.0, float("nan")], [1e308, 1e308], [1.0, 1e-300]):
        with pytest.raises(UsageError, match="weight"):
            gc.ensemble([first, first], weights)
    both = gc.ensemble([first, built("topk")])
    with pytest.raises(NotServedError, match=r"topk .*temperature"):
        both.require(gc.loss("gdkd:temperature=2.0"))
    with pytest.raises(NotServedError, match="standardizes"):
        both.require(gc.loss("kd:standardize=1"))
    with pytest.raises(UsageError, match="temperature is 0"):
        both.dataset(digits, temperature=0.0)
    moved = replace(digits, images=digits.images[..., ::-1].copy())
    with pytest.raises(MismatchError, match="different pixels"):
        both.dataset(moved, temperature=4.0)


def test_every_cache_is_replayed(tmp_path: Path, digits: ArraySource, pair: tuple[Path, Path]) -> None:
    """A second cache whose views are others than it says is refused, although the first one's are right."""
    shutil.copytree(pair[1], tmp_path / "b.zarr")
    build = open_cache(pair[1])
    layout = build.layouts["probe"]
    (name,) = layout.object_names(0)
    probes = build.column("probe", 0).copy()
    probes[probes.any(-1)] ^= 85
    (data,) = layout.encode(probes, view=0).values()
    (tmp_path / "b.zarr" / name).write_bytes(data)
    record = ObjectRecord.of(data)
    forge(tmp_path / "b.zarr", lambda stored: stored["objects"].update({name: [record.size, record.sha256]}))
    for order in ((pair[0], tmp_path / "b.zarr"), (tmp_path / "b.zarr", pair[0])):
        with pytest.raises(MismatchError, match="replay: view 0"):
            gc.ensemble([open_cache(path) for path in order]).dataset(digits, temperature=4.0)


def test_training_from_several_teachers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: Path) -> None:
    """The command, on all the digits: the same cache twice is that teacher, and weights are told."""
    monkeypatch.chdir(tmp_path)
    build = [
        "build",
        "--accept-teacher",
        "--data",
        "digits",
        "--teacher",
        "cnn-s",
        "--weights",
        weights,
        "--views",
        "1",
    ]
    assert _run(*build, "--codec", "dense", "--out", "a.zarr").exit_code == 0
    train = ["train", "--loss", "kd", "--data", "digits", "--student", "cnn-s", "--epochs", "1", "--cache", "a.zarr"]
    for out, more in (("one", []), ("two", ["--cache", "a.zarr", "--cache-weight", "0.7", "--cache-weight", "0.3"])):
        result = _run(*train, *more, "--out", out)
        assert result.exit_code == 0, result.output
    one, two = (json.loads(Path(out, "metrics.jsonl").read_text())["distillation"] for out in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-3)
    for more, said in (
        (["--cache-weight", "1", "--cache-weight", "2"], "--cache-weight is given 2 times, --cache 1 times"),
        (["--cache", "a.zarr", "--digest", "sha256:0"], "--digest is given 1 times, --cache 2 times"),
        (["--cache", "a.zarr", "--cache-weight", "1", "--cache-weight", "-1"], "weight is -1"),
    ):
        result = _run(*train, *more, "--out", "three")
        assert result.exit_code == 2
        assert said in result.stderr
    assert not Path("three").exists()
