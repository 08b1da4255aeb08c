"""The arithmetic of a build and of its readers: what takes the longest, and what does not fit."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from gdkd_cache.data.views import VIEWS_AT_ONCE
from gdkd_cache.limits import usual_shard_rows
from gdkd_cache.store.layout import shared_shard_rows
from gdkd_cache.store.manifest import MANIFEST_LIMIT

CONSTANTS = Path(__file__).parent / "constants.json"
READS_AT_ONCE = 8
_COLUMNS = 3  # of a view: transform's two, and the probes
_KEY_LENGTH = 30


@dataclass(frozen=True, kw_only=True)
class Constants:
    """What one core of a machine takes, in seconds, and how large things are, in bytes.

    Attributes:
        render: of a view, by kind of image: `small` (32 in memory, crop-flip), `photo64` and `photo224` (JPEG,
            eight views of one decoding).
        alone: of a view, where no other shares its decoding.
        calibrate: of a row that a codec is fitted to, besides its rendering and teaching.
        forward: of a view by cnn-s, of `small` and `photo64`.
        encode: of a view's logits by the codec, for 10, 100 and 1000 classes; on a CPU.
        pack: of a view's columns, compressed and checksummed, likewise.
        write: of an object, durable and read back.
        start: of a process, until the codec is fitted and after the last view; of which only the first fits.
        follow: of each further process.
        requests: to the place, of each committed shard of a view.
        key_seconds, key_bytes: of a key in a reader that joins a cache with its source.
        row_seconds: of a row of a view that is loaded.
        object_seconds, object_bytes: of an object that the manifest lists, when it is opened.
        hash_rate: bytes a second that are checked.
    """

    render: dict[str, float]
    alone: dict[str, float]
    calibrate: float
    forward: dict[str, float]
    encode: dict[str, float]
    pack: dict[str, float]
    write: float
    start: float
    follow: float
    requests: float
    key_seconds: float
    key_bytes: float
    row_seconds: float
    object_seconds: float
    object_bytes: float
    hash_rate: float

    @classmethod
    def read(cls) -> "Constants":
        return cls(**json.loads(CONSTANTS.read_text()))

    def save(self) -> None:
        CONSTANTS.write_text(json.dumps(asdict(self), indent=2) + "\n")


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is built.

    Attributes:
        name: what to call it.
        rows, views: extent.
        row_bytes: of a view's row as it is stored.
        resident_bytes: of it in a reader's memory.
        render: kind of image, as in `Constants`.
        pack: classes, as in `Constants`, times `cells`.
        cells: distributions a row.
    """

    name: str
    rows: int
    views: int
    row_bytes: float
    resident_bytes: float
    render: str
    pack: str = "1000"
    cells: int = 1


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """GPUs, and the store.

    Attributes:
        gpus: how many.
        cores: that render, of each.
        teacher_rate: images that each teaches a second.
        latency: seconds until the store answers.
        request_rate: requests a second that it takes.
    """

    gpus: int
    cores: int
    teacher_rate: float
    latency: float
    request_rate: float


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Attributes as their names say; `parts` are hours by what would take them if all else were free."""

    hours: float
    num_bytes: float
    objects: int
    requests: float
    manifest_bytes: float
    reader_bytes: float
    open_seconds: float
    parts: dict[str, float]

    @property
    def bottleneck(self) -> str:
        return max(self.parts, key=lambda part: self.parts[part])

    @property
    def fits(self) -> bool:
        """Whether its manifest is one that readers take."""
        return self.manifest_bytes <= MANIFEST_LIMIT


def predict(case: Case, on: Hardware, constants: Constants) -> Prediction:
    """What a build of a case takes on some hardware, and its readers."""
    shards = math.ceil(case.rows / usual_shard_rows(case.rows))
    units, views = shards * case.views, case.rows * case.views
    key_bytes = case.rows * _KEY_LENGTH
    objects = (
        units * _COLUMNS
        + shards
        + sum(length // shared_shard_rows(length) for length in (key_bytes, case.rows, case.rows))
    )
    # A group of views of one shard is what one teacher takes: the last ones leave others idle.
    at_once = max(1, min(VIEWS_AT_ONCE, units // (2 * on.gpus))) if on.gpus > 1 else VIEWS_AT_ONCE
    groups = math.ceil(case.views / at_once) * shards
    idle = math.ceil(groups / on.gpus) * on.gpus / groups
    per_gpu = views / on.gpus / 3600
    parts = {
        "teachers": idle * per_gpu / on.teacher_rate,
        "renderers": idle * per_gpu * constants.render[case.render] / on.cores,
        "writers": idle * per_gpu * constants.pack[case.pack] * case.cells
        + units * _COLUMNS * constants.write / on.gpus / 3600,
        "requests": units * constants.requests / on.request_rate / 3600,
    }
    parts["last check"] = (objects * on.latency / READS_AT_ONCE + views * case.row_bytes / constants.hash_rate) / 3600
    hours = max(seconds for part, seconds in parts.items() if part != "last check")
    hours += parts["last check"] + constants.start / 3600
    return Prediction(
        hours=hours,
        num_bytes=views * case.row_bytes,
        objects=objects,
        requests=units * constants.requests / hours / 3600,
        manifest_bytes=objects * constants.object_bytes,
        reader_bytes=case.rows * (2 * case.resident_bytes + constants.key_bytes) + objects * 600,
        open_seconds=objects * constants.object_seconds
        + case.rows * (constants.key_seconds + constants.row_seconds)
        + shards * _COLUMNS * on.latency / READS_AT_ONCE,
        parts=parts,
    )
