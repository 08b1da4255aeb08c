"""A cache is somebody else's data: whatever it holds, it is read, or refused in one line, in little memory."""

import contextlib
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile import CODECS, FUZZ, mutable, mutations, outcome
from hypothesis import given
from hypothesis import strategies as st
from numcodecs import Zstd
from small import build_small, counting, forge, forge_object, layouts_of, stored_array

from gdkd_cache import open_cache, pack
from gdkd_cache.checking.verify import verify
from gdkd_cache.data.recipes.recipe import Recipe
from gdkd_cache.data.source import ArraySource
from gdkd_cache.errors import CacheError, GdkdCacheError
from gdkd_cache.models.network import Network
from gdkd_cache.objects.record import ObjectRecord
from gdkd_cache.store.layout import check_objects, row_layouts, view_layouts
from gdkd_cache.store.manifest import MANIFEST_NAME, Manifest, canonical_json, parse_json


@pytest.mark.parametrize("codec", CODECS)
def test_any_manifest(tmp_path: Path, caches: dict[str, Path], few: ArraySource, codec: str) -> None:
    """A manifest with other values, other types, other fields, and a digest that fits."""
    path = mutable(caches[codec], tmp_path)
    whole = (path / MANIFEST_NAME).read_bytes()
    outcomes: list[str] = []

    @FUZZ
    @given(mutations(parse_json(MANIFEST_NAME, whole)))
    def check(mutated: dict[str, Any]) -> None:
        (path / MANIFEST_NAME).write_bytes(whole)
        with contextlib.suppress(UnicodeEncodeError):  # lone surrogates have no bytes to be written as
            forge(path, lambda stored: (stored.clear(), stored.update(mutated)))
            outcomes.append(outcome(path, few))

    check()
    assert len(outcomes) - outcomes.count("read") > 6


@pytest.mark.parametrize("codec", CODECS)
def test_any_column(tmp_path: Path, caches: dict[str, Path], few: ArraySource, codec: str) -> None:
    """Columns, tables, labels and keys with other values, in objects whose checksums fit."""
    layouts = layouts_of(caches[codec])

    @FUZZ
    @given(st.data())
    def check(data: st.DataObject) -> None:
        path = mutable(caches[codec], tmp_path)
        layout = layouts[data.draw(st.sampled_from(sorted(layouts)))]
        view = None if layout.num_views is None else 0
        part = stored_array(path, layout, view)
        octets = part.reshape(-1).view(np.uint8)
        for _ in range(data.draw(st.integers(1, 4))):
            octets[data.draw(st.integers(0, len(octets) - 1))] = data.draw(st.integers(0, 255))
        if data.draw(st.booleans()):
            part[data.draw(st.integers(0, len(part) - 1))] = data.draw(st.sampled_from([0, 1, 127]))
        for object_name, encoded in layout.encode(part, view=view).items():
            forge_object(path, object_name, encoded)
        outcome(path, few)

    check()


