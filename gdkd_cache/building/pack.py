"""A cache from logits that were computed elsewhere: another framework's teacher, or an old dump."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gdkd_cache.building.figures import Tally
from gdkd_cache.building.sampling import Sampling
from gdkd_cache.cache.references import ReferenceRows
from gdkd_cache.codec.calibration import Calibration
from gdkd_cache.codec.fidelity import encoded_at_once
from gdkd_cache.codec.registry import AUTO
from gdkd_cache.codec.request import CodecRequest
from gdkd_cache.data.nearness import Nearness
from gdkd_cache.data.recipes.step import NEAREST
from gdkd_cache.data.source import class_ids, is_text, source_digest
from gdkd_cache.errors import UsageError
from gdkd_cache.limits import MOST_CELLS, MOST_CLASSES, NO_LABEL, usual_shard_rows
from gdkd_cache.losses.base import Loss, parse_loss
from gdkd_cache.progress import progress
from gdkd_cache.schema import from_json
from gdkd_cache.seeding import hash_keys
from gdkd_cache.store.card import make_card
from gdkd_cache.store.cells import ONE_CELL, Cells
from gdkd_cache.store.facts import UNFITTED, UNMEASURED, Build, Data, Examination, RequestFacts, TeacherFacts
from gdkd_cache.store.layout import encode_keys
from gdkd_cache.store.manifest import Identity, Manifest
from gdkd_cache.store.place import Begun, Complete, Empty, Place

Logits = np.ndarray | Tensor


def pack(
    path: str | Path,
    logits: Logits | Sequence[Logits],
    *,
    keys: Sequence[str],
    labels: Sequence[int] | np.ndarray | Tensor | None = None,
    codec: str = AUTO,
    fidelity: float = 0.1,
    losses: Iterable[str | Loss] = ("gdkd",),
    num_top: int = 8,
    classes: Sequence[str] | None = None,
    license: str | None = None,
    contact: str | None = None,
    force: bool = False,
    true_labels: bool = True,
    outputs: Sequence[str] = (),
) -> Manifest:
    """Write a cache of given logits: the same codecs, checks and digest as a build.

    Its views have no recipe: the user replays them, and reads the logits with `Cache.view`.

    Args:
        path: the cache folder, or the URL of an object store.
        logits: [view, row, class], or one [row, class] array a view; any float type, all finite. Of a dense network,
            a view is [row, height, width, class], or [row, output, height, width, class] of several outputs.
        keys: one stable, unique string a row.
        labels: class ids [row], -1 for rows without; of a dense network None, or [row, height, width].
        codec: `auto`, `transform[:...]`, `topk[:...]` or `dense[:...]`; of a dense network also `grid[:...]`.
        fidelity: the largest gradient error allowed for each declared loss.
        losses: the declared losses, such as `gdkd:k=5,w2=8,temperature=4`.
        num_top: how many classes are kept in exact rank order.
        classes: class names; numbers where none are given.
        license, contact: what you say of the cache, one line each: part of its identity and shown by `inspect`.
        force: replace another cache there.
        true_labels: whether the labels come from elsewhere than the logits: the cache then tells how often they agree.
        outputs: the names of a dense network's several outputs, in the order of their axis.

    Returns:
        The finished cache's manifest.

    Raises:
        UsageError: shapes, keys or labels that do not fit, or NaN or infinity (it names view and key); or a license
            or contact that is no short line.
        MismatchError: the place holds another cache, and `force` is off.
        OSError: it cannot be written; the same call resumes.
    """
    views, keys = list(logits), list(keys)
    shape = _check_views(views, keys, tuple(outputs))
    num_rows, num_classes = shape[0], shape[-1]
    cells = Cells(height=shape[-3], width=shape[-2], outputs=tuple(outputs)) if len(shape) > 2 else ONE_CELL
    if labels is None and cells.grid:
        labels, true_labels = torch.zeros(num_rows, dtype=torch.int64), False
    else:
        cells = replace(cells, labelled=bool(cells.grid))
        labels = _labels(labels, (num_rows, *cells.places), num_classes)
    request = CodecRequest(spec=codec, fidelity=fidelity, losses=tuple(map(parse_loss, losses)), num_top=num_top)
    request.check(num_classes, int((labels == NO_LABEL).sum()))
    names = [str(i) for i in range(num_classes)] if classes is None else list(classes)
    if len(names) != num_classes:
        raise UsageError(f"{len(names)} class names for logits of {num_classes} classes; both must be equal")
    if (unreadable := next((name for name in names if not is_text(name)), None)) is not None:
        raise UsageError(f"class name {unreadable!r} is no text in UTF-8")
    content, at_once = hashlib.sha256(), encoded_at_once(cells.grid, num_classes)
    with progress("check", len(views) * num_rows, "rows") as advance:
        for number, view in enumerate(views):
            for rows in _slices(at_once, num_rows):
                content.update(_rows(view, rows, number, keys).numpy().tobytes())
                advance(rows.stop - rows.start)
    digest = source_digest(keys, labels.flatten().numpy(), names)
    identity = Identity(
        num_rows=num_rows,
        num_views=len(views),
        classes=tuple(names),
        data=Data(
            name="packed",
            digest=digest,
            keys_bytes=len(encode_keys(keys)),
            unlabelled=int((labels == NO_LABEL).sum()),
        ),
        views=None,
        teacher=TeacherFacts(name="logits computed elsewhere", logits=f"sha256:{content.hexdigest()}"),
        request=from_json(RequestFacts, request.to_json()),
        codec=UNFITTED,
        fidelity=UNMEASURED,
        build=Build(software={name: version(name) for name in ("gdkd-cache", "numpy", "torch", "zarr")}),
        shard_rows=cells.shard_rows(usual_shard_rows(num_rows)),
        cells=cells,
        card=make_card(license, contact),
    )
    place = Place(path, identity)
    found = place.look(force=force)
    if isinstance(found, Complete):
        place.clean(found)
        return found.manifest
    if isinstance(found, Empty):
        sampling = Sampling.of(request, hash_keys(keys), num_classes, len(views), cells=cells)
        calibration = _calibration(sampling, views, labels)
        choice = calibration.choose()
        examination = _examined(*calibration.labelled) if true_labels else None
        found = Begun(choice.codec, choice.fidelity, examination)
        del calibration  # and its logits
    writer, fitted = place.begin(found), found.codec
    references: dict[int, ReferenceRows] = {}

    def predicting(shard: int, rows: range) -> ReferenceRows | None:
        if fitted.num_references and shard not in references:
            own = labels[rows.start : rows.stop].numpy()
            nearness = Nearness(None, 0, np.zeros(0, np.uint64))
            references[shard] = ReferenceRows(fitted, nearness, rows, own, lambda view: writer.columns(view, shard))
        return references.get(shard)

    with progress("pack", len(views) * num_rows, "rows") as advance:
        for number, shard, rows in writer.shards():
            if not writer.committed(number, shard):
                parts, predicted_by = [], predicting(shard, rows)
                for some in _slices(at_once, rows.stop, rows.start):
                    logits = _rows(views[number], some, number, keys)
                    own = slice(some.start - rows.start, some.stop - rows.start)
                    known = None if predicted_by is None else predicted_by.before(number, own)
                    parts.append(cells.encode(fitted, logits, labels[some], known))
                    if predicted_by is not None:
                        predicted_by.put(number, own, parts[-1], known)
                    advance(some.stop - some.start)
                columns = {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}
                writer.commit(number, shard, columns)
    manifest = writer.finish(keys, labels.view(num_rows, *cells.label_axis).numpy())
    place.clean(Complete(manifest))
    return manifest


def _calibration(sampling: Sampling, views: list[Logits], labels: Tensor) -> Calibration:
    rows, number = sampling.rows, sampling.num_sampled
    sampled = [_loaded(view, rows[sampling.some]) for view in views[:number]]
    # Nobody knows how near views are.
    weights = torch.full((number, number, len(sampling.some)), NEAREST, dtype=torch.int16) if number else None
    whole = torch.stack([_loaded(view, rows) for view in views[: sampling.num_whole]])
    return sampling.calibrated(whole, labels[torch.from_numpy(rows)], sampled, weights)


def _examined(logits: Tensor, labels: Tensor) -> Examination | None:
    """How often the rows' labels agree; None where no row has one."""
    known = labels != NO_LABEL
    if not known.any():
        return None
    tally = Tally()
    tally.add(logits[known], labels[known])
    return Examination(views=tally.examined())


