"""Before a build: run the teacher on a sample, and say what each codec would cost and lose."""

import time
from dataclasses import dataclass
from typing import Any

from gdkd_cache.building.builder import Builder
from gdkd_cache.building.options import BuildOptions, PlanOptions
from gdkd_cache.codec.calibration import Calibration, Choice
from gdkd_cache.codec.registry import CODECS
from gdkd_cache.data.source import FullSource, Source, settle
from gdkd_cache.data.views import image_size
from gdkd_cache.errors import UsageError
from gdkd_cache.limits import usual_shard_rows
from gdkd_cache.models.network import Network
from gdkd_cache.schema import to_json
from gdkd_cache.store.facts import Examination
from gdkd_cache.store.layout import encode_keys, shared_shard_rows

_COARSER = (0.5, 1.7, 2.7)  # times the asked fidelity: what more or fewer bytes would buy


@dataclass(frozen=True, kw_only=True)
class PlanRow:
    """One codec setting.

    Attributes:
        setting: what to type: `--codec transform --fidelity 0.1`, say.
        chosen: whether `build` would take it for the options that were given.
        bytes_per_view: estimated, tables included.
        total_bytes: for all views.
        gradient_error: of each declared loss that it serves, on held-out rows.
        encode_rate: rows a second on this machine's CPU.
        num_objects: files of the cache.
        references: how many views, the first ones, the others are predicted from.
        reference_bytes: what these take in a reader's memory.
    """

    setting: str
    chosen: bool
    bytes_per_view: float
    total_bytes: float
    gradient_error: dict[str, int | float]
    encode_rate: float
    num_objects: int
    references: int
    reference_bytes: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a build would take.

    Attributes:
        num_rows, num_views: extent.
        distinct_views: how many different views the recipe has for one image; None for too many to matter.
        teacher_rate: images a second of rendering and teacher on this machine.
        build_seconds: estimated for all views, encoding included.
        rows: one a codec setting.
        examination: how right the teacher is; None where nothing has a label.
    """

    num_rows: int
    num_views: int
    distinct_views: int | None
    teacher_rate: float
    build_seconds: float
    rows: tuple[PlanRow, ...]
    examination: Examination | None

    def to_json(self) -> dict[str, Any]:
        examination = None if self.examination is None else to_json(self.examination)
        return vars(self) | {"rows": [vars(row) for row in self.rows], "examination": examination}


def plan(options: PlanOptions, source: Source, teacher: Network, eval_source: Source | None = None) -> Plan:
    """Calibrate on a sample as `build` would, and measure codecs around the asked fidelity.

    Args:
        options: as for `build`; nothing is written.
        source: the images.
        teacher: the teacher.
        eval_source: as for `build`.

    Raises:
        UsageError: a codec that names its own step, which has nothing to plan.
        SourceError, ModelError: as `build`.
    """
    request = options.request
    named = request.codec()
    if named is not None and not (named[0].searches and named[1] == named[0].Options()):
        raise UsageError(f"plan compares codecs around a fidelity; codec {request.spec!r} leaves nothing to compare")
    source = settle(source)
    builder = Builder(BuildOptions(out="", **vars(options)), source, teacher, eval_source=eval_source)
    start = time.monotonic()
    calibration = builder.calibrate()
    teacher_rate = calibration.num_rows / (time.monotonic() - start)
    examination = builder.examine(calibration)
    fidelities = sorted({request.fidelity, *(round(request.fidelity * factor, 4) for factor in _COARSER)})
    settings: dict[str, Choice] = {}
    for name in calibration.codecs:
        kind = CODECS.load(name)
        if kind.searches:
            settings |= {f"--codec {name} --fidelity {f:g}": calibration.fit(kind, fidelity=f) for f in fidelities}
        else:
            settings[f"--codec {name}"] = calibration.fit(kind)
    chosen = calibration.choose()
    total_rows = len(source) * options.num_views
    rows = []
    for setting, choice in settings.items():
        size_per_view = calibration.total_bytes(choice)
        rows.append(
            PlanRow(
                setting=setting,
                chosen=choice.codec.to_json() == chosen.codec.to_json(),
                bytes_per_view=size_per_view,
                total_bytes=size_per_view * total_rows,
                gradient_error=choice.fidelity.gradient_error,
                encode_rate=_encode_rate(choice, calibration),
                num_objects=_num_objects(choice, source, options.num_views, examination is not None),
                references=choice.codec.num_references,
                reference_bytes=choice.codec.num_references * choice.codec.num_predicted * len(source),
            )
        )
    encode_rate = next((row.encode_rate for row in rows if row.chosen), rows[0].encode_rate)
    return Plan(
        num_rows=len(source),
        num_views=options.num_views,
        distinct_views=builder.recipe.num_views(*image_size(source)),
        teacher_rate=teacher_rate,
        build_seconds=total_rows * (1 / teacher_rate + 1 / encode_rate),
        rows=tuple(rows),
        examination=examination,
    )


def _num_objects(choice: Choice, source: FullSource, num_views: int, is_examined: bool) -> int:
    """Files of the cache: metadata and shards of every array, the group's metadata, the card and the manifest."""
    columns = len(choice.codec.columns()) + 1  # and the probes
    rows = len(source)
    # Labels, probes and checks of the images, then keys and tables.
    lengths = [rows, rows, rows, encode_keys(list(source.keys)).size, choice.codec.tables_bytes().size]
    lengths += [rows] if choice.codec.num_references else []  # the sizes of the images
    shared = sum(1 + -(-length // shared_shard_rows(length)) for length in lengths if length)
    pictures = 1 + bool(choice.fidelity.gradient_error) if is_examined else 0
    return columns * (1 + num_views * -(-rows // usual_shard_rows(rows))) + shared + 3 + pictures


def _encode_rate(choice: Choice, calibration: Calibration) -> float:
    sample, start = calibration.sample(choice.codec), time.monotonic()
    choice.codec.encode(*sample)
    return len(sample[0]) / calibration.cells_of(choice.codec) / (time.monotonic() - start)
