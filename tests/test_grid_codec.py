"""The grid codec: rows of cells whole, to few bytes and back, each output within its error, ids alike everywhere."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import gdkd_cache as gc
from gdkd_cache.building.options import CodecChoice
from gdkd_cache.codec.base import exact_top
from gdkd_cache.codec.calibration import Calibration
from gdkd_cache.codec.fidelity import decode_rows, encode_rows, measure
from gdkd_cache.codec.grid.blocks import CELLS, COSINES, COSINES_SCALE, inside, joined, split
from gdkd_cache.codec.grid.codec import GridCodec
from gdkd_cache.codec.grid.order import NUM_SEGMENTS, Segments, by_doubt, segments
from gdkd_cache.codec.grid.plane import Plane
from gdkd_cache.codec.grid.quantise import quantise
from gdkd_cache.codec.grid.tables import GridTables
from gdkd_cache.codec.stored import codec_from_json
from gdkd_cache.errors import CacheError, UsageError

_LOSS = "gdkd:k=3,w2=2,temperature=1"
_ROWS, _HEIGHT, _WIDTH, _CLASSES = 8, 9, 13, 5
_OUTPUTS = ("main", "aux")


def _logits(rows: int = _ROWS, seed: int = 0) -> Tensor:
    """Smooth maps with some noise: [row, output, height, width, class]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = 4 * torch.randn(2 * rows, _CLASSES, 3, 3, generator=generator)
    maps = F.interpolate(coarse, (_HEIGHT, _WIDTH), mode="bicubic").movedim(1, -1)
    noise = 0.3 * torch.randn(maps.shape, generator=generator)
    return (maps + noise).view(rows, 2, _HEIGHT, _WIDTH, _CLASSES)


def _labels(rows: int = _ROWS) -> Tensor:
    return torch.zeros(rows, dtype=torch.int64)


def _calibration(logits: Tensor, spec: str = "grid:step=1", fidelity: float = 0.1) -> Calibration:
    request = CodecChoice(codec=spec, fidelity=fidelity, losses=(_LOSS,)).request
    outputs = _OUTPUTS if logits.ndim == 5 else ()
    return Calibration(request, logits, _labels(len(logits)), stored_rows=1000, outputs=outputs)


@pytest.fixture(scope="module")
def codec() -> GridCodec:
    found = _calibration(_logits()).choose().codec
    assert isinstance(found, GridCodec)
    return found


@pytest.fixture(scope="module")
def columns(codec: GridCodec) -> dict[str, Tensor]:
    return encode_rows(codec, _logits(seed=1), _labels())


def test_blocks() -> None:
    """Cosines are nearly orthonormal, blocks cover a grid, and joining undoes splitting."""
    gram = COSINES.T @ COSINES / COSINES_SCALE**2
    assert np.abs(gram - np.eye(CELLS)).max() < 0.01
    grids = torch.randn(3, 11, 17, 5)
    blocks = split(grids)
    assert blocks.shape == (3 * 2 * 3, 64, 5)
    assert torch.equal(joined(blocks, 11, 17), grids)
    assert int(inside(11, 17).sum()) == 11 * 17


def test_quantiser() -> None:
    """What it chooses costs less than rounding, by what it minimises."""
    generator = torch.Generator().manual_seed(0)
    cosines = torch.from_numpy(COSINES / COSINES_SCALE).float()
    basis = torch.linalg.qr(torch.randn(5, 3, generator=generator))[0]
    residual = cosines @ (4 * torch.randn(20, 64, 3, generator=generator) / (1 + torch.arange(64.0)[:, None])) @ basis.T
    weights = torch.rand(20, 64, 5, generator=generator) ** 3
    costs = torch.tensor([4.0, 2.0]).expand(64, 3, 2).clone()
    costs[60, 2] = torch.inf
    variances = torch.ones(64, 3)

    def cost(numbers: Tensor) -> float:
        left = residual - cosines @ numbers @ basis.T
        size = numbers.abs()
        bits = (4 * (size > 0) + 2 * (size - 1).clamp(min=0)).sum()
        return float(((weights + 0.01) * left.square()).sum() + 0.05 * bits)

    chosen, rounded = (quantise(residual, weights, cosines, basis, costs, variances, p) for p in (0.05, 0.0))
    assert torch.equal(chosen, chosen.round())
    assert not chosen[:, 60, 2].any()
    assert cost(chosen) < 0.8 * cost(rounded)


