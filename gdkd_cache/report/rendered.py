"""Views of a cache's images, rendered again for people to look at."""

from collections.abc import Sequence

import numpy as np

from gdkd_cache.cache.dataset import CachedDataset
from gdkd_cache.data.views import ViewRenderer, ViewRequest


def rendered_views(dataset: CachedDataset, seed: int, rows: np.ndarray, views: Sequence[int]) -> np.ndarray:
    """Some views of some images as the teacher saw them.

    Args:
        dataset: the images, joined with their cache.
        seed: of the views, as the cache's identity says.
        rows: int64 [row], of the dataset's source.
        views: their numbers.

    Returns:
        uint8 [row, view, height, width, 3].

    Raises:
        SourceError: an image cannot be read.
    """
    batches = ViewRenderer(dataset.source, dataset.recipe, seed)[ViewRequest(tuple(views), rows)]
    return np.stack([batch.pixels.permute(0, 2, 3, 1).numpy() for batch in batches], 1)
