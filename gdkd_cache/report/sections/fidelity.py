"""How far what a student learns from a cache is from what it would learn from the teacher, and for how many bytes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gdkd_cache.cache.view import View
from gdkd_cache.codec.expected import expected_noise
from gdkd_cache.codec.fidelity import gradient
from gdkd_cache.errors import GdkdCacheError
from gdkd_cache.losses.base import ForeignLoss, Loss, loss_from_json, parse_loss
from gdkd_cache.losses.registry import LOSSES
from gdkd_cache.report.base import Column, Drawing, Part, Table
from gdkd_cache.report.drawing import (
    INK,
    SERIES,
    Line,
    draw_bars,
    draw_lines,
    draw_reference,
    new_axes,
    set_logarithmic,
)
from gdkd_cache.report.inputs import Inputs
from gdkd_cache.report.numbers.errors import bin_of, confidence, error_by_group, kept_probabilities
from gdkd_cache.report.numbers.series import spread_evenly
from gdkd_cache.report.numbers.sizes import bytes_by_array

_VALUES = 2**21
"""Logits that estimates are made of."""
_BINS = 10
_KEPT = (2, 5, 10, 20, 50, 100, 200, 500)
_LEAST_DRAWN = 1e-4
_BARS = 8
_HELD = {
    "packed": "the logits, coarsely",
    "escape": "their rare large parts",
    "logits": "the logits",
    "classes": "the top classes",
    "steps": "the top classes' logits",
    "label": "the label's logit",
    "tail": "the other classes' mass",
    "tables": "what decoding needs",
    "labels": "labels",
    "keys": "names of images",
    "probe": "checks of some views",
    "source_probe": "checks of some images",
    "source_check": "checks of all images",
    "image_size": "sizes of images",
    "": "manifest, card, metadata",
}


class _Fidelity:
    title = "Fidelity"
    reading = (
        "The gradient error is the one number for what compression loses: how far the gradient that a student gets "
        "from the cache is from the one that the full logits give, as a part of that. In our trainings students lost "
        "nothing that could be measured up to about 17%, and up to a point and a half of accuracy at 27%."
    )

    def parts(self, inputs: Inputs) -> Sequence[Part]:
        return list(_parts(inputs))


FIDELITY = _Fidelity()


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """Attributes: logits float32 [row, class], labels and top classes of some rows of one view; loss: that was measured
    and its error."""

    view: View
    logits: Tensor
    labels: Tensor
    top: Tensor
    loss: Loss
    error: float

    def gradient(self, logits: Tensor) -> Tensor:
        return gradient(self.loss, logits, self.labels, self.top)


def _parts(inputs: Inputs) -> Iterator[Part]:
    rows = _rows(inputs)
    yield _by_loss(inputs, None if rows is None else rows.view)
    if rows is not None:
        yield _curve(inputs, rows)
        yield from _where(inputs, rows)
    yield _sizes(inputs)


def _rows(inputs: Inputs) -> _Rows | None:
    """Some rows of the first view, with a loss that was measured; None where none was that is known here."""
    cache, stated = inputs.cache, inputs.cache.manifest.identity.fidelity.gradient_error
    declared = [one for one in map(loss_from_json, cache.manifest.identity.request.losses) if str(one) in stated]
    known = [one for one in declared if not isinstance(one, ForeignLoss)]
    if not known:
        return None
    chosen = spread_evenly(cache.num_rows, max(_VALUES // cache.num_classes, 1))
    view = cache.view(cache.view_numbers[0])
    logits, top = view.decode(chosen, temperature=known[0].temperature)
    labels = torch.from_numpy(cache.labels[chosen])
    error = float(stated[str(known[0])])
    return _Rows(view=view, logits=logits, labels=labels, top=top.classes, loss=known[0], error=error)


def _by_loss(inputs: Inputs, view: View | None) -> Part:
    cache, fidelity = inputs.cache, inputs.cache.manifest.identity.fidelity
    stated = map(loss_from_json, cache.manifest.identity.request.losses)
    declared = {str(one): one for one in stated if not isinstance(one, ForeignLoss)}
    measured = f"measured on {fidelity.rows:,} rows that the codec was not fitted to"
    rows: list[tuple[str, float | None, str]] = [
        (declared[text].spec if text in declared else text, float(error), measured)
        for text, error in fidelity.gradient_error.items()
    ]
    for loss in map(parse_loss, LOSSES):
        if str(loss) not in fidelity.gradient_error:
            try:
                found = cache.gradient_error(loss, view)
            except GdkdCacheError:
                rows.append((loss.spec, None, "the cache does not serve it"))
                continue
            rows.append((loss.spec, None if found is None else found.value, "estimated, to within a factor of two"))
    table = Table(
        name="error-by-loss",
        title="Gradient error by loss",
        reading="Shorter is better; the dashed line is what was asked for when the cache was built.",
        columns=(Column(title="Loss"), Column(title="Gradient error", format=".1%"), Column(title="How it is known")),
        rows=rows,
    )
    known = [(name, value, how) for name, value, how in rows if value is not None][:_BARS]
    if not known:
        return table
    target = float(cache.manifest.identity.request.fidelity)
    figure, (axes,) = new_axes(x="gradient error", y="", x_format=".0%", height=1.0 + 0.34 * len(known))
    names = [name if how == measured else f"{name}, estimated" for name, _, how in known]
    draw_bars(axes, names, [value for _, value, _ in known])
    draw_reference(axes, [target, target], [-0.6, len(known) - 0.4])
    axes.set_xlim(left=0)
    parts = [f"{value:.1%} for {name}" + ("" if how == measured else " (estimated)") for name, value, how in known]
    return Drawing(table=table, figure=figure, described=f"Gradient errors: {', '.join(parts)}; target {target:.0%}.")


def _curve(inputs: Inputs, rows: _Rows) -> Drawing:
    manifest, full = inputs.cache.manifest, rows.gradient(rows.logits)
    size = float(full.double().norm()) or 1.0
    kept = [number for number in _KEPT if number < rows.logits.shape[1]]
    errors = [
        float((rows.gradient(kept_probabilities(rows.logits, number)) - full).double().norm()) / size for number in kept
    ]
    sizes = [float(_record_bytes(number)) for number in kept]
    per_view = manifest.num_bytes / (manifest.identity.num_views * manifest.identity.num_rows)
    records = [
        (f"probabilities of the {number} likeliest classes", *point)
        for number, *point in zip(kept, sizes, errors, strict=True)
    ]
    table = Table(
        name="bytes-and-error",
        title="What the bytes buy",
        reading="Lower and further left is better. The line is what records of the k likeliest classes, k at each "
        f"point, would lose of the same logits for {rows.loss.spec}; the star is this cache, all files counted.",
        columns=(
            Column(title="What is kept of a view"),
            Column(title="Bytes", format=",.1f"),
            Column(title="Gradient error", format=".1%"),
        ),
        rows=[("this cache", per_view, rows.error), *records],
    )
    figure, (axes,) = new_axes(x="bytes a view", y="gradient error, %")
    axes.set_xscale("log")
    axes.set_yscale("log")
    heights = [100 * max(error, _LEAST_DRAWN) for error in (rows.error, *errors)]
    draw_lines(axes, [Line(name="", x=sizes, y=heights[1:])])
    axes.plot([per_view], heights[:1], marker="*", markersize=15, color=SERIES[1], linestyle="none")
    for text, x, y in zip(
        ("this cache", *(f"k={number}" for number in kept)), (per_view, *sizes), heights, strict=True
    ):
        axes.annotate(text, (x, y), xytext=(6, 6), textcoords="offset points", color=INK, fontsize=9)
    axes.margins(x=0.12, y=0.15)
    set_logarithmic(axes, "x")
    set_logarithmic(axes, "y")
    ten = [
        f"; ten classes' probabilities would lose {error:.0%} in {size:.0f} bytes"
        for number, size, error in zip(kept, sizes, errors, strict=True)
        if number == 10
    ]
    return Drawing(
        table=table,
        figure=figure,
        described=f"This cache has {per_view:.1f} bytes a view at a gradient error of {rows.error:.1%}{''.join(ten)}.",
    )


def _record_bytes(kept: int) -> int:
    """Of TinyViT's record: a seed, and a class and a probability of each kept class."""
    return 4 + 4 * kept


