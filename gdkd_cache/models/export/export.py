"""A network becomes a file for other programs, and is compared with that file before it is put in place."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from gdkd_cache.errors import GdkdCacheError, ModelError, UsageError, first_line, is_out_of_memory
from gdkd_cache.files import replace_file, require_free
from gdkd_cache.models.card import ModelCard
from gdkd_cache.models.cells import outputs_of
from gdkd_cache.models.export.base import Exported, ExportFormat
from gdkd_cache.models.export.options import PIXELS, ExportOptions
from gdkd_cache.models.export.registry import FORMATS
from gdkd_cache.models.network import Network
from gdkd_cache.models.normalization import normalize_pixels

_BATCHES = (3, 1)
"""Images in the batches that are compared; none is as the example that a program was traced with."""
_TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """Attributes: format: its name; num_bytes: of the file; difference: see `export`; hint: how to open it."""

    format: str
    num_bytes: int
    difference: float
    hint: str


def export(
    options: ExportOptions, network: Network, num_classes: int, *, class_names: Iterable[str] = ()
) -> ExportResult:
    """Write a network as a file, whole or not at all.

    The file is opened again, and run on random images beside the network; the largest difference of any logit, over
    the largest logit or 1, is at most 0.001. Its `difference` itself is in the result.

    Args:
        options: what to write.
        network: a network with its weights, as `open_network` gives it; its module is moved to the CPU.
        num_classes: of its logits.
        class_names: what they are called, for the file; empty where nobody says.

    Raises:
        UsageError: an unknown format, another end of the file's name, an option or a library that is missing, or
            images of a size that nobody says.
        ModelError: the network cannot be exported, or the file gives other logits.
        MismatchError: the file exists, and `force` is off.
        OSError: it cannot be written; what was there stays.
    """
    require_free(options.out, force=options.force)
    name = options.format or _format_of(options.out)
    form = FORMATS.load(name)()
    if options.out.suffix != form.suffix:
        raise UsageError(f"out is {str(options.out)!r}; the name of a {name} file ends in {form.suffix}")
    size = network.size if options.size is None else (options.size, options.size)
    if size is None:
        raise UsageError(f"nobody says which size of images {network.description.name} takes: type --size N")
    on_cpu = network.model.to("cpu", memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    network = replace(
        network, model=on_cpu, device=torch.device("cpu"), precision="float32", memory_format="contiguous"
    )
    network = network.tried(num_classes, size, dense=bool(outputs_of(network.model)))
    accuracy = network.description.accuracy
    card = ModelCard(
        name=network.description.name,
        num_classes=num_classes,
        size=size,
        mean=network.mean,
        std=network.std,
        accuracy=accuracy if isinstance(accuracy, int | float) else None,
        eval_recipe=network.eval_recipe or "none",
    )
    exported = Exported(network=network, card=card, input=options.input, class_names=tuple(class_names))
    _check(name, form, exported)
    try:
        data = form.encode(exported)
        difference = max(_difference(form, data, exported, number) for number in _BATCHES)
    except Exception as error:  # of exporters and runtimes, anything
        if isinstance(error, GdkdCacheError) or is_out_of_memory(error):
            raise
        raise ModelError(f"{card.name} cannot be exported as {name}: {first_line(error)}") from error
    replace_file(options.out, data)
    return ExportResult(format=name, num_bytes=len(data), difference=difference, hint=form.hint(options.out))


def _format_of(out: Path) -> str:
    """The format whose files' names end as this one does."""
    suffixes = {FORMATS.load(name).suffix: name for name in FORMATS}
    if out.suffix not in suffixes:
        ends = ", ".join(f"{suffix} ({name})" for suffix, name in suffixes.items())
        raise UsageError(f"out is {str(out)!r}; its name must end in {ends}, or say which with --format")
    return suffixes[out.suffix]


def _check(name: str, form: ExportFormat, exported: Exported) -> None:
    """Refuse what a format cannot hold."""
    if not all(map(find_spec, form.libraries)):
        extra = "" if form.extra is None else f": pip install 'gdkd-cache[{form.extra}]'"
        raise UsageError(f"format {name} needs {', '.join(form.libraries)}, which are not all installed{extra}")
    said = exported.network.description
    for flag, given in (
        (f"--input {PIXELS}", exported.input == PIXELS),
        ("--classes", said.classes is not None),
        ("--output", said.output is not None),
    ):
        if given and not form.is_program:
            raise UsageError(f"{flag} is for programs; format {name} holds weights and their card alone")
    values = exported.network.model.state_dict().values()
    num_bytes = sum(value.nbytes for value in values if isinstance(value, Tensor))
    if form.most_bytes is not None and num_bytes > form.most_bytes:
        raise ModelError(
            f"{exported.card.name} has {num_bytes} bytes of weights; format {name} holds {form.most_bytes}"
        )


@torch.no_grad()
def _difference(form: ExportFormat, data: bytes, exported: Exported, number: int) -> float:
    """The largest difference of the logits of so many random images, between the file and the network.

    Raises:
        ModelError: it is no rounding.
    """
    random = torch.Generator().manual_seed(number)
    pixels = torch.randint(256, (number, 3, *exported.card.size), generator=random, dtype=torch.uint8)
    own = exported.network.logits(pixels)
    if exported.network.grid:
        own = (own[:, 0] if exported.network.outputs else own).movedim(-1, 1)
    images = (
        pixels / 255 if exported.input == PIXELS else normalize_pixels(pixels, exported.card.mean, exported.card.std)
    )
    found: Tensor = form.run(data, exported, images)
    difference = float((found - own).abs().max()) if found.shape == own.shape else float("inf")
    if not difference <= _TOLERANCE * max(float(own.abs().max()), 1):
        raise ModelError(
            f"{exported.card.name} gives other logits from the file, by up to {difference:.3g}, than by itself: it "
            "cannot be exported so"
        )
    return difference
