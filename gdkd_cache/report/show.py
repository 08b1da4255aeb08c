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
from gdkd_cache.data.targets import ClassTargets, MaskTargets
from gdkd_cache.data.views import ViewBatch, ViewRenderer, ViewRequest
from gdkd_cache.errors import UsageError
from gdkd_cache.files import replace_file
from gdkd_cache.losses.partition import top_classes
from gdkd_cache.report.mask_sheet import ShownMask, ShownMaskRow, draw_mask_sheet
from gdkd_cache.report.options import ShowOptions
from gdkd_cache.report.sheet import ShownRow, ShownView, draw_sheet

_LOG = logging.getLogger(__name__)
_TOP = 5
_DEFAULT_VIEWS = 4


def show(options: ShowOptions, cache: Cache, source: Source, *, recipe: Recipe | None = None) -> Image.Image:
    """Draw a contact sheet: a row for each image, a column for each view, the teacher's top classes under each.

    Of images with masks, a line for each view: the image, its mask over it, and the first class of each cell of the
    teacher's main output, with its probability.

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
    source = settle(source)
    if source.has_masks:
        return draw_mask_sheet(*_shown_masks(options, cache, source, recipe))
    return draw_sheet(*_shown(options, cache, source, recipe))


def show_page(options: ShowOptions, cache: Cache, source: Source, *, recipe: Recipe | None = None) -> str:
    """The same as a page of HTML in one text, which needs nothing else; takes and raises what `show` does.

    Raises:
        UsageError: also where jinja2 is not installed, or the images have masks.
    """
    source = settle(source)
    if source.has_masks:
        raise UsageError("images with masks are shown in a picture, not in a page; name a .png or .jpg")
    try:
        from gdkd_cache.report.page_of_views import page_of_views
    except ImportError:
        raise UsageError(
            "a page needs jinja2, which is not installed: pip install 'gdkd-cache[report]', or name a .png"
        ) from None
    return page_of_views(*_shown(options, cache, source, recipe))


def _shown(
    options: ShowOptions, cache: Cache, source: FullSource, recipe: Recipe | None
) -> tuple[list[ShownRow], list[str], list[str]]:
    """The rows, the names of the classes, and the title."""
    rows = shown_rows(options, cache, source, recipe=recipe)
    what = f"probabilities at temperature {options.temperature:g}; the label in green"
    if rows[0].views[0].mixed:
        what += ", the mixed-in image's in orange"
    return rows, worded(source.shown_names), _title(cache, source, what)


def _title(cache: Cache, source: FullSource, what: str) -> list[str]:
    """Which views these are, and what is shown of the teacher's word."""
    identity = cache.manifest.identity
    assert identity.views is not None
    return [
        f"{cache.path}: {source.name}, recipe {identity.views.recipe.name}, seed {identity.views.seed}",
        f"teacher {identity.teacher.name}: {what}",
    ]


def _shown_masks(
    options: ShowOptions, cache: Cache, source: FullSource, recipe: Recipe | None
) -> tuple[list[ShownMaskRow], list[str], list[str]]:
    """As `_shown`, of images with masks."""
    rows, cached, batches = _rendered(options, cache, source, recipe)
    said = [_cells(cache, batch.view, cached, options.temperature) for batch in batches]
    shown = []
    for position, row in enumerate(map(int, rows)):
        image, mask = source[row]
        images = [ShownMask(name="source", image=image, mask=mask)]
        for batch, (classes, confidence) in zip(batches, said, strict=True):
            assert isinstance(batch.targets, MaskTargets)
            own = batch.pixels[position].permute(1, 2, 0).numpy(), batch.targets.masks[position].numpy()
            images.append(
                ShownMask(
                    name=f"view {batch.view}",
                    image=own[0],
                    mask=own[1],
                    classes=classes[position],
                    confidence=confidence[position],
                )
            )
        shown.append(ShownMaskRow(key=source.keys[row], images=tuple(images)))
    what = f"the first class of each cell, and its probability at temperature {options.temperature:g}"
    return shown, worded(source.shown_names), _title(cache, source, what)


def _cells(cache: Cache, view: int, rows: np.ndarray, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """The first class of each cell of some rows of the cache, of the main output, and its probability: [n, *cells]."""
    logits = cache.view(view).logits(rows)
    if logits.ndim == 5:
        logits = logits[:, 0]
    elif logits.ndim == 2:
        logits = logits[:, None, None]
    confidence, classes = torch.softmax(logits / temperature, dim=-1).max(-1)
    return classes.numpy(), confidence.numpy()


def shown_rows(options: ShowOptions, cache: Cache, source: Source, *, recipe: Recipe | None = None) -> list[ShownRow]:
    """What `show` draws, as data; raises what it raises."""
    source = settle(source)
    rows, cached, batches = _rendered(options, cache, source, recipe)
    tops = [_top(cache, batch.view, cached, options.temperature) for batch in batches]
    shown = []
    for position, row in enumerate(map(int, rows)):
        image, label = source[row]
        cells = [_shown_view(batch, position, top[position]) for batch, top in zip(batches, tops, strict=True)]
        shown.append(ShownRow(key=source.keys[row], label=label, image=image, views=tuple(cells)))
    return shown


def _rendered(
    options: ShowOptions, cache: Cache, source: FullSource, recipe: Recipe | None
) -> tuple[np.ndarray, np.ndarray, list[ViewBatch]]:
    """The rows to show, as rows of the source and of the cache, int64 [row], and a batch of them for each view."""
    dataset = cache.dataset(source, recipe=recipe, images_in_memory=0)
    _LOG.info("%s", dataset.replay)
    views = cache.manifest.identity.views
    assert views is not None
    rows = _find_rows(options, source)
    numbers = cache.view_numbers[:_DEFAULT_VIEWS] if options.views is None else options.views
    batches = ViewRenderer(source, dataset.recipe, views.seed)[ViewRequest(tuple(numbers), rows)]
    return rows, dataset.cache_rows[rows], batches


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
