"""Up to a billion rows: shards grow with them, so that a manifest lists them all; more is refused at the start."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small import build_small

from gdkd_cache import open_cache
from gdkd_cache.checking.verify import verify
from gdkd_cache.data.source import ArraySource
from gdkd_cache.errors import CacheError
from gdkd_cache.limits import SHARD_ROWS, usual_shard_rows
from gdkd_cache.models.network import Network
from gdkd_cache.store import layout
from gdkd_cache.store.arrays import shards_fit
from gdkd_cache.store.layout import num_objects, row_layouts
from gdkd_cache.store.manifest import MOST_OBJECTS, Identity
from gdkd_cache.store.place import Begun, Place


def _large(cache: Path, rows: int, views: int) -> Identity:
    """The identity of a cache, with other extents and keys of 30 bytes."""
    identity = open_cache(cache).manifest.identity
    return replace(
        identity,
        num_rows=rows,
        num_views=views,
        data=replace(identity.data, keys_bytes=30 * rows),
        shard_rows=usual_shard_rows(rows),
    )


def test_shards_grow_with_the_rows() -> None:
    assert {usual_shard_rows(rows) for rows in (1, 14_197_122, 2**28)} == {SHARD_ROWS}
    for rows in (2**28 + 1, 10**9, 2**31, 10**10):
        assert usual_shard_rows(rows) > SHARD_ROWS
        assert shards_fit(usual_shard_rows(rows))


@pytest.mark.parametrize(("rows", "views"), [(1_281_167, 300), (14_197_122, 90), (10**9, 10), (10**9, 40)])
def test_a_manifest_lists_all_objects(caches: dict[str, Path], rows: int, views: int) -> None:
    cache = open_cache(caches["transform:step=0.3"])
    assert num_objects(cache.manifest.identity, cache.codec) <= len(cache.manifest.objects)
    assert num_objects(_large(caches["transform:step=0.3"], rows, views), cache.codec) <= MOST_OBJECTS


def test_too_many_objects_are_refused_before_anything_is_built(caches: dict[str, Path], tmp_path: Path) -> None:
    cache = open_cache(caches["transform:step=0.3"])
    identity = _large(caches["transform:step=0.3"], 10**9, 100)
    place = Place(tmp_path / "a.zarr", identity)
    place.look()
    with pytest.raises(
        CacheError, match=r"1,000,000,000 rows in 100 views are .* objects, and a manifest lists 300,000"
    ):
        place.begin(Begun(cache.codec, identity.fidelity, identity.examination))


def test_long_tables_have_large_shards(
    tmp_path: Path, digits: ArraySource, teacher: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a billion keys would: what is written is what is read."""
    plain = open_cache(build_at(tmp_path / "a.zarr", digits, teacher))
    keys, labels = list(plain.keys), plain.labels
    monkeypatch.setattr(layout, "_LONG", 200)
    monkeypatch.setattr(layout, "SHARD_ROWS", 64)
    monkeypatch.setattr(layout, "MOST_SHARD_ROWS", 256)
    cache = open_cache(build_at(tmp_path / "b.zarr", digits, teacher))
    assert row_layouts(cache.manifest.identity)["keys"].shard_rows == 256
    assert (list(cache.keys), verify(tmp_path / "b.zarr").problems) == (keys, ())
    assert np.array_equal(cache.labels, labels)


def build_at(out: Path, source: ArraySource, teacher: Network) -> Path:
    build_small(out, source, teacher, num_views=1)
    return out