def _where(inputs: Inputs, rows: _Rows) -> Iterator[Part]:
    """Where the error lies: estimated, as nobody has the full logits any more."""
    noise = expected_noise(
        rows.loss, rows.error, rows.logits, rows.labels, rows.top, exact_values=inputs.cache.codec.exact_values
    )
    full, cached = rows.gradient(rows.logits), rows.gradient(rows.logits + noise)
    sure, labels = confidence(rows.logits), rows.labels.numpy()
    edges = np.linspace(0, 1, _BINS + 1)
    errors, counts = error_by_group(full, cached, bin_of(sure, edges), _BINS)
    how = (
        "Estimated: noise that errs as much as was measured, on the decoded logits of "
        f"{len(labels):,} rows of one view, as the full logits are kept nowhere."
    )
    table = Table(
        name="error-by-confidence",
        title="Gradient error by the teacher's confidence",
        reading=f"Whether views of which the teacher is sure are kept as well as others. {how}",
        columns=(
            Column(title="Its likeliest class has at least", format=".0%"),
            Column(title="And at most", format=".0%"),
            Column(title="Rows", format=",d"),
            Column(title="Gradient error", format=".1%"),
        ),
        rows=[
            (float(low), float(high), int(count), _known(float(error)))
            for low, high, count, error in zip(edges[:-1], edges[1:], counts, errors, strict=True)
        ],
    )
    middle = (edges[1:] + edges[:-1]) / 2
    held = counts > 0
    figure, (axes,) = new_axes(
        x="probability of the likeliest class", y="gradient error", x_format=".0%", y_format=".0%"
    )
    draw_lines(axes, [Line(name="", x=middle[held], y=errors[held])])
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    worst = int(np.nanargmax(errors)) if held.any() and np.isfinite(errors).any() else 0
    yield Drawing(
        table=table,
        figure=figure,
        described=f"The estimated error is largest, {errors[worst]:.1%}, where the likeliest class has "
        f"{edges[worst]:.0%} to {edges[worst + 1]:.0%}.",
    )
    by_class, of_class = error_by_group(full, cached, labels, inputs.cache.num_classes)
    order: list[int] = np.argsort(-np.nan_to_num(by_class, nan=-1.0), kind="stable").tolist()
    yield Table(
        name="error-by-class",
        title="Gradient error by class",
        reading=f"Classes that the cache keeps worst stand first. {how}",
        columns=(
            Column(title="Label"),
            Column(title="Rows", format=",d"),
            Column(title="Gradient error", format=".1%"),
        ),
        rows=[(inputs.classes[one], int(of_class[one]), _known(float(by_class[one]))) for one in order],
    )


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _sizes(inputs: Inputs) -> Drawing:
    manifest = inputs.cache.manifest
    sizes = bytes_by_array({name: record.size for name, record in manifest.objects.items()})
    sizes[""] = sizes.get("", 0) + len(manifest.to_bytes())
    sizes = dict(sorted(sizes.items(), key=lambda item: -item[1]))
    total, views = sum(sizes.values()), manifest.identity.num_views * manifest.identity.num_rows
    names = {name: name or "other" for name in sizes}
    table = Table(
        name="bytes-by-column",
        title="Bytes by column",
        reading="What the bytes of the whole cache are for.",
        columns=(
            Column(title="Column"),
            Column(title="What it holds"),
            Column(title="Bytes", format=",d"),
            Column(title="Bytes a view", format=",.3f"),
            Column(title="Share", format=".1%"),
        ),
        rows=[(names[name], _held(name), size, size / views, size / total) for name, size in sizes.items()],
    )
    largest = list(sizes.items())[:_BARS]
    figure, (axes,) = new_axes(x="bytes a view", y="", x_format=",.3g", height=1.0 + 0.3 * len(largest))
    draw_bars(axes, [_held(name) for name, _ in largest], [size / views for _, size in largest])
    first, size = largest[0]
    return Drawing(
        table=table,
        figure=figure,
        described=f"{total / views:.1f} bytes a view in all; {_held(first)}: {size / total:.0%} of them.",
    )


def _held(array: str) -> str:
    name = array.removeprefix("reference_")
    held = _HELD.get(name, f"{name}, of the codec")
    return held if name == array else f"earlier views: {held}"
