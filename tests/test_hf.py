"""Hugging Face image datasets on disk: parquet files as on the Hub, and what `datasets.save_to_disk` writes."""

import json
import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from on_disk import encoded, image

from gdkd_cache import open_source
from gdkd_cache.data.images import free
from gdkd_cache.data.shards.source import ShardSource
from gdkd_cache.data.source import EncodedSource
from gdkd_cache.data.sources import hf
from gdkd_cache.errors import SourceError, UsageError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

_CLASS_LABEL = {"names": ["ant", "bee", "cow"], "_type": "ClassLabel"}
_FEATURES = {"image": {"_type": "Image"}, "label": _CLASS_LABEL}


def _table(seeds: Sequence[int], features: dict[str, Any] | None = _FEATURES, **more: Any) -> Any:
    """As `datasets` makes it: images as {bytes, path}, and what it says of the columns in the schema."""
    columns: dict[str, Any] = {
        "image": pa.array(
            [{"bytes": encoded(seed), "path": None} for seed in seeds],
            pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        ),
        "label": pa.array([seed % 3 for seed in seeds], pa.int64()),
        **more,
    }
    table = pa.table({name: column for name, column in columns.items() if column is not None})
    said = {} if features is None else {"huggingface": json.dumps({"info": {"features": features}})}
    return table.replace_schema_metadata(said)


def _hub(root: Path, split: str, tables: Sequence[Any]) -> Path:
    (root / "data").mkdir(parents=True, exist_ok=True)
    for number, table in enumerate(tables):
        path = root / "data" / f"{split}-{number:05d}-of-{len(tables):05d}.parquet"
        pq.write_table(table, path, row_group_size=2)
    return root


def _saved(root: Path, split: str, tables: Sequence[Any], options: Any = None) -> Path:
    folder = root / split
    folder.mkdir(parents=True)
    names = [f"data-{number:05d}-of-{len(tables):05d}.arrow" for number in range(len(tables))]
    for name, table in zip(names, tables, strict=True):
        with pa.ipc.new_stream(folder / name, table.schema, options=options) as stream:
            stream.write_table(table, max_chunksize=2)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    return root


def test_both_kinds_are_the_same_source(tmp_path: Path) -> None:
    """Keys, labels, classes, digest and pixels; parquet in memory, arrow files where they lie."""
    tables = [_table(range(5)), _table(range(5, 9))]
    held = open_source(f"hf:{_hub(tmp_path / 'hub', 'train', tables)}")
    placed = open_source(f"hf:{_saved(tmp_path / 'disk', 'train', tables)}")
    assert isinstance(held, EncodedSource)
    assert isinstance(placed, ShardSource)
    assert held.digest == placed.digest
    assert held.keys[8] == "train/00000008"
    assert list(held.classes) == ["ant", "bee", "cow"]
    assert placed.shard_starts.tolist() == [0, 5, 9]
    copied = pickle.loads(pickle.dumps(placed))
    for row in range(9):
        assert held.labels[row] == row % 3
        assert np.array_equal(held[row][0], image(row))
        assert np.array_equal(copied[row][0], image(row))
    assert np.array_equal(placed.take(np.array([1, 6]))[1][0], image(6))


@pytest.mark.parametrize("name", ["val", "valid", "validation", "test"])
def test_splits(tmp_path: Path, name: str) -> None:
    _hub(tmp_path, "train", [_table(range(3))])
    _hub(tmp_path, name, [_table(range(2))])
    test = open_source(f"hf:{tmp_path}", split="test")
    assert (test.name, test.keys[1]) == (f"hf/{name}", f"{name}/00000001")
    assert len(open_source(f"hf:{tmp_path}:train={name},test=train", split="test")) == 3