def _slices(size: int, stop: int, start: int = 0) -> list[slice]:
    """Pieces of a fixed size, so that the same rows are always encoded together."""
    return [slice(first, min(first + size, stop)) for first in range(start, stop, size)]


def _rows(view: Logits, rows: slice, number: int, keys: Sequence[str]) -> Tensor:
    """Some rows of one view as float32 [row, *grid, class].

    Raises:
        UsageError: NaN or infinity.
    """
    part = _loaded(view, rows)
    finite = part.isfinite().flatten(1).all(1)
    if not finite.all():
        key = keys[rows.start + int(finite.logical_not().nonzero()[0])]
        raise UsageError(f"view {number}: the logits of {key!r} hold NaN or infinity; give finite logits")
    return part


def _loaded(view: Logits, rows: slice | np.ndarray) -> Tensor:
    if isinstance(view, Tensor):
        return view[rows if isinstance(rows, slice) else torch.from_numpy(rows)].detach().cpu().float()
    with np.errstate(over="ignore", invalid="ignore"):  # what becomes of it is told by who checks it
        return torch.from_numpy(np.array(view[rows], np.float32))


def _check_views(views: list[Logits], keys: list[str], outputs: tuple[str, ...]) -> tuple[int, ...]:
    """The shape of each view, once everything fits together: [row, *grid, class]."""
    if not views:
        raise UsageError("there are no views; give logits [view, row, class], or one [row, class] array a view")
    if len(outputs) == 1 or len({*outputs}) != len(outputs) or not all(map(is_text, outputs)):
        raise UsageError(
            f"outputs are {list(outputs)}; give several different names, or none where there is one output"
        )
    axes = (5,) if outputs else (2, 4)
    shapes = [tuple(view.shape) for view in views]
    odd = next((shape for shape in shapes if len(shape) not in axes or shape != shapes[0]), None)
    if odd is not None or 0 in shapes[0]:
        raise UsageError(
            f"a view's logits are {list(odd or shapes[0])}; each must be [row, class] of one shape, [row, height, "
            "width, class], or with outputs named [row, output, height, width, class]"
        )
    if outputs and shapes[0][1] != len(outputs):
        raise UsageError(f"{len(outputs)} outputs are named, and the logits are of {shapes[0][1]}; both must be equal")
    if shapes[0][1:-1] == (1, 1):
        raise UsageError(f"a view's logits are {list(shapes[0])}, of one cell a row; give them as [row, class]")
    if len(shapes[0]) > 2 and max(shapes[0][-3:-1]) > MOST_CELLS:
        raise UsageError(f"a row has {shapes[0][-3]}x{shapes[0][-2]} cells; at most {MOST_CELLS} each way are possible")
    num_rows, num_classes = views[0].shape[0], views[0].shape[-1]
    if not 2 <= num_classes <= MOST_CLASSES:
        raise UsageError(f"the logits have {num_classes} classes; give 2 to {MOST_CLASSES}")
    if odd := next((view.dtype for view in views if not _is_real(view)), None):
        raise UsageError(f"a view's logits are {odd}; give floats")
    if (unreadable := next((key for key in keys if not is_text(key)), None)) is not None:
        raise UsageError(f"key {unreadable!r} is no text in UTF-8")
    if len(set(keys)) != num_rows or len(keys) != num_rows or any(not key or "\n" in key for key in keys):
        raise UsageError(
            f"{len(set(keys))} distinct keys for {num_rows} rows; give one a row, unique, without line breaks"
        )
    return shapes[0]


def _labels(labels: Any, shape: tuple[int, ...], num_classes: int) -> Tensor:
    """Labels as int64 of a shape, once they fit."""
    try:
        ids = torch.tensor(class_ids(labels))
    except ValueError as error:
        raise UsageError(f"labels {error}") from None
    if tuple(ids.shape) != shape:
        wanted = f"{shape[0]} class ids" if len(shape) == 1 else f"class ids {list(shape)}, or none at all"
        raise UsageError(f"labels are {list(ids.shape)}; give {wanted}")
    least, none = (NO_LABEL, f", or {NO_LABEL} for none") if len(shape) == 1 else (0, "")
    if int(ids.min()) < least or int(ids.max()) >= num_classes:
        raise UsageError(
            f"labels are from {int(ids.min())} to {int(ids.max())}; give class ids of 0 to {num_classes - 1}{none}"
        )
    return ids


def _is_real(view: Logits) -> bool:
    if isinstance(view, Tensor):
        return not view.dtype.is_complex and view.dtype != torch.bool
    return view.dtype.kind in "fiu"
