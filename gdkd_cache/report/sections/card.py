"""What a cache is: its data, its teacher and how good that is, its views, its size, how to get and check it."""

import shlex
from collections.abc import Iterator, Sequence
from pathlib import PurePath

from gdkd_cache.data.source import FullSource
from gdkd_cache.losses.base import ForeignLoss, loss_from_json
from gdkd_cache.report.base import Cell, Column, Facts, Part, Pictures, Table
from gdkd_cache.report.inputs import Inputs
from gdkd_cache.report.options import ShowOptions
from gdkd_cache.report.pictures import to_picture
from gdkd_cache.report.show import shown_rows
from gdkd_cache.store.card import card_facts
from gdkd_cache.store.facts import Examined
from gdkd_cache.texts import shown

_IMAGES, _VIEWS = 4, 5
_IN_WORDS = {
    "data": "Data",
    "teacher": "Teacher",
    "sees": "What the teacher sees",
    "examined": "The teacher's accuracy",
    "views": "Views",
    "recipe": "Augmentation",
    "codec": "Compression",
    "serves": "Losses it serves",
    "license": "License",
    "contact": "Contact",
    "made with": "Made with",
}


class _Card:
    title = "The cache"
    reading = "What was kept of which teacher on which images, and how to get it and check it."

    def parts(self, inputs: Inputs) -> Sequence[Part]:
        return list(_parts(inputs))


CARD = _Card()


def shown_place(inputs: Inputs) -> str:
    """Where the cache lies, as others can use it: a URL, or a folder's name alone."""
    path = str(inputs.cache.path)
    return path if "://" in path else PurePath(path).name


def _parts(inputs: Inputs) -> Iterator[Part]:
    yield _facts(inputs)
    if (table := _examined(inputs)) is not None:
        yield table
    if inputs.source is not None:
        yield _strip(inputs, inputs.source)
    yield _commands(inputs)


def _facts(inputs: Inputs) -> Facts:
    manifest = inputs.cache.manifest
    identity = manifest.identity
    per_view = manifest.num_bytes / (identity.num_views * identity.num_rows)
    lines = {_IN_WORDS.get(name, name.capitalize()): text for name, text in card_facts(identity).items()}
    lines["Size"] = f"{per_view:.1f} bytes a view, {manifest.num_bytes:,} bytes in {len(manifest.objects)} objects"
    lines["Digest"] = manifest.digest
    return Facts(
        title="What it is",
        reading="All of this stands in the cache's manifest, which the digest covers: caches of one digest are "
        "equal to the bit.",
        lines=lines,
    )


def _examined(inputs: Inputs) -> Table | None:
    found = inputs.cache.manifest.identity.examination
    if found is None:
        return None
    rows = [_row("views as in the cache, of training images", found.views)]
    if found.evaluated is not None:
        rows.append(_row(f"{found.data}, prepared by {found.recipe}", found.evaluated))
    columns = (
        Column(title="Images"),
        Column(title="Number", format=",d"),
        Column(title="Top-1", format=".2%"),
        Column(title="Top-5", format=".2%"),
        Column(title="Calibration error", format=".3f"),
        Column(title="Entropy, nats", format=".3f"),
    )
    return Table(
        name="teacher-examined",
        title="How good the teacher is",
        reading="Measured before the cache was built. Top-1 is how often the likeliest class is the label; the "
        "calibration error is how far its probability is from that, 0 at best; entropy is how unsure it is.",
        columns=columns,
        rows=rows,
    )


def _row(what: str, found: Examined) -> tuple[Cell, ...]:
    numbers = (found.top1, found.top5, found.calibration_error, found.entropy)
    return (what, found.rows, *(float(number) for number in numbers))


def _strip(inputs: Inputs, source: FullSource) -> Pictures:
    assert inputs.dataset is not None
    options = ShowOptions(rows=_IMAGES, views=tuple(inputs.cache.view_numbers[:_VIEWS]))
    strips = []
    for row in shown_rows(options, inputs.cache, source, recipe=inputs.dataset.recipe):
        name = inputs.classes[row.label]
        pictures = [to_picture(row.image, ["the image"], f"an image of class {name}")]
        for view in row.views:
            first, probability = view.top[0]
            captions = [f"view {view.view}", f"{probability:.0%} {inputs.classes[first]}"]
            pictures.append(to_picture(view.image, captions, f"view {view.view} of it: {captions[1]}"))
        strips.append((f"{name}: {shown(row.key, 80)}", pictures))
    return Pictures(
        title="What the teacher saw",
        reading="Some images and their first views, cut and changed as the teacher saw them and as a student will see "
        "them; below each is the teacher's likeliest class with its probability.",
        rows=strips,
    )


def _commands(inputs: Inputs) -> Facts:
    place, name = shown_place(inputs), shlex.quote(PurePath(shown_place(inputs)).name)
    identity, digest = inputs.cache.manifest.identity, inputs.cache.manifest.digest
    served = [one for one in map(loss_from_json, identity.request.losses) if not isinstance(one, ForeignLoss)]
    loss = shlex.quote(served[0].spec if served else "gdkd")
    commands = {"Get it": f"gdkd-cache pull {shlex.quote(place)} {name}"} if "://" in place else {}
    commands["Check every byte"] = f"gdkd-cache verify {name} --digest {digest}"
    if identity.views is not None:
        commands["Check it against your images"] = f"gdkd-cache verify {name} --deep --data DATA"
        commands["Train from it"] = (
            f"gdkd-cache train --loss {loss} --data DATA --cache {name} --digest {digest} --student cnn-s --epochs 8 "
            "--out student"
        )
    return Facts(
        title="How to get it and check it",
        reading="Commands to type; DATA is your own copy of the images, as --data takes it.",
        lines=commands,
        is_code=True,
    )
