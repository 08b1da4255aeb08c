"""Tables of what a teacher says of each class."""

import numpy as np

from gdkd_cache.report.base import Cell, Column, Table
from gdkd_cache.report.inputs import Inputs
from gdkd_cache.report.numbers.classes import by_class, confusion
from gdkd_cache.report.numbers.said import Said

_PAIRS = 20
_CLASSES = 1000


def confused_table(inputs: Inputs, said: Said) -> Table | None:
    """The classes that are taken for each other; None where none are."""
    found = confusion(said.first, inputs.sample.labels, inputs.cache.num_classes)
    if not len(found.counts):
        return None
    own = int(np.sum(said.first != inputs.sample.labels))
    rows = [
        (inputs.classes[int(label)], inputs.classes[int(other)], int(count), float(share), float(count / own))
        for label, other, count, share in zip(
            *(one[:_PAIRS].tolist() for one in (found.labels, found.said, found.counts, found.shares)), strict=True
        )
    ]
    return Table(
        name="teacher-confused",
        title="Classes taken for each other",
        reading="The label, what the teacher says instead, and in how many of the label's views: the most frequent.",
        columns=[
            Column(title="label"),
            Column(title="said"),
            Column(title="views", format=",d"),
            Column(title="of the label's", format=".1%"),
            Column(title="of all errors", format=".1%"),
        ],
        rows=rows,
    )


def class_table(inputs: Inputs, said: Said) -> Table:
    num_classes, labels = inputs.cache.num_classes, inputs.sample.labels
    found = by_class(said.first, said.confidence, said.own, labels, num_classes)
    wrong = confusion(said.first, labels, num_classes)
    # The most frequent of each label stands first.
    told, places = np.unique(wrong.labels, return_index=True)
    others = dict(zip(told.tolist(), places.tolist(), strict=True))
    order = np.flatnonzero(found.rows)
    order = order[np.argsort(found.accuracy[order], kind="stable")]
    rows: list[tuple[Cell, ...]] = []
    for class_id in map(int, order[:_CLASSES]):
        place = others.get(class_id)
        rows.append(
            (
                inputs.classes[class_id],
                int(found.rows[class_id]),
                float(found.accuracy[class_id]),
                float(found.confidence[class_id]),
                float(found.own[class_id]),
                None if place is None else inputs.classes[int(wrong.said[place])],
                None if place is None else float(wrong.shares[place]),
            )
        )
    cut = f" Of {len(order):,} classes the {_CLASSES:,} least accurate are shown." if len(order) > _CLASSES else ""
    return Table(
        name="teacher-classes",
        title="By class",
        reading=f"How often views of a class are right, the worst first; confidence far above it is misplaced.{cut}",
        columns=[
            Column(title="class"),
            Column(title="images", format=",d"),
            Column(title="right", format=".1%"),
            Column(title="confidence", format=".1%"),
            Column(title="its probability", format=".1%"),
            Column(title="mostly taken for"),
            Column(title="in", format=".1%"),
        ],
        rows=rows,
    )
