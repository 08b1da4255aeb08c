"""`hf:PATH`: a Hugging Face image dataset on disk, read by pyarrow; no code of the dataset is run.

Either parquet files as on the Hub (PATH/data/train-00000-of-00001.parquet), or what `datasets.save_to_disk` wrote
(PATH/train/state.json and .arrow files). `hf:PATH:train=NAME,test=NAME,image=COLUMN,label=COLUMN` names others.
"""

import glob
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gdkd_cache.data.images.free import free_memory
from gdkd_cache.data.shards.source import ShardSource
from gdkd_cache.data.source import EncodedSource
from gdkd_cache.data.sources.lists import listed_path, read_list
from gdkd_cache.data.sources.splits import Splits, parted
from gdkd_cache.errors import GdkdCacheError, SourceError, first_line
from gdkd_cache.fields import option
from gdkd_cache.schema import short

_STATE = "state.json"
_STATE_BYTES = 2**24


@dataclass(frozen=True, kw_only=True)
class _Settings(Splits):
    """Which columns are meant."""

    image: str | None = option(None, "The column of images.", unset="the only one of them")
    label: str | None = option(None, "The column of labels.", unset="the only ClassLabel")


def open_hf(path: str, *, split: str) -> EncodedSource | ShardSource:
    """Open a split; keys are `SPLIT/ROW`, in the order of the files' names, the same for both kinds of files.

    Encoded images of parquet files are read into memory, a row group at a time; those of arrow files stay where they
    lie, and training shuffles file by file.

    Raises:
        UsageError: other settings than there are.
        SourceError: pyarrow is not installed; no such split or column; images that are not encoded, or do not fit
            into memory; or a file that cannot be read.
    """
    try:
        import pyarrow  # noqa: F401  (what is below needs it)
    except ImportError:
        raise SourceError("data hf needs pyarrow: pip install 'gdkd-cache[hf-data]'") from None
    root, settings = parted("hf", path, _Settings)
    if not root.is_dir():
        raise SourceError(f"hf: {root} is no folder")
    candidates = settings.candidates(split)
    for name in candidates:
        if files := _parquet_files(root, name):
            return _from_parquet(files, name, settings)
        if (root / name / _STATE).exists():
            return _from_arrow(root / name, name, settings)
    raise SourceError(
        f"hf: {root} has no {' or '.join(candidates)} split, neither NAME-*.parquet, there or in data, nor a folder of "
        f"save_to_disk; name another as in hf:PATH:{split}=NAME"
    )


def _parquet_files(root: Path, name: str) -> list[Path]:
    stem = glob.escape(name)
    patterns = (f"data/{stem}-*.parquet", f"{stem}-*.parquet", f"data/{stem}.parquet", f"{stem}.parquet")
    found = (sorted(root.glob(pattern)) for pattern in (*patterns, f"{stem}/*.parquet"))
    return next(filter(None, found), [])


def _from_parquet(files: list[Path], split: str, settings: _Settings) -> EncodedSource:
    import pyarrow.parquet as pq

    columns = _columns(_schema(files[0]), files[0], settings)
    images: list[bytes] = []
    labels: list[np.ndarray] = []
    left = free_memory() // 2
    for path in files:
        with _reading(path), pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                stated = file.metadata.row_group(group)
                parts = map(stated.column, range(stated.num_columns))
                size = sum(
                    one.total_uncompressed_size for one in parts if one.path_in_schema == f"{columns.image}.bytes"
                )
                left -= size
                if left < 0:
                    raise SourceError(
                        f"hf: the images of {path.parent} are more than half of the free memory; save the dataset with "
                        "datasets' save_to_disk, whose files are read where they lie"
                    )
                table = file.read_row_group(group, columns=[f"{columns.image}.bytes", columns.label])
                images += _encoded(table.column(columns.image), len(images))
                labels.append(_ids(table.column(columns.label)))
    return EncodedSource(files=images, **_about(split, labels, columns))


def _encoded(column: Any, first: int) -> list[bytes]:
    images: list[Any] = [image["bytes"] if image else None for image in column.to_pylist()]
    if None in images:
        raise SourceError(
            f"hf: row {first + images.index(None)} has no bytes of an image; embed the images in the files"
        )
    return images


