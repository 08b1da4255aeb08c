"""What a manifest says of a cache goes through its dataclasses to the very same JSON, and nothing else is let in."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small import forge

from gdkd_cache import open_cache
from gdkd_cache.errors import CacheError
from gdkd_cache.schema import Absent, check_json, from_json, kind_of, to_json
from gdkd_cache.store.facts import BuildFacts, Card, CodecFacts, PartFacts
from gdkd_cache.store.manifest import Identity, canonical_json

_PART = {"batch_size": 64, "device": "cpu", "precision": "float32", "software": {"zarr": "3"}}
_PARTS = {"parts": [{"first": 0, "num_views": 1, **_PART}, {"first": 1, "num_views": 1, "batch_size": 100}]}
_PACKED = {"name": "logits computed elsewhere", "logits": "sha256:0"}


@pytest.fixture
def stored(digits_cache: Path) -> dict[str, Any]:
    """The identity of a cache as its manifest holds it."""
    return json.loads((digits_cache / "manifest.json").read_bytes())["identity"]


_KEPT: list[Any] = [
    lambda stored: None,
    lambda stored: stored["views"].pop("first"),
    lambda stored: stored["views"].update(first=7),
    lambda stored: stored["teacher"].update(accuracy=None),
    lambda stored: stored["teacher"].pop("accuracy"),
    lambda stored: stored["teacher"].update(accuracy=1, mean=[0, 0.5, 1]),
    lambda stored: stored.update(views=None, teacher=_PACKED, build={"software": {"zarr": "3"}}),
    lambda stored: stored.update(build=_PARTS),
    lambda stored: stored.update(build={}),
    lambda stored: stored.update(card={"contact": "Ada"}),
    lambda stored: stored.update(cells={"height": 2, "width": 3}),
    lambda stored: stored["fidelity"].update(top1_agreement=None, gradient_error={}, max_error=0),
    lambda stored: stored["codec"].update(name="topk", temperatures=[4, 1.5], tables_bytes=3, losses=[{"k": 5}]),
]


@pytest.mark.parametrize("change", _KEPT, ids=range(len(_KEPT)))
def test_the_same_json(stored: dict[str, Any], change: Callable[[dict[str, Any]], object]) -> None:
    """To the byte: keys that are absent stay so, null is null, and whole numbers stay whole."""
    change(stored)
    check_json("identity", stored, kind_of(Identity))
    identity = from_json(Identity, stored)
    assert canonical_json(to_json(identity)) == canonical_json(stored)
    assert from_json(Identity, to_json(identity)) == identity


_REFUSED: list[Any] = [
    (lambda stored: stored.update(num_rows=True), "identity.num_rows is True; expected a whole number"),
    (lambda stored: stored["views"].update(y=1), "views.y is not known to this version"),
    (lambda stored: stored["views"].update(first=None), "views.first is None; expected a whole number"),
    (lambda stored: stored["views"].update(size=8), "views.size is 8; expected a list"),
    (lambda stored: stored["views"]["recipe"].update(steps=[3]), r"recipe.steps\[0\] is 3; expected an object"),
    (lambda stored: stored.update(views=3), "views is 3; expected an object or null"),
    (lambda stored: stored["teacher"].update(accuracy="x"), "accuracy is x; expected a finite number or null"),
    (lambda stored: stored["teacher"].update(weights=None), "weights is None; expected a text"),
    (lambda stored: stored["data"].pop("digest"), "data.digest is missing"),
    (lambda stored: stored.update(build={"parts": [_PART]}), r"parts\[0\].first is missing"),
    (lambda stored: stored.update(build={"software": {"a": 3}}), "software.a is 3; expected a text"),
    (lambda stored: stored.update(card={"other": "x"}), "card.other is not known"),
    (lambda stored: stored["codec"].pop("num_top"), "codec.num_top is missing"),
]


@pytest.mark.parametrize(("change", "said"), _REFUSED, ids=range(len(_REFUSED)))
def test_other_json_is_refused(stored: dict[str, Any], change: Callable[[dict[str, Any]], object], said: str) -> None:
    change(stored)
    with pytest.raises(CacheError, match=said):
        check_json("identity", stored, kind_of(Identity))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cells": {"height": 0, "width": 1}}, "cells.height is 0"),
        ({"cells": {"height": 1, "width": 2**40}}, "cells.width is"),
        ({"cells": {"height": 1, "width": 1}}, "digest is not its own"),  # it is left out
        ({"card": {}}, "digest is not its own"),
        ({"build": {"parts": [{"first": 0, "num_views": 2, "batch_size": 2**40}]}}, "build.batch_size of view 0 is"),
    ],
)
def test_numbers_out_of_range(tmp_path: Path, digits_cache: Path, change: dict[str, Any], said: str) -> None:
    (tmp_path / "manifest.json").write_bytes((digits_cache / "manifest.json").read_bytes())
    forge(tmp_path, lambda stored: stored["identity"].update(change))
    with pytest.raises(CacheError, match=said):
        open_cache(tmp_path)


def test_facts(stored: dict[str, Any]) -> None:
    """What is said, what is not, and what is null are three things; a codec keeps the fields that are its own."""
    identity = from_json(Identity, stored)
    assert identity.card == Card()
    assert identity.codec == CodecFacts(name="dense", num_classes=10, num_top=8, rest={"dtype": "float16"})
    del stored["teacher"]["accuracy"]
    assert from_json(Identity, stored).teacher.accuracy is Absent.ABSENT


def test_what_built_a_view(stored: dict[str, Any]) -> None:
    """Of one build, of a merged cache, and of a view of which nothing is stated."""
    identity = from_json(Identity, stored)
    assert identity.built(1).batch_size == identity.build.batch_size == 64
    merged = from_json(Identity, stored | {"build": _PARTS})
    assert [merged.built(view).batch_size for view in range(3)] == [64, 100, None]
    assert merged.built(2) == BuildFacts()
    assert merged.of_views(range(1, 2)).build.batch_size == 100
    assert merged.of_views(range(2)).build == merged.build
    assert merged.parts[1] == PartFacts(first=1, num_views=1, batch_size=100)