@pytest.mark.parametrize("codec", CODECS)
def test_any_bytes(tmp_path: Path, caches: dict[str, Path], few: ArraySource, codec: str) -> None:
    """Objects of any bytes whose checksums fit: garbage, cut, or with a shard index that lies."""
    names = sorted(name for name in open_cache(caches[codec]).manifest.objects if "/c/" in name)

    @FUZZ
    @given(st.data())
    def check(data: st.DataObject) -> None:
        path = mutable(caches[codec], tmp_path)
        name = data.draw(st.sampled_from(names))
        octets = bytearray((path / name).read_bytes())
        for _ in range(data.draw(st.integers(1, 6))):
            octets[data.draw(st.integers(-24, len(octets) - 1))] = data.draw(st.sampled_from([0, 1, 127, 128, 255]))
        cut = data.draw(st.sampled_from([len(octets), len(octets), 0, 3, 20, len(octets) // 2]))
        forge_object(path, name, bytes(octets[:cut]))
        outcome(path, few)

    check()


def _zstd_bomb(size: int) -> bytes:
    """A frame of `size` zeros that does not say how many it holds: four bytes for each 128 KiB."""
    blocks = [(1 << 1 | 131072 << 3).to_bytes(3, "little") + b"\0"] * (size // 131072)
    last = (1 | 1 << 1 | 1 << 3).to_bytes(3, "little") + b"\0"
    return bytes.fromhex("28b52ffd0058") + b"".join(blocks) + last


def _claimed(size: int) -> bytes:
    """A frame whose header claims any content size."""
    return bytes.fromhex("28b52ffde0") + size.to_bytes(8, "little") + b"\x01\0\0"


@pytest.mark.parametrize("frame", [_zstd_bomb(4 * 2**30), _claimed(100 * 2**30), Zstd().encode(bytes(2**26))])
def test_a_chunk_that_expands(tmp_path: Path, caches: dict[str, Path], few: ArraySource, frame: bytes) -> None:
    """A chunk of more bytes than its layout says is refused before it is expanded."""
    from google_crc32c import value as crc32c

    path = mutable(caches["dense"], tmp_path)
    chunk = frame + crc32c(frame).to_bytes(4, "little")
    index = (0).to_bytes(8, "little") + len(chunk).to_bytes(8, "little")
    forge_object(path, "logits/c/0/0/0", chunk + index + crc32c(index).to_bytes(4, "little"))
    assert "logits, view 0: a shard cannot be decoded" in outcome(path, few)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_rows": 10**12}, "claims 1000000000000 rows"),
        ({"num_views": 2**20}, "claims 40 rows in 1048576 views"),
        ({"num_views": 10**12}, "num_views is 1000000000000"),
        ({"shard_rows": 20000}, "shard_rows is 20000"),
        ({"num_rows": True}, "num_rows is True; expected a whole number"),
        ({"views": {"recipe": Recipe("x").to_json(), "seed": 0, "size": [8, 8], "y": 1}}, "views.y is not known"),
        ({"classes": ["a"] * 200_000}, "the number of classes is 200000"),
        ({"cells": {"height": 1024, "width": 1024}}, "objects are not those of its arrays"),
        ({"cells": {"height": 2**20, "width": 1}}, "cells.height is 1048576"),
    ],
)
def test_extents_that_lie(
    tmp_path: Path, caches: dict[str, Path], few: ArraySource, change: dict[str, Any], said: str
) -> None:
    path = mutable(caches["dense"], tmp_path)
    forge(path, lambda stored: stored["identity"].update(change))
    assert said in outcome(path, few)


@pytest.mark.parametrize("codec", CODECS)
def test_objects_that_expand(caches: dict[str, Path], codec: str) -> None:
    """16 million rows in objects of a hundred bytes each: listed as they must be, and refused."""
    reader = open_cache(caches[codec])
    identity = replace(reader.manifest.identity, num_rows=2**24, shard_rows=2**17)
    layouts = row_layouts(identity) | view_layouts(identity, reader.codec)
    names = ["zarr.json", *(name for layout in layouts.values() for name in layout.all_names())]
    manifest = Manifest(identity, {name: ObjectRecord(100, "0" * 64) for name in names})
    with pytest.raises(CacheError, match="would expand from"):
        check_objects(manifest, reader.codec)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"[" * 20_000_000, "larger than"),
        (b'{"a":' * 100 + b"1" + b"}" * 100, "was edited"),
        (b'{"a":[' + b"1," * 2**21 + b"1]}", "larger than"),
        (b'{"a":NaN}', "not JSON"),
        (b'{"a":1e999}', "not JSON"),
        (b'{"a":1,"a":2}', "was edited"),
        (b'{"a":"\\ud800"}', "not JSON"),
        (b'{"a":%s}' % (b"9" * 5000), "not JSON"),
        (b"\xff\xfe{\0}\0", "was edited"),
        (b"x" * (33 * 2**20), "larger than"),
    ],
    ids=["brackets", "deep", "many", "nan", "infinity", "twice", "surrogate", "digits", "utf-16", "large"],
)
def test_json_that_lies(tmp_path: Path, caches: dict[str, Path], few: ArraySource, data: bytes, said: str) -> None:
    path = mutable(caches["dense"], tmp_path)
    (path / MANIFEST_NAME).write_bytes(data)
    assert said in outcome(path, few)