def _from_arrow(folder: Path, split: str, settings: _Settings) -> ShardSource:
    import pyarrow as pa

    try:
        listed = json.loads(read_list(folder / _STATE, _STATE_BYTES))["_data_files"]
        files = [listed_path(folder, one["filename"], folder / _STATE) for one in listed]
    except GdkdCacheError:
        raise
    except Exception:  # of parsing, or of another form: RecursionError too
        raise SourceError(f"hf: {folder / _STATE} is not as save_to_disk writes it; save the dataset again") from None
    if not files:
        raise SourceError(f"hf: {folder / _STATE} names no files; save the dataset again")
    columns = None
    labels, offsets, sizes, starts = [], [], [], [0]
    for path in files:
        with _reading(path), pa.memory_map(str(path)) as mapped:
            start = mapped.read_buffer(1).address
            mapped.seek(0)
            rows = 0
            for batch in pa.ipc.open_stream(mapped):
                columns = columns or _columns(batch.schema, path, settings)
                at, size = _places(batch.column(columns.image), start, mapped.size(), starts[-1] + rows)
                offsets.append(at)
                sizes.append(size)
                labels.append(_ids(batch.column(columns.label)))
                rows += len(batch)
        starts.append(starts[-1] + rows)
    if columns is None:
        raise SourceError(f"hf: {folder} holds no rows; save the dataset again")
    return ShardSource(
        shards=files,
        shard_starts=np.array(starts),
        offsets=np.concatenate(offsets),
        sizes=np.concatenate(sizes),
        **_about(split, labels, columns),
    )


def _places(images: Any, start: int, end: int, first: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the images of a batch lie in the mapped file, and their sizes: int64 [row] each."""
    data = images.field("bytes")
    if images.null_count or data.null_count:
        raise SourceError(f"hf: row {first} or one after it has no bytes of an image; embed the images in the files")
    data.validate(full=True)
    _, bounds, values = data.buffers()
    kind = np.int64 if str(data.type) == "large_binary" else np.int32
    bound = np.frombuffer(bounds, kind)[data.offset : data.offset + len(data) + 1].astype(np.int64)
    offsets = bound[:-1] + (values.address if values else start) - start
    sizes = np.diff(bound)
    if len(data) and not (offsets.min() >= 0 and (offsets + sizes).max() <= end):
        raise SourceError("hf: its images do not lie in the file as they are, as in a compressed one; save it again")
    return offsets, sizes


@dataclass(frozen=True, kw_only=True)
class _Columns:
    """Attributes: classes: names by id; None where the labels have none."""

    image: str
    label: str
    classes: list[str] | None


def _columns(schema: Any, path: Path, settings: _Settings) -> _Columns:
    """The columns that are meant, by what `datasets` says of them in a file, or else by their types."""
    try:
        stated: Any = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = {name: dict(one) for name, one in stated.get("info", {}).get("features", {}).items()}
        names = {name: list(one["names"]) for name, one in features.items() if one.get("_type") == "ClassLabel"}
    except Exception:  # of parsing, or of another form: RecursionError too
        raise SourceError(f"hf: {path} says of its columns what datasets does not write; save it again") from None
    kinds = {field.name: str(field.type) for field in schema}
    images = [name for name, kind in kinds.items() if kind.startswith("struct<") and "bytes: " in kind]
    whole = [name for name, kind in kinds.items() if kind.lstrip("u").startswith("int")]
    image = _one(settings.image, images, images, "image", path)
    label = _one(settings.label, whole, [name for name in whole if name in names], "label", path)
    return _Columns(image=image, label=label, classes=names.get(label))


def _one(named: str | None, allowed: list[str], likely: list[str], what: str, path: Path) -> str:
    if named is None and len(likely) == 1:
        return likely[0]
    if named is not None and named in allowed:
        return named
    said = f"has {', '.join(map(short, allowed)) or 'none'}"
    asked = f"{what} column {short(named)}" if named else f"{what} column to be taken"
    raise SourceError(f"hf: {path.name} {said} for the {asked}; name it as in hf:PATH:{what}=COLUMN")


def _schema(path: Path) -> Any:
    import pyarrow.parquet as pq

    with _reading(path):
        return pq.read_schema(path)


def _ids(column: Any) -> np.ndarray:
    if column.null_count:
        raise SourceError("hf: a label is missing; every row needs one")
    return np.asarray(column.to_numpy(zero_copy_only=False) if hasattr(column, "buffers") else column.to_numpy())


def _about(split: str, labels: list[np.ndarray], columns: _Columns) -> dict[str, Any]:
    ids = np.concatenate(labels).astype(np.int64) if labels else np.empty(0, np.int64)
    classes = columns.classes or [str(number) for number in range(int(ids.max(initial=0)) + 1)]
    return {
        "name": f"hf/{split}",
        "labels": ids,
        "keys": [f"{split}/{row:08d}" for row in range(len(ids))],
        "classes": classes,
    }


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Tell in one line what pyarrow raises of a file."""
    try:
        yield
    except GdkdCacheError:
        raise
    except Exception as error:
        raise SourceError(f"hf: {path} cannot be read: {first_line(error)}") from None
