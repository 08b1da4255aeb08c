"""A network at work: uint8 views in, logits out, with what it needs to see images rightly."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from gdkd_cache.device import autocast, choose_precision, laid_out, memory_formats, usual_memory_format
from gdkd_cache.models.cells import cell_logits
from gdkd_cache.models.normalization import normalize_pixels
from gdkd_cache.models.trial import first_taken, running, try_logits
from gdkd_cache.store.cells import Cells
from gdkd_cache.store.facts import BuildFacts, TeacherFacts

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network with what it needs to see images rightly: a teacher, or what is evaluated.

    Attributes:
        model: float images [batch, 3, height, width] -> logits [batch, class]; of a dense one, as `cells` says.
        mean, std: channel statistics of its inputs, for pixels in [0, 1].
        device, precision: where and how it runs: `float32`, `float16` or `bfloat16`.
        description: what a manifest says of it.
        memory_format: of the images that it is given, which moves the last bits of its logits: `channels_last` or
            `contiguous`; None is the device's usual one, until `tried` finds a faster.
        size: height and width of the images that it was made for; None where nobody says.
        interpolation: how these were resized, likewise.
        eval_recipe: what makes its inputs without augmentation, likewise.
        classes: what each of its logits is called, likewise.
        outputs, grid: of a dense network, once it is `tried`: the outputs' names, and the grid of logits of such views.
        origins: who said `normalization`, `size`, ..., by these names.
    """

    model: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: torch.device
    precision: str
    description: TeacherFacts
    memory_format: str | None = None
    size: tuple[int, int] | None = None
    interpolation: str | None = None
    eval_recipe: str | None = None
    classes: tuple[str, ...] | None = None
    outputs: tuple[str, ...] = ()
    grid: tuple[int, ...] = ()
    origins: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """How it sees images, and who says so, in a line."""
        numbers = (" ".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        said = {
            "normalization": "mean {}, std {}".format(*numbers),
            "size": self.size and f"made for {self.size[0]}x{self.size[1]}",
            "interpolation": self.interpolation,
            "classes": self.classes and f"{len(self.classes)} named classes",
        }
        parts = [f"{text} ({self.origins.get(name, 'given')})" for name, text in said.items() if text]
        return f"{self.description.name}: {', '.join(parts)}"

    def logits(self, pixels: Tensor) -> Tensor:
        """Float32 logits [batch, *grid, class] of uint8 views [batch, 3, height, width], on the network's device."""
        with torch.inference_mode(), autocast(self.precision, self.device):
            images = normalize_pixels(pixels.to(self.device, non_blocking=True), self.mean, self.std)
            images = laid_out(images, self.memory_format or usual_memory_format(self.device))
            with running(f"teacher {self.description.name}"):
                outputs = self.model(images)
            _, logits = cell_logits(outputs, f"teacher {self.description.name}")
        # A copy made outside inference mode may take part in a loss.
        return logits.clone()

    @property
    def cells(self) -> Cells:
        """Of which it says something, of each view of the size that it was `tried` on."""
        height, width = self.grid[-2:] or (1, 1)
        return Cells(height=height, width=width, outputs=self.outputs)

    def as_in(self, built: BuildFacts) -> "Network":
        """The same network, run as some views were built: in their precision, where it is stated, and memory format.

        Raises:
            UsageError: an unknown precision; an unknown memory format is refused when it is run.
        """
        precision = self.precision if built.precision is None else choose_precision(built.precision, self.device)
        memory_format = built.memory_format or usual_memory_format(self.device)
        return replace(self, precision=precision, memory_format=memory_format)

    def tried(self, num_classes: int, size: tuple[int, int], *, dense: bool = False) -> "Network":
        """The same network, run once on blank images: where no memory format is set, in the fastest that it takes.

        Images of another size than it was made for are no error, as many networks take them; a warning says so.

        Args:
            num_classes: of the data.
            size: height and width of the images.
            dense: whether the data has masks, as for `try_logits`.

        Raises:
            ModelError: it cannot take images of that size, or does not give one logit a class.
        """
        blank = torch.zeros(2, 3, *size, dtype=torch.uint8, device=self.device)
        if self.size is not None and self.size != size:
            _LOG.warning(
                "%s was made for images of %dx%d, as %s says, and sees %dx%d here: a recipe makes another size",
                *(self.description.name, *self.size, self.origins.get("size", "its maker"), *size),
            )

        seen: dict[str, tuple[str, ...] | tuple[int, ...]] = {}

        def attempt(memory_format: str) -> None:
            with torch.inference_mode(), autocast(self.precision, self.device):
                images = laid_out(normalize_pixels(blank, self.mean, self.std), memory_format)
                what = f"teacher {self.description.name}"
                seen["outputs"], seen["grid"] = try_logits(
                    what, lambda: self.model(images), (2, num_classes), size, dense=dense
                )

        formats = (self.memory_format,) if self.memory_format else memory_formats(self.device, size)
        return replace(self, memory_format=first_taken(formats, attempt), **seen)
