"""Is a teacher shown images otherwise than it was trained on? It is shown some again in other ways, to see."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from gdkd_cache.building.figures import Fault, much_better
from gdkd_cache.data.views import ViewBatch
from gdkd_cache.errors import ModelError
from gdkd_cache.models.network import Network
from gdkd_cache.models.normalization import NAMED, Normalization

CHOSEN_ROWS, JUDGED_ROWS = 128, 1024
"""Of how many rows the best way is chosen, and on how many others it is judged, at most."""
_FEWEST_ROWS = 64
_USUAL_SIDE = 224
_UNNAMED = {
    "pixels in 0..1 as they are": Normalization((0.0,) * 3, (1.0,) * 3),
    "pixels in 0..255": Normalization((0.0,) * 3, (1 / 255,) * 3),
}


@dataclass(frozen=True, kw_only=True)
class Feeding:
    """A way to show images to a network.

    Attributes:
        normalization: of its inputs.
        reverses: whether blue, green and red stand in the places of red, green and blue.
        size: height and width that the views are resized to; None leaves them.
    """

    normalization: Normalization
    reverses: bool = False
    size: tuple[int, int] | None = None

    def predicted(self, network: Network, pixels: Tensor) -> Tensor:
        """The network's top classes, int64 [batch], of uint8 views [batch, 3, height, width] shown so."""
        mean, std = self.normalization.mean, self.normalization.std
        if self.size is not None:
            resized = F.interpolate(pixels.float(), self.size, mode="bilinear", antialias=True)
            pixels = resized.round_().clamp_(0, 255).byte()
        if self.reverses:
            pixels, mean, std = pixels.flip(1), mean[::-1], std[::-1]
        return replace(network, mean=mean, std=std).logits(pixels).argmax(-1).cpu()


def feedings(network: Network, data: Normalization, size: tuple[int, int], *, thorough: bool) -> list[Feeding]:
    """The ways to try: first the one that is used, then those that differ from it.

    Args:
        network: how it is shown images now.
        data: statistics of the data, which networks are normalised with by mistake, or by right.
        size: height and width of the views.
        thorough: whether several things may differ at once, and sizes that nobody states are tried.
    """
    given = Normalization(network.mean, network.std)
    other = [one for one in (*NAMED.values(), *_UNNAMED.values(), data) if not _alike(one, given)]
    other = [one for number, one in enumerate(other) if not any(_alike(one, earlier) for earlier in other[:number])]
    usual = (_USUAL_SIDE, _USUAL_SIDE) if thorough and max(size) < _USUAL_SIDE else None
    made_for = network.size or usual
    return [
        Feeding(normalization=given),
        *(Feeding(normalization=one) for one in other),
        Feeding(normalization=given, reverses=True),
        *(Feeding(normalization=one, reverses=True) for one in other if thorough),
        *([Feeding(normalization=given, size=made_for)] if made_for not in (None, size) else []),
    ]


def _alike(one: Normalization, other: Normalization) -> bool:
    return np.allclose(one.mean + one.std, other.mean + other.std, rtol=0.02, atol=1e-6)


def find_feeding(
    network: Network,
    ways: list[Feeding],
    views: Callable[[np.ndarray], Iterable[ViewBatch]],
    rows: np.ndarray,
    advance: Callable[[int], None],
) -> Fault | None:
    """What is wrong with the first way of showing images, where another does much better; None where none does.

    The best is chosen on some rows, and judged on others.

    Args:
        network: the teacher.
        ways: to show it images, the one that is used first.
        views: gives the views of rows, int64 [row].
        rows: that may be used, int64 [row].
        advance: called with the number of views that each way was tried on.
    """
    if len(rows) < _FEWEST_ROWS:
        return None
    cut = min(CHOSEN_ROWS, len(rows) // 4)
    used, *others = ways
    chosen = list(views(rows[:cut]))
    scores = {}
    for way in ways:
        if (right := _right(network, way, chosen)) is not None:
            scores[way] = int(right.sum())
        advance(cut)
    best = max((way for way in others if way in scores), key=scores.__getitem__, default=used)
    if scores[best] <= scores[used]:
        return None
    judged = list(views(rows[cut : cut + JUDGED_ROWS]))
    before, after = _right(network, used, judged), _right(network, best, judged)
    if before is None or after is None or not much_better(before, after):
        return None
    figures = f"{after.mean():.1%} of {len(after)} views are right so, and {before.mean():.1%} as it is"
    cause, cure = _told(used, best)
    return Fault(float(after.mean()), f"{cause} is at fault: {figures}; {cure}")


def _right(network: Network, way: Feeding, batches: list[ViewBatch]) -> np.ndarray | None:
    """Which views the network is right about, bool [row]; None where it takes none such."""
    try:
        right = [way.predicted(network, batch.pixels) == batch.targets.labels.cpu() for batch in batches]
    except ModelError:
        return None
    return np.concatenate([part.numpy() for part in right])


def _told(used: Feeding, best: Feeding) -> tuple[str, str]:
    """What differs between two ways, and what to do about it."""
    causes, cures = zip(*_differences(used, best), strict=True)
    return " and ".join(causes), "; ".join(cures)


def _differences(used: Feeding, best: Feeding) -> Iterator[tuple[str, str]]:
    if best.normalization != used.normalization:
        cause = f"the normalisation of its inputs ({_named(best.normalization)} for {_named(used.normalization)})"
        yield cause, f"type {_typed(best.normalization)}"
    if best.reverses:
        yield (
            "the order of its channels (BGR for RGB)",
            "reverse them in a callable of yours, or in the source if that is what gives BGR",
        )
    if best.size is not None:
        height, width = best.size
        yield f"the size of the views ({height}x{width} does better)", "name a recipe that makes them so large"


def _named(one: Normalization) -> str:
    known = next((name for name, other in (NAMED | _UNNAMED).items() if _alike(one, other)), None)
    return known or f"mean {_numbers(one.mean)}, std {_numbers(one.std)}"


def _typed(one: Normalization) -> str:
    known = next((name for name, other in NAMED.items() if one == other), None)
    return f"--normalize {known}" if known else f"--mean {_numbers(one.mean)} --std {_numbers(one.std)}"


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.6g}" for value in values)
