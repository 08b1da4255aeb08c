"""What a teacher said about some views, put beside the views as a picture or page: to see that they belong together."""

import io
import logging
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from gdkd_cache.cache.cache import Cache
from gdkd_cache.data.recipes.recipe import Recipe
from gdkd_cache.data.source import FullSource, Source, settle
from gdkd_cache.data.sources.names import worded
from gdkd_cache.data.targets import ClassTargets
from gdkd_cache.data.views import ViewBatch, ViewRenderer, ViewRequest
from gdkd_cache.errors import UsageError
from gdkd_cache.files import replace_file
from gdkd_cache.losses.partition import top_classes
from gdkd_cache.report.options import ShowOptions
from gdkd_cache.report.sheet import ShownRow, ShownView, draw_sheet

_LOG = logging.getLogger(__name__)
_TOP = 5
_DEFAULT_VIEWS = 4


def show(options: ShowOptions, cache: Cache, source: Source, *, recipe: Recipe | None = None) -> Image.Image:
    """Draw a contact sheet: a row for each image, a column for each view, the teacher's top classes under each.

    Args:
        options: which rows and views.
        cache: whose views.
        source: their images; checked as for training.
        recipe: as for `Cache.dataset`.

    Raises:
        UsageError: a view or a key that does not exist.
        CacheError: the cache names no recipe, or is damaged.
        MismatchError: another source or recipe than the cache's.
        SourceError: an image cannot be read.
    """
    return draw_sheet(*_shown(options, cache, source, recipe))


def show_page(options: ShowOptions, cache: Cache, source: Source, *, recipe: Recipe | None = None) -> str:
    """The same as a page of HTML in one text, which needs nothing else; takes and raises what `show` does.

    Raises:
        UsageError: also where jinja2 is not installed.
    """
    try:
        from gdkd_cache.report.page_of_views import page_of_views
    except ImportError:
        raise UsageError(
            "a page needs jinja2, which is not installed: pip install 'gdkd-cache[report]', or name a .png"
        ) from None
    return page_of_views(*_shown(options, cache, source, recipe))


def _shown(
    options: ShowOptions, cache: Cache, source: Source, recipe: Recipe | None
) -> tuple[list[ShownRow], list[str], list[str]]:
    """The rows, the names of the classes, and the title."""
    identity, source = cache.manifest.identity, settle(source)
    rows = shown_rows(options, cache, source, recipe=recipe)
    assert identity.views is not None
    title = [
        f"{cache.path}: {source.name}, recipe {identity.views.recipe.name}, seed {identity.views.seed}",
        f"teacher {identity.teacher.name}: probabilities at temperature {options.temperature:g}; the label in green",
    ]
    if rows[0].views[0].mixed:
        title[-1] += ", the mixed-in image's in orange"
    return rows, worded(source.shown_names), title


def shown_rows(options: ShowOptions, cache: Cache, source: Source, *, recipe: Recipe | None = None) -> list[ShownRow]:
    """What `show` draws, as data; raises what it raises."""
    source = settle(source)
    dataset = cache.dataset(source, recipe=recipe, images_in_memory=0)
    _LOG.info("%s", dataset.replay)
    views = cache.manifest.identity.views
    assert views is not None
    rows = _find_rows(options, source)
    numbers = cache.view_numbers[:_DEFAULT_VIEWS] if options.views is None else options.views
    tops = [_top(cache, number, dataset.cache_rows[rows], options.temperature) for number in numbers]
    batches = ViewRenderer(source, dataset.recipe, views.seed)[ViewRequest(tuple(numbers), rows)]
    shown = []
    for position, row in enumerate(map(int, rows)):
        image, label = source[row]
        cells = [_shown_view(batch, position, top[position]) for batch, top in zip(batches, tops, strict=True)]
        shown.append(ShownRow(key=source.keys[row], label=label, image=image, views=tuple(cells)))
    return shown


def save_picture(picture: Image.Image, out: Path) -> None:
    """Write a picture in the format that the suffix names, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    data = io.BytesIO()
    picture.save(data, Image.registered_extensions()[out.suffix.lower()])
    replace_file(out, data.getvalue())


def _find_rows(options: ShowOptions, source: FullSource) -> np.ndarray:
    """Rows of the source: int64 [row]."""
    if not options.keys:
        return np.linspace(0, len(source) - 1, min(options.rows, len(source))).astype(np.int64)
    positions = {key: row for row, key in enumerate(source.keys)}
    if missing := [key for key in options.keys if key not in positions]:
        raise UsageError(f"key {missing[0]!r} is not in source {source.name}; its first is {source.keys[0]!r}")
    return np.array([positions[key] for key in options.keys], np.int64)


def _top(cache: Cache, view: int, rows: np.ndarray, temperature: float) -> list[tuple[tuple[int, float], ...]]:
    """For each row of the cache, the classes of largest logit and their probabilities."""
    logits = cache.view(view).logits(rows)
    probabilities = torch.softmax(logits / temperature, dim=1)
    classes = top_classes(logits, _TOP)
    return [
        tuple(zip(ids, values, strict=True))
        for ids, values in zip(classes.tolist(), probabilities.gather(1, classes).tolist(), strict=True)
    ]


def _shown_view(batch: ViewBatch, position: int, top: tuple[tuple[int, float], ...]) -> ShownView:
    mixed: tuple[tuple[int, float], ...] = ()
    targets = batch.targets
    if isinstance(targets, ClassTargets) and targets.partner_labels is not None and targets.shares is not None:
        share = float(targets.shares[position])
        mixed = (int(targets.labels[position]), share), (int(targets.partner_labels[position]), 1 - share)
    image = batch.pixels[position].permute(1, 2, 0).numpy()
    return ShownView(view=batch.view, image=image, top=top, mixed=mixed)
