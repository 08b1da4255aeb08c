"""Arrays for `pack` that are wrong or hostile: one line that names the file."""

import io
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from gdkd_cache_cli.main import main
from inputs import refused

import gdkd_cache as gc
from gdkd_cache.building.arrays import read_logits
from gdkd_cache.errors import SourceError, UsageError

_LOGITS = np.random.default_rng(0).normal(size=(1, 20, 9)).astype(np.float32)
_LABELS = np.arange(20) % 9
_KEYS = [f"k{i}" for i in range(20)]


def test_logits_of_any_float_type(tmp_path: Path) -> None:
    """Big-endian, long double and read-only ones are the same numbers."""
    fixed = _LOGITS.copy()
    fixed.flags.writeable = False
    given = [_LOGITS, _LOGITS.astype(">f4"), _LOGITS.astype(np.longdouble), _LOGITS.astype(">f8"), fixed]
    labels = [_LABELS, _LABELS.astype(">i4"), _LABELS.astype(np.float32), _LABELS.tolist(), _LABELS.astype(np.uint64)]
    digests = {
        gc.pack(tmp_path / str(i), logits, keys=_KEYS, labels=own, codec="dense").digest
        for i, (logits, own) in enumerate(zip(given, labels, strict=True))
    }
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"labels": np.full(20, 0.7)}, "labels are float64, not all whole numbers"),
        ({"labels": np.full(20, np.nan)}, "labels are float64, not all whole numbers"),
        ({"labels": np.array(["1"] * 20)}, "labels are <U1, not all whole numbers"),
        ({"labels": []}, r"labels are \[0\]; give 20 class ids"),
        ({"labels": [10**30] * 20}, "labels are object, not all whole numbers"),
        ({"labels": np.full(20, 2**63, np.uint64)}, "labels are from -"),
        ({"keys": ["\udcff", *_KEYS[1:]]}, r"key '\\udcff' is no text"),
        ({"classes": ["\ud800", *"abcdefgh"]}, r"class name '\\ud800' is no text"),
        ({"logits": _LOGITS.astype("U9")}, "a view's logits are <U9; give floats"),
        ({"logits": _LOGITS.astype(complex)}, "a view's logits are complex128; give floats"),
        ({"logits": _LOGITS.astype(np.float64) * 1e300}, "hold NaN or infinity"),
        ({"logits": np.zeros((1, 20, 2**17 + 1), np.float16)}, "give 2 to 131072"),
    ],
)
def test_wrong_input_to_pack(tmp_path: Path, change: dict[str, object], said: str) -> None:
    good: dict[str, object] = {"logits": _LOGITS, "keys": _KEYS, "labels": _LABELS}
    refused(lambda: gc.pack(tmp_path / "a", **(good | change)), said, UsageError)  # pyright: ignore[reportArgumentType]


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
    return file.getvalue()


def test_what_is_not_needed_is_not_read(tmp_path: Path) -> None:
    """Pickles among it."""
    path = tmp_path / "a.npz"
    path.write_bytes(_npz(teacher=_LOGITS, label=_LABELS, notes=np.array([{}], dtype=object)))
    read = read_logits(path, None, None)
    assert np.array_equal(read.logits, _LOGITS)
    assert read.labels is not None
    assert np.array_equal(read.labels, _LABELS)
    path.write_bytes(_npz(teacher=_LOGITS, labels=np.array([{}], dtype=object)))
    refused(lambda: read_logits(path, None, None), "labels .*a.npz is no .npy or .npz of numbers", SourceError)
    path.write_bytes(_npz(others=_LOGITS))
    refused(lambda: read_logits(path, None, None), "hold no array teacher or logits; name yours so", SourceError)


@pytest.mark.parametrize(
    "data",
    [
        _npy(_LOGITS).replace(b"(1, 20, 9)", b"(9, 20, 9)"),
        _npy(_LOGITS).replace(b"(1, 20, 9)", b"(1, 20, 1)"),
        _npy(_LOGITS).replace(b"(1, 20, 9)", b"(1,-20,-9)"),
        _npy(_LOGITS).replace(b"(1, 20, 9), }", b"(1, 2**62,9),}"),
        _npy(_LOGITS).replace(b"'<f4'", b"'|O' "),
        _npy(_LOGITS).replace(b"'<f4'", b"'<f7'"),
        _npy(_LOGITS).replace(b"{'descr'", b"[[[[[[[["),
        _npy(_LOGITS)[:-1],
        _npy(_LOGITS)[:90],
        _npz(teacher=_LOGITS).replace(b"(1, 20, 9)", b"(9, 20, 9)"),
        _npz(teacher=_LOGITS)[:-30],
        _npz(teacher=_LOGITS).replace(_LOGITS.tobytes()[:40], bytes(40)),
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff{",
        b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 9000,
        b"PK\x03\x04",
        b"",
    ],
)
def test_headers_that_lie(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(data)
    refused(lambda: read_logits(path, None, None), f"logits {path} is no .npy or .npz of numbers: ", SourceError)


def test_wrong_arrays_from_the_command_line(tmp_path: Path) -> None:
    def run(said: str, code: int, **files: bytes) -> None:
        for name, data in files.items():
            (tmp_path / name).write_bytes(data)
        line = f"pack {tmp_path}/logits {tmp_path}/out --labels {tmp_path}/labels --keys {tmp_path}/keys"
        result = CliRunner().invoke(main, line.split())
        assert (result.exit_code, result.exception.__class__) == (code, SystemExit)
        assert said in result.stderr
        assert result.stderr.count("\n") <= 1

    good = {"logits": _npy(_LOGITS), "labels": _npy(_LABELS), "keys": "\n".join(_KEYS).encode()}
    run("keys are no text in UTF-8: byte 1", 1, **good | {"keys": b"a\xff\n"})
    run("labels are float64, not all whole numbers", 2, **good | {"labels": _npy(_LABELS + 0.7)})
    run("labels are <U1, not all whole numbers", 2, **good | {"labels": _npy(_LABELS.astype("U1"))})
    run("labels are [0]; give 20 class ids", 2, **good | {"labels": _npy(np.zeros(0))})
    run("it needs floats [view, row, class]", 1, **good | {"logits": _npy(np.zeros((0, 20, 9)))})
    run("it needs floats [view, row, class]", 1, **good | {"logits": _npy(np.zeros((1, 20, 9), int))})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["keys", "labels", "logits"]
