"""Whether a network takes images of a size and gives logits of them: tried on blank ones, before anything else is."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gdkd_cache.device import laid_out, memory_formats
from gdkd_cache.errors import GdkdCacheError, ModelError, is_out_of_memory, raised
from gdkd_cache.models.cells import cell_logits


def try_logits(
    what: str, run: Callable[[], object], shape: tuple[int, int], size: tuple[int, int], *, dense: bool = False
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Run a network once.

    Args:
        what: the network, for messages.
        run: gives what it makes of blank images.
        shape: what that must be: images and classes.
        size: height and width of the images, for messages.
        dense: whether the data has masks, and it must give a grid of distributions, as `cell_logits` reads it.

    Returns:
        The names of its outputs and the grid of its logits [batch, *grid, class], as `cell_logits` gives them.

    Raises:
        ModelError: it cannot take images of that size, or does not give one logit a class.
    """
    try:
        logits = run()
    except Exception as error:  # networks say in any way that images are too small, and a user's own may do anything
        if isinstance(error, GdkdCacheError) or is_out_of_memory(error):
            raise
        raise ModelError(f"{what} cannot take {size[0]}x{size[1]} images: {raised(error)}") from error
    names, grid, found = _seen(what, logits, dense)
    if [found[0], found[-1]] != list(shape) or (found[1:-1] and not dense):
        raise ModelError(
            f"{what} gives logits {found} for {shape[0]} images, expected {[shape[0], *grid, shape[1]]}: the "
            f"data has {shape[1]} classes, and it must know the same ones, or (a teacher) --classes must say which its "
            "outputs are"
        )
    return names, grid


def _seen(what: str, outputs: object, dense: bool) -> tuple[tuple[str, ...], tuple[int, ...], list[int]]:
    """What a network gave: the names of its outputs, its grid, and the shape of its logits, classes last."""
    if not dense:
        if isinstance(outputs, Mapping) and outputs:
            raise ModelError(f"{what} is dense, with outputs {', '.join(map(str, outputs))}; this data has no masks")
        check_logits(what, outputs)
        return (), (), list(outputs.shape)  # pyright: ignore[reportAttributeAccessIssue]  (a tensor)
    if isinstance(outputs, Tensor) and outputs.ndim == 2:
        raise ModelError(f"{what} gives one distribution an image; masks need a dense network, such as seg-s")
    names, logits = cell_logits(outputs, what)
    return names, tuple(logits.shape[1:-1]), list(logits.shape)


@contextmanager
def running(what: str) -> Iterator[None]:
    """Have whatever a network raises in the midst of work be one line that says where.

    Raises:
        ModelError: it failed.
    """
    try:
        yield
    except Exception as error:  # a user's own network may do anything
        if isinstance(error, GdkdCacheError) or is_out_of_memory(error):
            raise
        raise ModelError(f"{what} failed: {raised(error)}") from error


def check_logits(what: str, logits: object) -> None:
    """Refuse what is no tensor of numbers.

    Raises:
        ModelError: it says what a network gives.
    """
    if not (isinstance(logits, Tensor) and logits.is_floating_point()):
        found = f"numbers of {logits.dtype}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(f"{what} gives {found}; it must give one tensor of floating-point logits")


def first_taken(formats: Sequence[str], attempt: Callable[[str], object]) -> str:
    """The first memory format in which a network takes images; code may count on the order of their values.

    Args:
        formats: to try, the last of them where no other is taken.
        attempt: runs the network in one.

    Raises:
        ModelError: what the last attempt raises.
    """
    for memory_format in formats[:-1]:
        with suppress(ModelError):
            attempt(memory_format)
            return memory_format
    attempt(formats[-1])
    return formats[-1]


def try_student(
    name: str,
    model: nn.Module,
    num_classes: int,
    size: tuple[int, int],
    *,
    num_images: int,
    device: torch.device,
    memory_format: str = "auto",
    dense: bool = False,
) -> str:
    """Run a network once as it is evaluated and once as it is trained; neither changes it or draws from torch.

    Args:
        name: of the model.
        num_classes: of the data.
        size: height and width of the images.
        num_images: of the smallest batch.
        device: where the network is.
        memory_format: of the images; `auto` is the fastest one that it takes.
        dense: as for `try_logits`.

    Returns:
        The memory format of images that it takes.

    Raises:
        ModelError: as `try_logits`.
    """
    blank = torch.zeros(num_images, 3, *size, device=device)

    def attempt(memory_format: str) -> None:
        _try_student(f"model {name}", model, num_classes, laid_out(blank, memory_format), dense)

    return first_taken(memory_formats(device, size) if memory_format == "auto" else [memory_format], attempt)


def _try_student(what: str, model: nn.Module, num_classes: int, images: Tensor, dense: bool) -> None:
    was_training, size = model.training, (images.shape[2], images.shape[3])
    shape = (len(images), num_classes)
    buffers = {key: value.clone() for key, value in model.named_buffers()}
    devices = [images.device] if images.is_cuda else []
    with torch.no_grad(), torch.random.fork_rng(devices):
        try:
            try_logits(what, lambda: model.eval()(images), shape, size, dense=dense)
            if not isinstance(model, torch.jit.ScriptModule):  # whose buffers cannot be exchanged
                said = f"{what}, as it is trained,"
                model.train()
                try_logits(said, lambda: functional_call(model, buffers, images), shape, size, dense=dense)
        finally:
            model.train(was_training)