def test_segments() -> None:
    """Ranks of any number of cells survive bytes, also those that no pattern names."""
    generator = torch.Generator().manual_seed(0)
    for num_cells in (1, 5, 143):
        costs = np.tile(np.array([0, 40, 30], np.uint8), (NUM_SEGMENTS, 2, 1))
        coding = Segments(costs, (1 + np.arange(NUM_SEGMENTS) % 4).astype(np.uint8), num_cells)
        ranks = (torch.rand(7, num_cells, 2, generator=generator).pow(8) * 5).long()
        packed, escape = coding.pack(ranks)
        assert packed.shape == (7, len(coding))
        assert torch.equal(coding.unpack(packed, escape), ranks)
        coding.check(packed.numpy(), escape.numpy(), 6)
        assert sum(map(len, segments(num_cells))) == num_cells


def test_order_of_doubt() -> None:
    """Cells whose classes are hardly told apart come first; equal ones as they lie."""
    scores = torch.tensor([[[9, 5, 0], [9, 8, 0], [9, 5, 4], [3, 0, 9], [1, 2, 3]]]).double()
    assert by_doubt(scores, 2).tolist() == [[1, 2, 4, 3, 0]]


def test_round_trip(codec: GridCodec, columns: dict[str, Tensor]) -> None:
    """Exact ids in rank order, values in that order, the same bytes and logits of any row alone."""
    logits = _logits(seed=1)
    decoded, top = decode_rows(codec, columns, _labels())
    assert decoded.shape == logits.shape
    assert torch.equal(top.classes, exact_top(logits, 3).classes)
    assert torch.equal(decoded.gather(-1, top.classes), top.values)
    assert (top.values.diff(dim=-1) <= 0).all()
    assert (decoded.scatter(-1, top.classes, -torch.inf) <= top.values[..., -1:]).all()
    centred = logits - logits.mean(-1, keepdim=True)
    assert float((decoded - centred).square().mean().sqrt()) < 0.7
    row = slice(5, 6)
    alone, _ = decode_rows(codec, {name: column[row] for name, column in columns.items()}, _labels(1))
    assert torch.equal(alone, decoded[row])
    again = codec.encode(logits[row], _labels(1))
    assert all(torch.equal(again[name], column[row]) for name, column in columns.items())
    empty, _ = codec.decode({name: column[:0] for name, column in columns.items()}, _labels(0))
    assert empty.shape == (0, *logits.shape[1:])


def test_stored(codec: GridCodec, columns: dict[str, Tensor]) -> None:
    """Its JSON and tables are all that decoding needs; damaged ones are refused."""
    stored, tables = codec.to_json(), codec.tables_bytes()
    again = codec_from_json(stored, tables)
    assert again.to_json() == stored
    assert torch.equal(*(decode_rows(one, columns, _labels()).logits for one in (codec, again)))
    for name, value in (
        ("num_outputs", 0),
        ("num_outputs", 3),
        ("height", 0),
        ("num_components", [300, 1]),
        ("num_coded", [2**20, 1]),
        ("num_wide", [-1, 0]),
        ("num_groups", [0, 1]),
        ("step", [0.0, 1.0]),
        ("num_top", 5),
        ("height", "9"),
    ):
        with pytest.raises(CacheError):
            codec_from_json(stored | {name: value}, tables)
    with pytest.raises(CacheError):
        codec_from_json(stored | {"tables_bytes": len(tables) - 1}, tables[:-1])
    refused = 0
    for place in range(0, len(tables), 23):
        damaged = tables.copy()
        damaged[place] ^= 0xFF
        try:
            other = codec_from_json(stored, damaged)
            other.check({name: column.numpy() for name, column in columns.items()}, _labels().numpy())
            other.decode(columns, _labels())  # whatever it says, it says something
        except CacheError:
            refused += 1
    assert refused


def test_hostile_columns(codec: GridCodec, columns: dict[str, Tensor]) -> None:
    """Random damage is refused or decodes to numbers; what no encoder writes is refused by the row."""
    stored = {name: column.numpy() for name, column in columns.items()}
    generator = np.random.default_rng(0)
    refused, said = 0, []
    for _ in range(60):
        name = ("packed", "ranks", "escape")[generator.integers(3)]
        damaged = {other: column.copy() for other, column in stored.items()}
        row = tuple(generator.integers(extent) for extent in damaged[name].shape)
        damaged[name][row] = generator.integers(np.iinfo(damaged[name].dtype).min, np.iinfo(damaged[name].dtype).max)
        try:
            found, top = decode_rows(codec, {one: torch.from_numpy(two) for one, two in damaged.items()}, _labels())
        except CacheError as error:
            refused += 1
            said.append(f"row {row[0]} " in str(error))
            continue
        assert found.isfinite().all()
        assert (top.classes.sort(-1).values.diff(dim=-1) > 0).all()
    assert 20 < refused < 60
    assert all(said)


