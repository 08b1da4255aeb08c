"""A report of a cache: its inputs are read once, each section says what it shows, and the page is made of that."""

import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gdkd_cache.cache.cache import Cache
from gdkd_cache.data.recipes.recipe import Recipe
from gdkd_cache.data.source import Source, settle
from gdkd_cache.data.sources.names import worded
from gdkd_cache.errors import NotServedError, UsageError
from gdkd_cache.progress import progress
from gdkd_cache.report.options import ReportOptions
from gdkd_cache.store.cells import ONE_CELL
from gdkd_cache.store.manifest import Manifest
from gdkd_cache.training.records.runs import group_runs, read_run

if TYPE_CHECKING:
    from gdkd_cache.report.base import Part
    from gdkd_cache.report.inputs import Inputs
    from gdkd_cache.report.page import Number

_LOG = logging.getLogger(__name__)
_LIBRARIES = ("jinja2", "matplotlib")
_LONGEST_NAME = 80


@dataclass(frozen=True, kw_only=True)
class Report:
    """Attributes: html: the page, a file of its own; parts: what it shows."""

    html: bytes
    parts: "Sequence[Part]"

    def files(self) -> dict[str, bytes]:
        """Its figures as SVG and its tables as CSV, by name."""
        from gdkd_cache.report.files import part_files

        return part_files(self.parts)


def require_libraries() -> None:
    """Look whether a report can be made here; loads nothing.

    Raises:
        UsageError: a library of the extra is not installed.
    """
    if missing := [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]:
        raise UsageError(
            f"a report needs {' and '.join(missing)}, which {'are' if len(missing) > 1 else 'is'} not installed: "
            "pip install 'gdkd-cache[report]'"
        )


def report(
    options: ReportOptions, cache: Cache, *, source: Source | None = None, recipe: Recipe | None = None
) -> Report:
    """Make a page of a cache.

    Args:
        options: what else it is of.
        cache: of rows of one cell.
        source: the images, checked as for training; without it none are shown.
        recipe: as for `Cache.dataset`.

    Raises:
        UsageError: a library is not installed, a run that is none, a class that the cache does not have, or a page that
            would be too large.
        NotServedError: the cache's rows are of several cells.
        CacheError: the cache is damaged, or a source is given and it names no recipe.
        MismatchError: another source or recipe than the cache's.
        SourceError: an image cannot be read.
        OSError: a run cannot be read.
    """
    require_libraries()
    if cache.manifest.identity.cells != ONE_CELL:
        cells = cache.manifest.identity.cells
        raise NotServedError(
            f"{cache.path} holds {cells.height}x{cells.width} distributions for each image; a report is of caches with "
            "one: gdkd-cache inspect tells what it holds"
        )
    # The parts of a page need libraries that not everyone has.
    from gdkd_cache.report.page import Chapter, Page, page_html
    from gdkd_cache.report.sections.card import shown_place
    from gdkd_cache.report.sections.registry import sections

    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it tells of its fonts
    all_sections = sections()
    chapters, parts = [], []
    inputs = _inputs(options, cache, source, recipe)
    with progress("report", len(all_sections), "sections") as advance:
        for name, section in all_sections:
            shown = section.parts(inputs)
            if shown:
                chapters.append(Chapter(name=name, title=section.title, reading=section.reading, parts=shown))
                parts += shown
            advance(1, section.title)
    manifest = cache.manifest
    page = Page(
        name=shown_place(inputs),
        about=f"What {manifest.identity.teacher.name} said about {manifest.identity.num_views} views of each of "
        f"{manifest.identity.num_rows:,} images of {manifest.identity.data.name}, in {len(inputs.classes):,} classes",
        numbers=_numbers(manifest),
        digest=manifest.digest,
        chapters=chapters,
    )
    return Report(html=page_html(page), parts=parts)


def _inputs(options: ReportOptions, cache: Cache, source: Source | None, recipe: Recipe | None) -> "Inputs":
    from gdkd_cache.report.inputs import Inputs
    from gdkd_cache.report.sample import read_sample
    from gdkd_cache.texts import shown

    runs = [read_run(path) for path in options.runs]
    group_runs(runs)  # a run given twice is told before anything else is done
    full = None if source is None else settle(source)
    dataset = None if full is None else cache.dataset(full, recipe=recipe, images_in_memory=0)
    if dataset is not None:
        _LOG.info("%s", dataset.replay)
    classes = worded(cache.manifest.identity.classes if full is None else full.shown_names)
    return Inputs(
        options=options,
        cache=cache,
        sample=read_sample(cache),
        classes=tuple(shown(name, _LONGEST_NAME) for name in classes),
        source=full,
        dataset=dataset,
        runs=runs,
    )


def _numbers(manifest: Manifest) -> "list[Number]":
    """The three that matter; a dash for what nobody measured."""
    from gdkd_cache.report.page import UNKNOWN, Number

    identity = manifest.identity
    examination, errors = identity.examination, identity.fidelity.gradient_error
    accuracy, where = identity.teacher.accuracy, "top-1 on held-out images, as its card says"
    if examination is not None:
        found, where = examination.views, "top-1 on augmented views of training images"
        if examination.evaluated is not None:
            found, where = examination.evaluated, f"top-1 on images of {examination.data}"
        accuracy = found.top1
    worst = max(errors.values(), default=None)
    per_view = manifest.num_bytes / (identity.num_views * identity.num_rows)
    plain = 2 * len(identity.classes)
    return [
        Number(
            name="Teacher's accuracy",
            value=f"{accuracy:.1%}" if isinstance(accuracy, int | float) else UNKNOWN,
            reading=where if isinstance(accuracy, int | float) else "nobody measured it",
        ),
        Number(
            name="Bytes a view",
            value=f"{per_view:,.1f}",
            reading=f"all files counted; its logits in float16 would take {plain:,}",
        ),
        Number(
            name="Gradient error",
            value=UNKNOWN if worst is None else f"{worst:.1%}",
            reading="nobody measured it"
            if worst is None
            else f"how far gradients are from those of all logits; {identity.request.fidelity:.0%} was asked for",
        ),
    ]
