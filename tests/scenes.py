"""Small scenes with masks, made by rule: rectangles on a ground, each class a colour, and a border that is ignored."""

import numpy as np

from gdkd_cache.data.masks import IGNORE
from gdkd_cache.data.source import FullSource, settle

CLASSES = ("ground", "red", "green", "blue")
_COLOURS = np.array([[90, 90, 90], [200, 60, 60], [60, 200, 60], [60, 60, 200]], np.float64)


class Scenes:
    """A source of one's own: `count` scenes of height x width, alike for one seed."""

    def __init__(self, count: int, seed: int = 0, size: tuple[int, int] = (32, 48)) -> None:
        self.keys = [f"scene{number}" for number in range(count)]
        self.classes = list(CLASSES)
        self.digest = f"scenes-{count}-{seed}-{size}"
        self._rows = [_scene(np.random.default_rng((seed, row)), *size) for row in range(count)]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        return self._rows[row]


def scenes(count: int, seed: int = 0, size: tuple[int, int] = (32, 48)) -> FullSource:
    return settle(Scenes(count, seed, size))


def _scene(draw: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    mask = np.zeros((height, width), np.int16)
    for _ in range(4):
        top, left = draw.integers(0, height - 8), draw.integers(0, width - 8)
        mask[top : top + draw.integers(6, 16), left : left + draw.integers(6, 24)] = draw.integers(1, len(CLASSES))
    image = _COLOURS[mask] + draw.normal(0, 30, (height, width, 3))
    mask[:2] = IGNORE
    return image.clip(0, 255).astype(np.uint8), mask
