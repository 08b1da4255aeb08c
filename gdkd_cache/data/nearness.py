"""How near views of one image are to each other: whole numbers, the same on every machine, without pixels."""

import numpy as np

from gdkd_cache.data.recipes.recipe import Recipe
from gdkd_cache.data.recipes.step import NEAREST
from gdkd_cache.seeding import Words, streams


class Nearness:
    """How near views are, from their recipe, seed and keys, and from the sizes of the images.

    Args:
        recipe: what the views are made with; None for views that nobody knows, which are all alike.
        seed: of the views.
        key_hashes: uint64 [row].
    """

    def __init__(self, recipe: Recipe | None, seed: int, key_hashes: Words) -> None:
        self._recipe, self._seed, self._key_hashes = recipe, seed, key_hashes

    def weights(self, view: int, others: range, rows: np.ndarray, sizes: np.ndarray | None) -> np.ndarray:
        """How much other views show of what a view shows: int16 [n, other] in 1..256.

        Args:
            view: the view.
            others: the numbers of the other views.
            rows: int64 [n].
            sizes: height and width of the rows' images, [n, 2]; None where there is no recipe.
        """
        weights = np.full((len(rows), len(others)), NEAREST, np.int16)
        if self._recipe is None or sizes is None:
            return weights
        sizes, hashes = sizes.astype(np.int64), self._key_hashes[rows]
        own = self._recipe.places(streams(self._seed, "view", view, hashes), sizes)
        for column, other in enumerate(others):
            places = self._recipe.places(streams(self._seed, "view", other, hashes), sizes)
            nearness = self._recipe.nearness(own, places)
            if nearness is not None:
                weights[:, column] = nearness
        return weights
