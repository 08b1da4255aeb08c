"""The images that a teacher finds hard, and those that it cannot tell apart."""

import numpy as np

from gdkd_cache.report.base import Cell, Column, Part, Picture, Pictures, Table
from gdkd_cache.report.inputs import Inputs, Sample
from gdkd_cache.report.numbers.said import Said
from gdkd_cache.report.options import ShowOptions
from gdkd_cache.report.pictures import to_picture
from gdkd_cache.report.sheet import ShownRow
from gdkd_cache.report.show import shown_rows
from gdkd_cache.texts import shown

_IMAGES = 6
_VIEWS = 4


def image_parts(inputs: Inputs, said: Said) -> list[Part]:
    """The hardest images, and the most ambiguous ones: with their views where there are images."""
    sample = inputs.sample
    rows = np.arange(len(sample.rows))
    if inputs.dataset is not None:
        rows = np.flatnonzero(np.isin(sample.rows, inputs.dataset.cache_rows))
    own = said.own.mean(0)
    hardest = rows[np.argsort(own[rows], kind="stable")[:_IMAGES]]
    ambiguous = rows[np.argsort(-said.mean_entropy[rows], kind="stable")[:_IMAGES]]
    hard = "Images whose label gets the least probability, on the mean over their views: hard, or wrongly labelled."
    torn = "Images of which the mean over all views is spread most evenly over classes: the teacher cannot tell."
    lists = [
        ("teacher-hardest", "Hardest images", hard, hardest),
        ("teacher-ambiguous", "Most ambiguous images", torn, ambiguous),
    ]
    if inputs.dataset is None or inputs.source is None:
        return [_listed(inputs, said, *one) for one in lists]
    chosen = np.concatenate([hardest, ambiguous])
    keys = dict.fromkeys(inputs.cache.keys[int(row)] for row in sample.rows[chosen])
    options = ShowOptions(keys=tuple(keys), views=tuple(sample.views[:_VIEWS]))  # told at temperature 1
    found = {row.key: row for row in shown_rows(options, inputs.cache, inputs.source, recipe=inputs.dataset.recipe)}
    return [
        Pictures(
            title=title,
            reading=f"{reading} Below each view: what the teacher says of it.",
            rows=[_pictured(inputs, sample, said, position, found) for position in positions.tolist()],
        )
        for _, title, reading, positions in lists
    ]


def _pictured(
    inputs: Inputs, sample: Sample, said: Said, position: int, found: dict[str, ShownRow]
) -> tuple[str, list[Picture]]:
    key = inputs.cache.keys[int(sample.rows[position])]
    row, name = found[key], shown(inputs.classes[int(sample.labels[position])], 40)
    pictures = [to_picture(row.image, ["the image"], f"the image {shown(key, 60)}, labelled {name}")]
    for view in row.views:
        captions = [
            f"{probability:.0%} {shown(inputs.classes[class_id], 40)}" for class_id, probability in view.top[:3]
        ]
        pictures.append(to_picture(view.image, captions, f"view {view.view}: {', '.join(captions)}"))
    own = f"{said.own[:, position].mean():.1%}"
    return f"{name} has {own}: {shown(key, 80)}", pictures


def _listed(inputs: Inputs, said: Said, name: str, title: str, reading: str, positions: np.ndarray) -> Table:
    sample = inputs.sample
    rows: list[tuple[Cell, ...]] = []
    for position in positions.tolist():
        classes, counts = np.unique(said.first[:, position], return_counts=True)
        most = int(counts.argmax())
        rows.append(
            (
                inputs.cache.keys[int(sample.rows[position])],
                inputs.classes[int(sample.labels[position])],
                float(said.own[:, position].mean()),
                inputs.classes[int(classes[most])],
                float(counts[most] / len(said.first)),
                float(said.mean_entropy[position]),
            )
        )
    return Table(
        name=name,
        title=title,
        reading=reading,
        columns=[
            Column(title="key"),
            Column(title="label"),
            Column(title="its probability", format=".2%"),
            Column(title="mostly said"),
            Column(title="in views", format=".0%"),
            Column(title="entropy of the mean, nats", format=".2f"),
        ],
        rows=rows,
    )
