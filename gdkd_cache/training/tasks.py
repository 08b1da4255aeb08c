"""Which task a training's options ask for."""

from gdkd_cache.errors import UsageError
from gdkd_cache.fields import parse_values
from gdkd_cache.training.mask_task import MaskTask
from gdkd_cache.training.methods.registry import METHODS
from gdkd_cache.training.options import TrainOptions
from gdkd_cache.training.task import Task


def task_of(options: TrainOptions, *, masks: bool = False) -> Task:
    """The task of a method, where the options name one.

    Args:
        options: of the training.
        masks: whether the targets are masks.

    Raises:
        UsageError: as `Task.of`; an unknown method or setting, or one with masks.
    """
    if options.method is None:
        return (MaskTask if masks else Task).of(options)
    name, settings = METHODS.split(options.method)
    if masks:
        raise UsageError(f"method {name} is for images of one class each, and these have masks; leave --method out")
    kind = METHODS.load(name)
    return kind.of(options, **parse_values(kind, f"method {name}", settings))
