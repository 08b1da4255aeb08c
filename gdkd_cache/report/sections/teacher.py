"""The teacher: how right it is, how sure, what it confuses, and which images it finds hard."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from gdkd_cache.report.base import Column, Drawing, Facts, Part, Picture, Pictures, Table
from gdkd_cache.report.drawing import add_legend, draw_reference, draw_steps, new_axes
from gdkd_cache.report.inputs import Inputs, Sample
from gdkd_cache.report.numbers.calibration import Reliability, reliability, shares
from gdkd_cache.report.numbers.classes import by_class, confusion
from gdkd_cache.report.numbers.said import Said, summarise
from gdkd_cache.report.options import ShowOptions
from gdkd_cache.report.pictures import to_picture
from gdkd_cache.report.sheet import ShownRow
from gdkd_cache.report.show import shown_rows
from gdkd_cache.texts import shown

_PAIRS = 20
_CLASSES = 1000
_IMAGES = 6
_VIEWS = 4
_BINS = 20


class _Teacher:
    title = "The teacher"
    reading = (
        "How right and how sure the teacher is, which classes it takes for each other, and where views change its mind."
    )

    def parts(self, inputs: Inputs) -> Sequence[Part]:
        sample = inputs.sample
        said = summarise(sample.logits, sample.labels)
        views = inputs.cache.manifest.identity.views
        if views is not None and views.recipe.mix is not None:
            return [_facts(inputs, said, None), *_sureness(said, None, inputs.cache.num_classes)]
        is_right = said.first == sample.labels
        calibrated = reliability(said.confidence, is_right)
        return [
            _facts(inputs, said, calibrated),
            _reliability(calibrated),
            *_sureness(said, is_right, inputs.cache.num_classes),
            *_confused(inputs, said),
            *_agreement(said),
            _by_class(inputs, said),
            *_images(inputs, said),
        ]


TEACHER = _Teacher()


def _facts(inputs: Inputs, said: Said, calibrated: Reliability | None) -> Facts:
    cache, sample = inputs.cache, inputs.sample
    read = f"{len(sample.rows):,} of {cache.num_rows:,} images in {len(sample.views):,} of {cache.num_views:,} views"
    lines = {"read": "all images and views" if sample.is_whole else f"{read}, spread evenly"}
    if calibrated is None:
        lines["left out"] = "all that asks for one right class: each view of this recipe mixes two images"
    else:
        lines["right"] = f"{(said.first == sample.labels).mean():.1%} of views have the label as their first class"
        lines["calibration error"] = f"{calibrated.error:.3f} (15 bins; 0 is best)"
    lines["confidence"] = f"{said.confidence.mean():.1%} is the mean probability of the first class"
    if calibrated is not None and len(sample.views) > 1:
        lines["agreement of views"] = f"{said.agreement.mean():.1%} of pairs of an image's views have one first class"
        lines["divergence of views"] = (
            f"{said.divergence.mean():.3f} nats (Jensen-Shannon, mean over images; 0 is alike)"
        )
    if cache.manifest.identity.codec.name == "topk":
        lines["kept"] = (
            f"the first {cache.manifest.identity.codec.num_top} classes and how much the others hold together, so what "
            "is told of the others one by one is their mean"
        )
    if cache.manifest.identity.examination is None:
        lines["labels"] = "the cache does not tell whether they come from elsewhere than the logits"
    return Facts(
        title="In short",
        reading="Of the teacher as the cache gives it back, on views, not on whole images.",
        lines=lines,
    )


def _reliability(found: Reliability) -> Drawing:
    filled = found.counts > 0
    share = found.counts / max(found.counts.sum(), 1)
    figure, (axes,) = new_axes(x="confidence", y="share", x_format=".0%", y_format=".0%")
    draw_reference(axes, [0, 1], [0, 1], "right as often as it says")
    draw_steps(axes, found.edges, [("how often right", np.nan_to_num(found.accuracy)), ("share of views", share)])
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    add_legend(figure, axes)
    rows = [
        (float(low), float(high), int(count), float(said), float(right))
        for low, high, count, said, right in zip(
            found.edges[:-1], found.edges[1:], found.counts, found.confidence, found.accuracy, strict=True
        )
        if count
    ]
    too = "more" if (found.accuracy - found.confidence)[filled] @ found.counts[filled] < 0 else "less"
    return Drawing(
        table=Table(
            name="teacher-reliability",
            title="Reliability",
            reading="Where the steps lie below the dashed line, the teacher is more sure than it is right.",
            columns=[
                Column(title="confidence above", format=".1%"),
                Column(title="up to", format=".1%"),
                Column(title="views", format=",d"),
                Column(title="mean confidence", format=".1%"),
                Column(title="right", format=".1%"),
            ],
            rows=rows,
        ),
        figure=figure,
        described=f"Calibration error {found.error:.3f}: on the whole the teacher is {too} sure than it is right.",
    )


def _sureness(said: Said, is_right: np.ndarray | None, num_classes: int) -> list[Drawing]:
    """Histograms of confidence and entropy: of right and wrong views apart, where that is known."""
    confidence = _histogram(
        said.confidence,
        is_right,
        np.linspace(0, 1, _BINS + 1),
        name="teacher-confidence",
        title="How sure it is",
        reading="Views by the probability of the first class: a teacher that is sure of all has them all on the right.",
        unit="confidence",
        form=".0%",
    )
    entropy = _histogram(
        said.entropy,
        is_right,
        np.linspace(0, np.log(num_classes), _BINS + 1),
        name="teacher-entropy",
        title="How spread its probabilities are",
        reading="Views by entropy: 0 is one class alone, the right end is all classes alike.",
        unit="entropy, nats",
        form=".2g",
    )
    return [confidence, entropy]


def _histogram(
    values: np.ndarray,
    is_right: np.ndarray | None,
    edges: np.ndarray,
    *,
    name: str,
    title: str,
    reading: str,
    unit: str,
    form: str,
) -> Drawing:
    heights = [("views", shares(values, edges, values.size))]
    if is_right is not None:
        heights = [
            (kind, shares(values[which], edges, values.size))
            for kind, which in (("right", is_right), ("wrong", ~is_right))
        ]
    figure, (axes,) = new_axes(x=unit, y="share of views", x_format=form, y_format=".0%")
    draw_steps(axes, edges, heights)
    axes.set_xlim(float(edges[0]), float(edges[-1]))
    axes.set_ylim(bottom=0)
    if is_right is not None:
        add_legend(figure, axes)
    tick = ".0%" if form == ".0%" else ".3f"
    return Drawing(
        table=Table(
            name=name,
            title=title,
            reading=reading,
            columns=[
                Column(title="from", format=tick),
                Column(title="to", format=tick),
                *(
                    Column(title=f"share of views, {kind}" if is_right is not None else kind, format=".2%")
                    for kind, _ in heights
                ),
            ],
            rows=[
                (float(low), float(high), *(float(values[place]) for _, values in heights))
                for place, (low, high) in enumerate(pairwise(edges))
            ],
        ),
        figure=figure,
        described=f"The median is {format(float(np.median(values)), tick)}.",
    )


def _confused(inputs: Inputs, said: Said) -> list[Part]:
    found = confusion(said.first, inputs.sample.labels, inputs.cache.num_classes)
    if not len(found.counts):
        return []
    own = int(np.sum(said.first != inputs.sample.labels))
    rows = [
        (inputs.classes[label], inputs.classes[other], int(count), float(share), float(count / own))
        for label, other, count, share in zip(
            *(one[:_PAIRS].tolist() for one in (found.labels, found.said, found.counts, found.shares)), strict=True
        )
    ]
    table = Table(
        name="teacher-confused",
        title="Classes taken for each other",
        reading="The label, what the teacher says instead, and in how many of the label's views; the most frequent first.",
        columns=[
            Column(title="label"),
            Column(title="said"),
            Column(title="views", format=",d"),
            Column(title="of the label's", format=".1%"),
            Column(title="of all errors", format=".1%"),
        ],
        rows=rows,
    )
    return [table]


def _agreement(said: Said) -> list[Part]:
    if len(said.first) < 2:
        return []
    edges = np.linspace(0, 1, 11)
    heights = shares(said.agreement, edges, said.agreement.size)
    figure, (axes,) = new_axes(
        x="pairs of views with one first class", y="share of images", x_format=".0%", y_format=".0%"
    )
    draw_steps(axes, edges, [("", heights)])
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    drawing = Drawing(
        table=Table(
            name="teacher-agreement",
            title="Do the views of an image agree?",
            reading="Images by how many pairs of their views have the same first class; on the right all views agree.",
            columns=[
                Column(title="from", format=".0%"),
                Column(title="to", format=".0%"),
                Column(title="share of images", format=".2%"),
            ],
            rows=[
                (float(low), float(high), float(height))
                for low, high, height in zip(edges[:-1], edges[1:], heights, strict=True)
            ],
        ),
        figure=figure,
        described=(
            f"{(said.agreement == 1).mean():.1%} of images have the same first class in all {len(said.first)} views; "
            f"{said.agreement.mean():.1%} of pairs agree."
        ),
    )
    return [drawing]


def _by_class(inputs: Inputs, said: Said) -> Table:
    num_classes, labels = inputs.cache.num_classes, inputs.sample.labels
    found = by_class(said.first, said.confidence, said.own, labels, num_classes)
    wrong = confusion(said.first, labels, num_classes)
    # The most frequent of each label stands first.
    told, places = np.unique(wrong.labels, return_index=True)
    others = dict(zip(told.tolist(), places.tolist(), strict=True))
    order = np.flatnonzero(found.rows)
    order = order[np.argsort(found.accuracy[order], kind="stable")]
    rows = []
    for class_id in order[:_CLASSES].tolist():
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


def _images(inputs: Inputs, said: Said) -> list[Part]:
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
    rows = []
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
