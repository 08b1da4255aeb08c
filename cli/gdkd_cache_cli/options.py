"""Options that several commands share."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

DATA_HELP = (
    "The images: digits (in scikit-learn, no download), cifar100:PATH, imagefolder:PATH (PATH/train and PATH/val "
    "or PATH/test, one folder a class) or wds:PATTERN (WebDataset shards, such as wds:data/train-{000..009}.tar)."
)
MODEL_HELP = (
    "cnn-s, cnn-l, resnet8x4, resnet32x4, resnet{8,14,20,32,44,56,110}, torchvision:NAME, or "
    "package.module:callable for your own (called with num_classes)."
)


def data_options(command: Command) -> Command:
    """`--data` and `--download`."""
    command = click.option("--download", is_flag=True, help="Let cifar100 fetch its files.")(command)
    return click.option("--data", required=True, metavar="SPEC", help=DATA_HELP)(command)


def machine_options(command: Command) -> Command:
    """`--device` and `--workers`."""
    command = click.option(
        "--workers",
        type=int,
        default=None,
        help="Processes that render. [default: 0 for images in memory, else one a core]",
    )(command)
    return click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")(command)
