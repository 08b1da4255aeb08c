"""Whether a network takes images of a size and gives logits of them: tried on blank ones, before anything else is."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gdkd_cache.device import laid_out, memory_formats
from gdkd_cache.errors import GdkdCacheError, ModelError, is_out_of_memory, raised


def try_logits(what: str, run: Callable[[], object], shape: tuple[int, int], size: tuple[int, int]) -> None:
    """Run a network once.

    Args:
        what: the network, for messages.
        run: gives what it makes of blank images.
        shape: what that must be: images and classes.
        size: height and width of the images, for messages.

    Raises:
        ModelError: it cannot take images of that size, or does not give one logit a class.
    """
    try:
        logits = run()
    except Exception as error:  # networks say in any way that images are too small, and a user's own may do anything
        if isinstance(error, GdkdCacheError) or is_out_of_memory(error):
            raise
        raise ModelError(f"{what} cannot take {size[0]}x{size[1]} images: {raised(error)}") from error
    check_logits(what, logits)
    found = list(logits.shape)  # pyright: ignore[reportAttributeAccessIssue]  (a tensor)
    if found != list(shape):
        raise ModelError(
            f"{what} gives logits {found} for {shape[0]} images, expected {list(shape)}: the data has {shape[1]} "
            "classes, and it must know the same ones, or (a teacher) --classes must say which its outputs are"
        )


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
) -> str:
    """Run a network once as it is evaluated and once as it is trained; neither changes it or draws from torch.

    Args:
        name: of the model.
        num_classes: of the data.
        size: height and width of the images.
        num_images: of the smallest batch.
        device: where the network is.
        memory_format: of the images; `auto` is the fastest one that it takes.

    Returns:
        The memory format of images that it takes.

    Raises:
        ModelError: as `try_logits`.
    """
    blank = torch.zeros(num_images, 3, *size, device=device)

    def attempt(memory_format: str) -> None:
        _try_student(f"model {name}", model, num_classes, laid_out(blank, memory_format))

    return first_taken(memory_formats(device, size) if memory_format == "auto" else [memory_format], attempt)


def _try_student(what: str, model: nn.Module, num_classes: int, images: Tensor) -> None:
    was_training, num_images, size = model.training, len(images), (images.shape[2], images.shape[3])
    buffers = {key: value.clone() for key, value in model.named_buffers()}
    devices = [images.device] if images.is_cuda else []
    with torch.no_grad(), torch.random.fork_rng(devices):
        try:
            try_logits(what, lambda: model.eval()(images), (num_images, num_classes), size)
            if not isinstance(model, torch.jit.ScriptModule):  # whose buffers cannot be exchanged
                said = f"{what}, as it is trained,"
                model.train()
                try_logits(said, lambda: functional_call(model, buffers, images), (num_images, num_classes), size)
        finally:
            model.train(was_training)