@pytest.mark.parametrize("fidelity", [0.3, 0.1])
def test_errors_met(fidelity: float) -> None:
    """Each output meets the error on rows that it was not fitted to, at its own step; coarser ones take fewer bytes."""
    calibration = _calibration(_logits(24), "grid", fidelity)
    choice = calibration.choose()
    assert choice.codec.name == "grid"
    assert [*choice.fidelity.gradient_error] == [f"{gc.loss(_LOSS)}", f"{gc.loss(_LOSS)} [aux]"]
    assert all(0.8 * fidelity < error <= fidelity for error in choice.fidelity.gradient_error.values())
    other, _ = measure(choice.codec, _logits(12, 2), _labels(12), calibration.request.losses, outputs=_OUTPUTS)
    assert all(error <= 1.15 * fidelity for error in other.gradient_error.values())


def test_pinned() -> None:
    """Bytes and what they say are these very ones on every machine: of tables that are written down here."""
    number, num_wide = 40, 2
    costs = np.tile(np.array([1, 48, 24], np.uint8), (number + num_wide, 1))
    tables = GridTables(
        mean=np.arange(-3, 3, dtype=np.int32) * 1000,
        basis=(np.arange(18) * 37 % 255 - 127).reshape(6, 3).astype(np.int8),
        coded=(np.arange(number) * 5 % (CELLS * 3)).astype(np.uint16),
        variances=np.ones(number, np.float32),
        costs=costs,
        groups=np.array([1] * 4 + [2] * 19, np.uint8),
        rank_costs=np.tile(np.array([0, 48, 24], np.uint8), (NUM_SEGMENTS, 3, 1)),
        rank_widths=np.full(NUM_SEGMENTS, 2, np.uint8),
    )
    plane = Plane(
        height=11, width=13, num_top=3, step=0.5, penalty=0.0, weight_scale=1.0, losses=(gc.loss("kd"),), tables=tables
    )
    cells = torch.arange(2 * 11 * 13 * 6, dtype=torch.float32).view(2, 11, 13, 6)
    logits = (cells * 7919 % 1021) / 128
    packed, names, escapes = plane.encode(logits, None)
    plane.check(packed.numpy(), names.numpy(), escapes.numpy())
    decoded, values, classes = plane.decode(packed, names, escapes)
    assert torch.equal(classes.view(2, 11, 13, 3), exact_top(logits, 3).classes)
    digest = hashlib.sha256()
    for part in (packed, names, escapes, decoded, values, classes):
        digest.update(part.contiguous().numpy().tobytes())
    assert digest.hexdigest()[:16] == "238ac819f3fc016a"


def test_pack(tmp_path: Path) -> None:
    """A cache of it opens to what the codec gives, of one output and of two; `verify` finds nothing wrong."""
    for outputs, logits in ((_OUTPUTS, _logits()), ((), _logits()[:, 0])):
        path = tmp_path / str(len(outputs))
        keys = [str(row) for row in range(_ROWS)]
        manifest = gc.pack(path, [logits, -logits], keys=keys, codec="grid:step=1", losses=(_LOSS,), outputs=outputs)
        assert manifest.identity.codec.name == "grid"
        assert manifest.identity.cells.outputs == outputs
        cache = gc.open_cache(path)
        assert not [problem for _, problem in cache.problems() if problem]
        found = cache.view(1).decode([7, 0])
        assert torch.equal(found.top.classes, exact_top(-logits[[7, 0]], 3).classes)
        wanted = decode_rows(cache.codec, encode_rows(cache.codec, -logits, _labels()), _labels())
        assert torch.equal(found.logits, wanted.logits[[7, 0]])


def test_refusals(codec: GridCodec) -> None:
    """Rows of one cell, more exact classes than are kept, and a grid that is not the cache's."""
    with pytest.raises(UsageError, match="rows of several cells"):
        Calibration(CodecChoice(codec="grid").request, torch.randn(50, 10), _labels(50), stored_rows=50).choose()
    assert codec.refusal(gc.loss("gdkd3:k=5")) is not None
    assert codec.refusal(gc.loss("kd")) is None
