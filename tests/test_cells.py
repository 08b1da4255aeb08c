"""Rows of several cells: a codec sees each cell as a row, and classification is the case of one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from gdkd_cache_cli.main import main

import gdkd_cache as gc
from gdkd_cache import open_cache, pack
from gdkd_cache.building.options import CodecChoice
from gdkd_cache.cache.rows import match_rows
from gdkd_cache.codec.base import Codec, exact_top, labels_of_cells
from gdkd_cache.codec.calibration import Calibration
from gdkd_cache.codec.fidelity import decode_rows
from gdkd_cache.data.source import ArraySource
from gdkd_cache.errors import CacheError, MismatchError, UsageError
from gdkd_cache.objects.record import ObjectRecord
from gdkd_cache.schema import from_json
from gdkd_cache.store.arrays import shards_fit
from gdkd_cache.store.cells import ONE_CELL, Cells
from gdkd_cache.store.facts import CodecFacts
from gdkd_cache.store.layout import encode_metadata, encode_rows, encode_shard, row_layouts, view_layouts
from gdkd_cache.store.manifest import MANIFEST_NAME, Identity, Manifest

_ROWS, _CLASSES = 40, 10
_CODECS = ("topk", "dense", "dense:dtype=float32", "transform:step=0.3")
_GRIDS = (
    ONE_CELL,
    Cells(height=2, width=3, labelled=True),
    Cells(height=1, width=4),
    Cells(height=2, width=2, outputs=("main", "aux")),
    Cells(height=2, width=2, outputs=("main", "aux"), labelled=True),
)


def _logits(cells: Cells) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [row, *grid, class] and labels, [row] or [row, *places]."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn((_ROWS, *cells.grid, _CLASSES), generator=generator)
    places = cells.places if cells.labelled else ()
    return logits, torch.randint(_CLASSES, (_ROWS, *places), generator=generator)


def _codec(spec: str, logits: torch.Tensor, labels: torch.Tensor) -> Codec:
    return Calibration(CodecChoice(codec=spec).request, logits, labels, stored_rows=len(logits)).choose().codec


def _write(path: Path, identity: Identity, codec: Codec, labels: torch.Tensor, logits: torch.Tensor) -> None:
    """A cache of one view, without probes."""
    cells = identity.cells
    keys = [str(row) for row in range(_ROWS)]
    columns = {name: column.numpy() for name, column in cells.encode(codec, logits, labels).items()}
    stored_labels = labels.view(_ROWS, *cells.label_axis).numpy()
    objects = encode_metadata(identity, codec) | encode_rows(identity, keys, stored_labels, None)
    objects |= encode_shard(view_layouts(identity, codec), 0, 0, columns)
    if "tables" in row_layouts(identity):
        objects |= row_layouts(identity)["tables"].encode(codec.tables_bytes())
    for name, data in objects.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    manifest = Manifest(identity, {name: ObjectRecord.of(data) for name, data in objects.items()})
    (path / MANIFEST_NAME).write_bytes(manifest.to_bytes())


@pytest.mark.parametrize("cells", _GRIDS, ids=str)
@pytest.mark.parametrize("spec", _CODECS)
def test_a_cache_of_cells(tmp_path: Path, digits_cache: Path, spec: str, cells: Cells) -> None:
    """Through columns, arrays and a view: what comes back is what the codec gives of the cells as rows."""
    logits, labels = _logits(cells)
    assert replace(Cells.of(logits, cells.outputs), labelled=cells.labelled) == cells
    flat, flat_labels = logits.reshape(-1, _CLASSES), labels_of_cells(labels, cells.grid)
    codec = _codec(spec, flat, flat_labels)
    identity = replace(
        open_cache(digits_cache).manifest.identity,
        num_rows=_ROWS,
        num_views=1,
        views=None,
        codec=from_json(CodecFacts, codec.to_json()),
        cells=cells,
    )
    identity = replace(identity, data=replace(identity.data, keys_bytes=sum(len(f"{row}\n") for row in range(_ROWS))))
    _write(tmp_path, identity, codec, labels, logits)
    cache = open_cache(tmp_path)
    assert [problem for _, problem in cache.problems() if problem is not None] == []
    assert cache.manifest.identity == identity
    assert (b'"cells"' in (tmp_path / MANIFEST_NAME).read_bytes()) == (cells != ONE_CELL)
    assert cache.labels.shape == (_ROWS, *cells.label_axis)
    wanted, top = decode_rows(codec, codec.encode(flat, flat_labels), flat_labels)
    rows = [7, 0, 39]
    view = cache.view(0)
    found = view.logits(rows)
    assert found.shape == (3, *cells.grid, _CLASSES)
    assert torch.equal(found, wanted.reshape(_ROWS, *cells.grid, _CLASSES)[rows])
    for ours, theirs in zip(view.topk(rows), top, strict=True):
        assert torch.equal(ours, theirs.reshape(_ROWS, *cells.grid, -1)[rows])
    assert view.logits([]).shape == (0, *cells.grid, _CLASSES)
    if spec == "dense:dtype=float32":
        assert torch.equal(found, logits[rows])


@pytest.mark.parametrize("cells", _GRIDS, ids=str)
def test_split_and_join(cells: Cells) -> None:
    """Each undoes the other, of arrays and tensors, also where a column is empty."""
    for shape in ((), (5,), (0,)):
        column = np.random.default_rng(0).normal(size=(_ROWS, *cells.axis, *shape))
        split = cells.split(column)
        assert split.shape == (_ROWS * cells.number, *shape)
        assert np.array_equal(cells.join(split), column)
        assert torch.equal(cells.join(cells.split(torch.from_numpy(column))), torch.from_numpy(column))


def test_labels_of_cells_are_no_classes(tmp_path: Path, digits_cache: Path, few: ArraySource) -> None:
    """A source with one label an image does not fit a cache of several cells a row."""
    cells = Cells(height=2, width=3, labelled=True)
    logits, labels = _logits(cells)
    codec = _codec("dense", logits.reshape(-1, _CLASSES), labels.reshape(-1))
    identity = replace(open_cache(digits_cache).manifest.identity, num_rows=_ROWS, num_views=1, views=None, cells=cells)
    identity = replace(identity, data=replace(identity.data, keys_bytes=110))
    _write(tmp_path, identity, codec, labels, logits)
    cache = open_cache(tmp_path)
    source = replace(few, keys=cache.keys)
    with pytest.raises(MismatchError, match=r"has labels \[6\] a row, source .* has \[\]"):
        match_rows(cache, source)


@pytest.mark.parametrize("spec", ["dense:dtype=float32", "topk:step=0.25"])
@pytest.mark.parametrize("cells", _GRIDS[1:], ids=str)
def test_pack(tmp_path: Path, cells: Cells, spec: str) -> None:
    """Logits of dense networks become a cache that gives them back, and tells the error of each output."""
    logits, labels = _logits(cells)
    given = labels if cells.labelled else None
    keys = [str(row) for row in range(_ROWS)]
    losses = ("gdkd:k=3", "kd")
    manifest = pack(
        tmp_path, [logits, -logits], keys=keys, labels=given, codec=spec, losses=losses, outputs=cells.outputs
    )
    assert manifest.identity.cells == cells
    names = [f"{gc.loss(loss)}{output}" for loss in losses for output in ("", " [aux]")[: len(cells.outputs) or 1]]
    assert [*manifest.identity.fidelity.gradient_error] == names
    assert (manifest.identity.examination is not None) == cells.labelled
    cache = open_cache(tmp_path)
    found = cache.view(1).decode([3, 1])
    assert found.logits.shape == (2, *cells.grid, _CLASSES)
    assert torch.equal(found.top.classes, exact_top(-logits[[3, 1]], 8).classes)
    if spec.startswith("dense"):
        assert torch.equal(found.logits, -logits[[3, 1]])


@pytest.mark.parametrize(
    ("shape", "given", "says"),
    [
        ((5, 2, 3, 4), {"labels": np.zeros(5, np.int64)}, "labels are .5.; give class ids .5, 2, 3., or none"),
        ((5, 2, 3, 4), {"outputs": ("main", "aux")}, "with outputs named"),
        ((5, 3, 2, 3, 4), {"outputs": ("main", "aux")}, "2 outputs are named, and the logits are of 3"),
        ((5, 2, 3, 4), {"outputs": ("main",)}, "several different names"),
        ((5, 1, 1, 4), {}, "one cell a row"),
        ((5, 2, 3, 4), {"codec": "transform:references=1"}, "lie elsewhere"),
        ((5, 4), {}, "not all whole numbers"),
    ],
)
def test_refusals(tmp_path: Path, shape: tuple[int, ...], given: dict[str, Any], says: str) -> None:
    """What does not fit is said in a line."""
    keys = [str(row) for row in range(5)]
    with pytest.raises(UsageError, match=says):
        pack(tmp_path / "cache", [np.zeros(shape)] * 2, keys=keys, losses=("gdkd:k=2",), num_top=2, **given)


@pytest.mark.parametrize("outputs", [["main"], ["main", "main"]], ids=str)
def test_outputs_of_a_manifest(digits_cache: Path, outputs: list[str]) -> None:
    """Names that no cache has are refused."""
    manifest = open_cache(digits_cache).manifest
    cells = Cells(height=2, width=2, outputs=tuple(outputs))
    forged = Manifest(replace(manifest.identity, cells=cells), manifest.objects)
    with pytest.raises(CacheError, match="several names"):
        Manifest.from_bytes(forged.to_bytes())


def test_shards_of_rows_of_cells() -> None:
    """Rows of many cells have fewer in a shard, always as many as a cache may have."""
    assert ONE_CELL.shard_rows(131072) == 131072
    for height in (1, 2, 9, 16, 33, 64, 1024):
        cells = Cells(height=height, width=26, outputs=("main", "aux"))
        rows = cells.shard_rows(131072)
        assert shards_fit(rows)
        assert rows * cells.number <= 2**24


def test_the_command_packs_cells(tmp_path: Path) -> None:
    logits = np.random.default_rng(0).normal(size=(2, 6, 2, 3, 4, 5)).astype(np.float32)
    np.save(tmp_path / "cells.npy", logits)
    np.save(tmp_path / "one.npy", logits[:, :, 0])
    given = ["--codec", "dense:dtype=float32", "--for", "gdkd:k=2"]
    for name, outputs in (("cells", ["--outputs", "main,aux"]), ("one", [])):
        out = tmp_path / f"{name}.zarr"
        result = CliRunner().invoke(main, ["pack", str(tmp_path / f"{name}.npy"), str(out), *given, *outputs])
        assert result.exit_code == 0, result.output
        view = open_cache(out).view(1)
        np.testing.assert_array_equal(view.logits(range(6)).numpy(), logits[1] if outputs else logits[1, :, 0])
    result = CliRunner().invoke(main, ["pack", str(tmp_path / "cells.npy"), str(tmp_path / "no.zarr"), *given])
    assert result.exit_code == 2
    assert "with outputs named [row, output, height, width, class]" in result.output
    assert not (tmp_path / "no.zarr").exists()