def test_columns_are_named(tmp_path: Path) -> None:
    """Where there are several; labels without names are numbers."""
    more = {
        "fine": pa.array([3, 4, 5], pa.int32()),
        "label": pa.array([0, 1, 2]),
        "thumb": _table(range(3, 6))["image"],
    }
    features = {**_FEATURES, "fine": {"_type": "ClassLabel", "names": list("abcdefg")}, "thumb": {"_type": "Image"}}
    spec = f"hf:{_hub(tmp_path, 'train', [_table(range(3), features, **more)])}"
    with pytest.raises(SourceError, match=r"has image, thumb for the image column .* as in hf:PATH:image=COLUMN"):
        open_source(spec)
    with pytest.raises(SourceError, match=r"has label, fine for the label column"):
        open_source(f"{spec}:image=thumb")
    source = open_source(f"{spec}:image=thumb,label=fine")
    assert (list(source.classes), source.labels.tolist()) == (list("abcdefg"), [3, 4, 5])
    assert np.array_equal(source[1][0], image(4))
    _hub(tmp_path / "plain", "train", [_table(range(3), None)])
    assert list(open_source(f"hf:{tmp_path}/plain:label=label").classes) == ["0", "1", "2"]


_IMAGES = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.mark.parametrize("make", [_hub, _saved])
@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"image": pa.array([{"bytes": None, "path": "a.png"}] * 3, _IMAGES)}, "has no bytes of an image; embed"),
        ({"image": pa.array([None] * 3, _IMAGES)}, "has no bytes of an image; embed"),
        ({"image": pa.array(["a.png"] * 3)}, "has none for the image column to be taken"),
        ({"label": pa.array([0, None, 1])}, "a label is missing"),
        ({"label": pa.array([0, 1, -2])}, "has label -2"),
        ({"label": pa.array([0, 1, 3])}, "has label 3"),
        ({"label": pa.array(["a", "b", "c"])}, "has none for the label column to be taken"),
        ({"features": {"label": 3}}, "says of its columns what datasets does not write"),
    ],
)
def test_wrong_tables(tmp_path: Path, make: Any, table: dict[str, Any], said: str) -> None:
    make(tmp_path, "train", [_table(range(3), **table)])
    with pytest.raises(SourceError, match=re.escape(said)) as caught:
        open_source(f"hf:{tmp_path}")
    assert "\n" not in str(caught.value)


def test_wrong_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(error: type[Exception] = SourceError, settings: str = "") -> str:
        with pytest.raises(error) as caught:
            open_source(f"hf:{tmp_path}{settings}")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "has no train split, neither NAME-*.parquet" in said()
    assert "cannot read 'x=y'; allowed: train=train" in said(UsageError, ":x=y")
    assert "'../x' must lie in PATH" in said(UsageError, ":train=../x")
    _saved(tmp_path, "train", [_table(range(3))])
    state = tmp_path / "train" / "state.json"
    for text, expected in (
        ("{", "is not as save_to_disk writes it"),
        ("[" * 50_000, "is not as save_to_disk writes it"),
        ('{"_data_files": [{"filename": "../../x.arrow"}]}', "leads out of"),
        ('{"_data_files": []}', "names no files"),
        ('{"_data_files": [{"filename": "gone.arrow"}]}', "cannot be read"),
    ):
        state.write_text(text)
        assert expected in said()
    arrow = tmp_path / "train" / "data-00000-of-00001.arrow"
    state.write_text(json.dumps({"_data_files": [{"filename": arrow.name}]}))
    arrow.write_bytes(arrow.read_bytes()[:-2000])
    assert "cannot be read" in said()
    (parquet,) = (_hub(tmp_path, "train", [_table(range(3))]) / "data").iterdir()
    with monkeypatch.context() as patched:
        patched.setattr(hf, "free_memory", lambda: 1000)
        assert "are more than half of the free memory; save the dataset with" in said()
    assert free.free_memory() > 10_000
    parquet.write_bytes(parquet.read_bytes()[:-100])
    assert f"{parquet} cannot be read" in said()


def test_compressed_arrow_files_are_refused(tmp_path: Path) -> None:
    _saved(tmp_path, "train", [_table(range(3))], pa.ipc.IpcWriteOptions(compression="zstd"))
    with pytest.raises(SourceError, match="do not lie in the file as they are"):
        open_source(f"hf:{tmp_path}")