@pytest.mark.parametrize(
    ("codec", "name", "change", "said"),
    [
        ("dense", "classes", lambda a: a.__setitem__((3, 1), a[3, 0]), "row 3 holds a class twice"),
        ("dense", "classes", lambda a: a.__setitem__((3, 1), 10), "class id is 10"),
        ("dense", "classes", lambda a: a.__setitem__((3, 1), 255), "no data for row 3"),
        ("dense", "classes", lambda a: a.__setitem__(3, a[3, ::-1].copy()), "row 3 holds top classes out of the order"),
        ("dense", "logits", lambda a: a.__setitem__((2, 0), np.inf), "row 2 holds a number that is not finite"),
        ("dense", "logits", lambda a: a.__setitem__((2, 0), np.nan), "no data for row 2"),
        ("topk", "tail", lambda a: a.__setitem__((2, 0), np.inf), "row 2 holds a number that is not finite"),
        ("topk", "label", lambda a: a.__setitem__(slice(None), 0), "a label's logit above those of its top"),
        ("transform:step=0.3", "packed", lambda a: a.__setitem__((5, 0), 255), "no data for row 5"),
        ("transform:step=0.3", "tables", lambda a: a.__setitem__(slice(-60, None), 0), "the codec's tables hold"),
        ("dense", "labels", lambda a: a.__setitem__(7, 10), "a class id of 10"),
        ("dense", "keys", lambda a: a.__setitem__(slice(None), 10), "distinct keys for 40 rows"),
        ("dense", "probe", lambda a: a.__setitem__(0, 255), "no data for row 0"),
    ],
)  # fmt: skip
def test_values_that_no_encoder_writes(
    tmp_path: Path, caches: dict[str, Path], few: ArraySource, codec: str, name: str, change: Any, said: str
) -> None:
    path = mutable(caches[codec], tmp_path)
    layout = layouts_of(path)[name]
    view = None if layout.num_views is None else 0
    part = stored_array(path, layout, view)
    change(part)
    for object_name, encoded in layout.encode(part, view=view).items():
        forge_object(path, object_name, encoded)
    assert said in outcome(path, few)
    assert any(said in problem for problem in verify(path, deep=True).problems)


def _link_file(path: Path, outside: Path) -> None:
    target = path / "logits/c/0/0/0"
    shutil.move(target, outside)
    target.symlink_to(outside)


def _link_folder(path: Path, outside: Path) -> None:
    shutil.move(path / "logits", outside)
    (path / "logits").symlink_to(outside)


def _link_manifest(path: Path, outside: Path) -> None:
    shutil.move(path / MANIFEST_NAME, outside)
    (path / MANIFEST_NAME).symlink_to(outside)


def _make_pipe(path: Path, outside: Path) -> None:
    (path / "logits/c/0/0/0").unlink()
    os.mkfifo(path / "logits/c/0/0/0")


@pytest.mark.parametrize(
    ("damage", "said"),
    [(_link_file, "symbolic link"), (_link_folder, "symbolic link"), (_link_manifest, "symbolic link"),
     (_make_pipe, "no plain file")],
)  # fmt: skip
def test_links_and_pipes(
    tmp_path: Path, caches: dict[str, Path], few: ArraySource, damage: Callable[[Path, Path], None], said: str
) -> None:
    path = mutable(caches["dense"], tmp_path)
    damage(path, tmp_path / "outside")
    assert said in outcome(path, few)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "logits/../../x", "logits/c/0/0/9", "x" * 300, "logits", ""])
