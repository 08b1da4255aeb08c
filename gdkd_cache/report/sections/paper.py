"""The paper's figures, of this cache: what GDKD (arXiv 2512.04625) is about, drawn from the whole distribution."""

from collections.abc import Iterator, Sequence

import numpy as np

from gdkd_cache.errors import UsageError
from gdkd_cache.report.base import Column, Drawing, Part, Table
from gdkd_cache.report.drawing import add_panel_name, draw_profile, new_axes
from gdkd_cache.report.inputs import Inputs
from gdkd_cache.report.numbers.classes import differing, mean_predictions, without_top
from gdkd_cache.report.sections.paper_gradients import epoch_drawings, start_drawings
from gdkd_cache.schema import short
from gdkd_cache.texts import shown

_CHOSEN = 4
_CANDIDATES = 1024
"""Classes of most rows that the drawn ones are chosen of."""
_LISTED = 100
"""Predicted classes of each drawn one whose numbers are listed."""
_NAMED = 3


class _Paper:
    title = "The paper's figures"
    reading = (
        "What the teacher knows beside its first class, and how strongly each part of the loss teaches it: figures 3 "
        "to 5 of Rethinking Decoupled Knowledge Distillation (arXiv 2512.04625), of this cache."
    )

    def parts(self, inputs: Inputs) -> Sequence[Part]:
        return [*_predictions(inputs), *start_drawings(inputs), *epoch_drawings(inputs)]


PAPER = _Paper()


def _predictions(inputs: Inputs) -> Iterator[Part]:
    """The average predictions of some classes, and the same without the top class."""
    sample, temperature = inputs.sample, inputs.options.temperature
    views = inputs.cache.manifest.identity.views
    groups, whose = np.broadcast_to(sample.labels, sample.logits.shape[:2]), "labelled so"
    if views is not None and views.recipe.mix is not None:
        groups, whose = sample.logits.argmax(-1), "of which it is the first class, as each view mixes two images"
    if inputs.options.classes:
        wanted = np.array([_class_id(inputs, name) for name in dict.fromkeys(inputs.options.classes)], np.int64)
        average = mean_predictions(sample.logits, groups, wanted, temperature)
        known = np.isfinite(average).all(-1)
        wanted, average = wanted[known], average[known]
    else:
        seen = np.bincount(groups.reshape(-1), minlength=inputs.cache.num_classes)
        candidates = np.sort(np.argsort(-seen, kind="stable")[:_CANDIDATES])
        average = mean_predictions(sample.logits, groups, candidates, temperature)
        positions = differing(average, _CHOSEN)
        wanted, average = candidates[positions], average[positions]
    if not len(wanted):
        return
    yield _profiles(
        inputs,
        wanted,
        average,
        name="figure-4-average-predictions",
        title="Average predictions (Fig. 4)",
        reading=f"The mean probabilities, at T = {temperature:g}, over all views {whose}; in orange the class itself.",
    )
    if inputs.cache.num_classes > 2:
        yield _profiles(
            inputs,
            wanted,
            without_top(average),
            name="figure-5-without-top",
            title="The same without the top class (Fig. 5)",
            reading="The largest of each average taken out and the others scaled to 100%: what there is to learn about "
            "the rest. Few tall bars are a class with close relatives.",
        )


def _class_id(inputs: Inputs, name: str) -> int:
    """The class of a name, as the cache or the report calls it.

    Raises:
        UsageError: there is none.
    """
    for names in (inputs.cache.manifest.identity.classes, inputs.classes):
        if name in names:
            return list(names).index(name)
    first = ", ".join(short(name) for name in inputs.classes[:5])
    raise UsageError(f"class {short(name)} is not in the cache; it has {len(inputs.classes)} classes: {first}, ...")


def _profiles(
    inputs: Inputs, wanted: np.ndarray, predictions: np.ndarray, *, name: str, title: str, reading: str
) -> Drawing:
    number = len(wanted)
    figure, panels = new_axes(x="class, by its number", y="", y_format="%", height=0.5 + 1.15 * number, rows=number)
    rows, told = [], []
    for axes, class_id, values in zip(panels, wanted.tolist(), predictions, strict=True):
        draw_profile(axes, values, own=class_id)
        order = np.argsort(-values, kind="stable")
        first = [(inputs.classes[other], float(values[other])) for other in order[:_NAMED].tolist()]
        line = ", ".join(f"{shown(other, 18)} {share:.0%}" for other, share in first)
        add_panel_name(axes, f"{shown(inputs.classes[class_id], 18)}: {line}")
        told.append(
            f"{shown(inputs.classes[class_id], 40)}: {', '.join(f'{other} {share:.1%}' for other, share in first)}"
        )
        rows += [
            (inputs.classes[class_id], inputs.classes[other], float(values[other]))
            for other in order[:_LISTED].tolist()
        ]
    return Drawing(
        table=Table(
            name=name,
            title=title,
            reading=reading,
            columns=[Column(title="images of"), Column(title="class"), Column(title="probability", format=".3%")],
            rows=rows,
        ),
        figure=figure,
        described=f"The likeliest classes: {'; '.join(told)}.",
    )
