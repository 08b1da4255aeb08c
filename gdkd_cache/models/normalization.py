"""How a network's inputs are made of pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gdkd_cache.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Normalization:
    """Channel statistics of a network's inputs, for pixels in [0, 1].

    Attributes:
        mean, std: of red, green and blue.

    Raises:
        UsageError: not three finite means, or not three deviations above 0.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != 3 or not all(-1e6 < value < 1e6 for value in self.mean):
            raise UsageError(f"mean is {list(self.mean)}; it must be three numbers, of red, green and blue in 0..1")
        if len(self.std) != 3 or not all(0 < value < 1e6 for value in self.std):
            raise UsageError(f"std is {list(self.std)}; it must be three numbers above 0, of red, green and blue")


IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
NAMED = {
    "imagenet": IMAGENET,
    "cifar": Normalization((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "half": Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""What published networks were trained with: ImageNet's statistics, CIFAR-100's, or pixels in -1..1."""


def named_normalization(
    name: str | None = None, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> Normalization | None:
    """What a user has said of a network's inputs: a name of `NAMED`, or mean and std; None where nothing was said.

    Raises:
        UsageError: an unknown name, a name beside numbers, mean without std or the reverse, or numbers out of range.
    """
    if name is not None and (mean is not None or std is not None):
        raise UsageError("--normalize names mean and std; give it, or --mean and --std")
    if name is not None:
        if name not in NAMED:
            raise UsageError(f"normalize is {name!r}; it must be one of {', '.join(NAMED)}, or give --mean and --std")
        return NAMED[name]
    if (mean is None) != (std is None):
        raise UsageError("--mean and --std go together: three numbers each, for pixels in 0..1")
    return None if mean is None or std is None else Normalization(tuple(mean), tuple(std))


def normalize_pixels(pixels: "Tensor", mean: Sequence[float], std: Sequence[float]) -> "Tensor":
    """uint8 [n, channel, height, width] to float32, (x / 255 - mean) / std for each channel, on its device."""
    import torch  # here, so that options can name a normalisation without it

    scale = torch.tensor([mean, std], device=pixels.device).mul_(255)[:, None, :, None, None]
    return pixels.to(torch.float32).sub_(scale[0]).div_(scale[1])