def test_object_names_that_are_no_objects(tmp_path: Path, caches: dict[str, Path], few: ArraySource, name: str) -> None:
    path = mutable(caches["dense"], tmp_path)
    (tmp_path / "x").write_bytes(b"secret")
    forge(path, lambda stored: stored["objects"].update({name: [6, "0" * 64]}))
    assert "objects are not those of its arrays" in outcome(path, few)
    assert verify(path).problems


def test_keys_are_data(tmp_path: Path, few: ArraySource, teacher: Network) -> None:
    """Keys that look like paths, commands or control sequences are strings, and no file is ever named by one."""
    odd = [
        "../../etc/passwd",
        "/etc/passwd",
        "$(touch x)",
        "; rm -rf .",
        "\x1b[2J",
        "..",
        "manifest.json",
        "logits/c/0/0/0",
    ]
    source = replace(few, keys=[*odd, *few.keys[len(odd) :]])
    (tmp_path / "in").mkdir()
    build_small(tmp_path / "in" / "a.zarr", source, teacher, codec="dense")
    assert outcome(tmp_path / "in" / "a.zarr", source) == "read"
    assert open_cache(tmp_path / "in" / "a.zarr").keys == source.keys
    logits = np.random.default_rng(0).normal(size=(1, 40, 10)).astype(np.float32)
    pack(tmp_path / "in" / "b.zarr", logits, keys=list(source.keys), labels=few.labels, codec="dense")
    assert open_cache(tmp_path / "in" / "b.zarr").keys == source.keys
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]
    names = {p.relative_to(tmp_path / "in" / "a.zarr").as_posix() for p in (tmp_path / "in" / "a.zarr").rglob("*")}
    assert not any(key in name for key in odd[:6] for name in names)


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ({"step": "random_crop", "size": 8, "padding": 10**9}, "padding"),
        ({"step": "random_crop", "size": 8.0, "padding": 1}, "recipe"),
        ({"step": "random_crop", "size": "8", "padding": 1}, "recipe"),
        ({"step": ["x"]}, "recipe"),
        ({"size": 8}, "recipe"),
    ],
)
def test_recipes_that_lie(
    tmp_path: Path, caches: dict[str, Path], few: ArraySource, step: dict[str, Any], said: str
) -> None:
    path = mutable(caches["dense"], tmp_path)
    forge(path, lambda stored: stored["identity"]["views"]["recipe"].update(steps=[step]))
    assert said in outcome(path, few)


def test_any_unfinished_build(tmp_path: Path, few: ArraySource, teacher: Network) -> None:
    """build.json and ledger records with other values: the build resumes to the very same bytes, or refuses."""
    options: dict[str, Any] = {"codec": "dense", "shard_rows": 16}
    whole = build_small(tmp_path / "whole", few, teacher, **options).manifest.digest
    unfinished = tmp_path / "unfinished"
    with pytest.raises(KeyboardInterrupt):
        build_small(unfinished, few, counting(teacher, 140)[0], **options)
    names = ["build.json", *(p.relative_to(unfinished).as_posix() for p in sorted(unfinished.glob("ledger/*/*.json")))]
    assert len(names) > 2
    resumed = 0

    @FUZZ
    @given(st.data())
    def check(data: st.DataObject) -> None:
        nonlocal resumed
        path = mutable(unfinished, tmp_path)
        name = data.draw(st.sampled_from(names))
        mutated = data.draw(mutations(parse_json(name, (path / name).read_bytes())))
        with contextlib.suppress(UnicodeEncodeError):
            (path / name).write_bytes(canonical_json(mutated))
            if name == "build.json":
                forge(path, lambda stored: None, name)
            with contextlib.suppress(GdkdCacheError):
                assert build_small(path, few, teacher, **options).manifest.digest == whole
                resumed += 1

    check()
    assert resumed > 5
