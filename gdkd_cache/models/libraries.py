"""What a library of networks offers beside the networks: the weights that it published, and how these see images."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from gdkd_cache.models.normalization import Normalization


@dataclass(frozen=True, kw_only=True)
class Stated:
    """What somebody says of a network; None for what is left open.

    Attributes:
        by: who says it, in words, such as `its card`.
        normalization: of its inputs.
        size: height and width of the images that it was made for.
        interpolation: how they are resized: `bilinear`, `bicubic`, ...
        eval_recipe: what makes its inputs of images, without augmentation.
        classes: the names of its outputs, in their order.
    """

    by: str
    normalization: Normalization | None = None
    size: tuple[int, int] | None = None
    interpolation: str | None = None
    eval_recipe: str | None = None
    classes: tuple[str, ...] | None = None


class Library(ABC):
    """Networks of a library, each by a text after the library's name and a colon.

    Attributes:
        names_places: whether that text is a place on this machine, which no file may name.
    """

    names_places = False

    @abstractmethod
    def __call__(self, name: str, num_classes: int) -> nn.Module:
        """One of its networks, with fresh weights.

        Raises:
            UsageError: it has none of that name, or is not installed.
        """

    def published(self, name: str, weights: str) -> Path | None:
        """The file of weights that the library published under a name, fetched where it can be.

        Returns:
            None where the text is no name of weights, and so a place on disk.

        Raises:
            ModelError: the file is neither on this machine nor to be had; it says which to put where.
        """
        return None

    def trained(self, name: str) -> tuple[nn.Module, str] | None:
        """A network that lies on disk with its weights, and their checksum; None for a library that has none such."""
        return None

    def stated(self, name: str, weights: str | None) -> Stated | None:
        """What the library says of one of its networks with these weights; None where it says nothing of them."""
        return None

    def public_name(self, name: str) -> str:
        """The name for manifests and cards, without places on this machine."""
        return name


def centre_crop(size: int, resize: int) -> str:
    """The recipe that resizes the shorter side and crops the centre."""
    return f"imagenet-eval:size={size},resize={resize}"
