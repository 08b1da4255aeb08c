"""Sidecars are somebody else's data too: read, or refused in one line, in little memory, whatever they hold."""

import contextlib
import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hostile import CODECS, FUZZ, mutable, mutations, outcome
from hypothesis import given, settings
from hypothesis import strategies as st
from small import write_shards

from gdkd_cache import open_source
from gdkd_cache.data.shards.source import ShardSource
from gdkd_cache.data.source import ArraySource
from gdkd_cache.sharing.convert import to_sidecars
from gdkd_cache.store.manifest import canonical_json, parse_json
from gdkd_cache.store.sidecars.listing import SIDECARS_NAME, SidecarSet


@pytest.fixture(scope="module")
def sidecars(tmp_path_factory: pytest.TempPathFactory, few: ArraySource, caches: dict[str, Path]) -> dict[str, Path]:
    """The caches as sidecars of three image shards."""
    images = tmp_path_factory.mktemp("images")
    write_shards(images, few, (16, 17, 7))
    source = open_source(f"wds:{images}/Train-{{0..2}}.tar", stream=True)
    assert isinstance(source, ShardSource)
    folder = tmp_path_factory.mktemp("sidecars")
    for codec in CODECS:
        to_sidecars(caches[codec], folder / codec, source)
        assert outcome(folder / codec, few) == "read"
    return {codec: folder / codec for codec in CODECS}


def _forge_listing(path: Path, mutated: dict[str, Any]) -> None:
    """Write sidecars.json with digests of its own and of the manifest in it."""
    manifest = mutated.get("manifest")
    for part in (manifest, mutated) if isinstance(manifest, dict) else (mutated,):
        part.pop("digest", None)
        part["digest"] = "sha256:" + hashlib.sha256(canonical_json(part)).hexdigest()
    (path / SIDECARS_NAME).write_bytes(canonical_json(mutated))


@pytest.mark.parametrize("codec", CODECS)
def test_any_listing_of_sidecars(tmp_path: Path, sidecars: dict[str, Path], few: ArraySource, codec: str) -> None:
    """sidecars.json with other values, types and fields, or a manifest of such, and digests that fit."""
    path = mutable(sidecars[codec], tmp_path)
    whole = (path / SIDECARS_NAME).read_bytes()
    outcomes: list[str] = []

    @FUZZ
    @given(mutations({**parse_json(SIDECARS_NAME, whole), "manifest": None}), st.booleans(), st.data())
    def check(mutated: dict[str, Any], manifest_too: bool, data: st.DataObject) -> None:
        (path / SIDECARS_NAME).write_bytes(whole)
        manifest = parse_json(SIDECARS_NAME, whole)["manifest"]
        if "manifest" in mutated and mutated["manifest"] is None:
            mutated["manifest"] = data.draw(mutations(manifest)) if manifest_too else manifest
        with contextlib.suppress(UnicodeEncodeError):
            _forge_listing(path, mutated)
            outcomes.append(outcome(path, few))

    check()
    assert len(outcomes) - outcomes.count("read") > 6


@pytest.mark.parametrize("codec", CODECS)
def test_any_bytes_in_sidecars(tmp_path: Path, sidecars: dict[str, Path], few: ArraySource, codec: str) -> None:
    """Records of any bytes, tar and .npy headers included, whose checksums fit."""

    spans = {
        name: _spans((sidecars[codec] / name).read_bytes(), own.records)
        for name, own in SidecarSet.from_bytes((sidecars[codec] / SIDECARS_NAME).read_bytes()).sidecars.items()
    }

    @settings(FUZZ, max_examples=6)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        path = mutable(sidecars[codec], tmp_path)
        listing = parse_json(SIDECARS_NAME, (path / SIDECARS_NAME).read_bytes())
        name = data.draw(st.sampled_from(sorted(listing["sidecars"])))
        octets = bytearray((path / name).read_bytes())
        end = spans[name][-1][1]
        for _ in range(data.draw(st.integers(1, 6))):
            place = data.draw(st.one_of(st.integers(0, end - 1), st.integers(0, end // 512 - 1).map(lambda n: n * 512)))
            octets[place] = data.draw(st.sampled_from([0, 1, 46, 47, 127, 128, 255]))
        records = [_sha256(octets[first:last]) for first, last in spans[name]]
        (path / name).write_bytes(octets)
        listing["sidecars"][name] |= {"records": records, "file": [len(octets), _sha256(octets)]}
        _forge_listing(path, listing)
        outcome(path, few)

    check()


def _spans(octets: bytes, records: Sequence[str]) -> list[tuple[int, int]]:
    """Where each record lies in its sidecar."""
    ends = [0]
    for digest in records:
        ends.append(
            next(end for end in range(ends[-1] + 512, len(octets), 512) if _sha256(octets[ends[-1] : end]) == digest)
        )
    return list(itertools.pairwise(ends))


def _sha256(data: bytes | bytearray) -> str:
    return hashlib.sha256(data).hexdigest()
