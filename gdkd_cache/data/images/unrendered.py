"""Images that are decoded and not rendered: for their checks alone."""

from collections.abc import Iterator

import numpy as np
import torch

from gdkd_cache.data.checks import Comparison, Sample, check_images
from gdkd_cache.data.recipes.recipe import Recipe
from gdkd_cache.data.source import FullSource
from gdkd_cache.data.targets import ClassTargets
from gdkd_cache.data.views import ViewBatch, ViewRenderer, ViewRequest, side_lengths


class DecodedImages(ViewRenderer):
    """Decodes a source's images: `decoded[request]` is one batch of no pixels, with the images' checks.

    Args:
        source: the images.
        recipe: how they are decoded.
        comparison: what they must be; then the batch says instead which of them differ by rounding.
    """

    def __init__(self, source: FullSource, recipe: Recipe, *, comparison: Comparison | None = None) -> None:
        super().__init__(source, recipe, 0, comparison=comparison)

    def __getitem__(self, request: ViewRequest) -> list[ViewBatch]:
        rows, sizes = request.rows, np.zeros((len(request.rows), 2), np.uint16)
        samples = self._measured(rows, sizes)
        checks = rounded = None
        if self._comparison is None:
            checks = check_images(samples, len(rows))
        else:
            is_exact = map(self._comparison.is_exact, rows.tolist(), samples)
            rounded = ~np.fromiter(is_exact, bool, len(rows))
        targets = ClassTargets(torch.from_numpy(self.source.labels[rows]))
        pixels = torch.empty((len(rows), 0), dtype=torch.uint8)
        return [ViewBatch(request.views[0], rows, pixels, targets, source_checks=checks, sizes=sizes, rounded=rounded)]

    def _measured(self, rows: np.ndarray, sizes: np.ndarray) -> Iterator[Sample]:
        for position, sample in enumerate(self.decode(rows)):
            sizes[position] = side_lengths(sample[0])
            yield sample
