"""Options that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from gdkd_cache.codec.choose import CodecRequest

Command = TypeVar("Command", bound=Callable[..., Any])

DATA_HELP = (
    "The images: digits (in scikit-learn, no download), cifar100:PATH, tiny-imagenet:PATH (the folder "
    "tiny-imagenet-200), cub200:PATH (the folder CUB_200_2011), imagefolder:PATH (PATH/train and PATH/val or "
    "PATH/test, one folder a class, as for ImageNet) or wds:PATTERN (WebDataset shards, such as "
    "wds:data/train-{000..009}.tar or wds:s3://BUCKET/train-{000..009}.tar); or "
    "package.module:callable[:ARGUMENT] for a source of your own."
)
MODEL_HELP = (
    "cnn-s, cnn-l, resnet8x4, resnet32x4, resnet{8,14,20,32,44,56,110}, torchvision:NAME, or "
    "package.module:callable for your own (called with num_classes)."
)
RECIPE_HELP = (
    "none, crop-flip, cifar-strong, imagenet, imagenet-randaug, imagenet-eval or resize, with options such as "
    "crop-flip:size=32,padding=4 or imagenet:size=224,decode_side=448; a .json or .toml file of steps; or "
    "compat:module:name for a torchvision v2 transform of your own."
)
WEIGHTS_HELP = "The teacher's weights file."
CODEC_HELP = (
    "auto (the smallest that meets --fidelity), transform[:step=X,k=N], topk[:k=N,step=X] or dense[:k=N,dtype=float32]."
)
DEFAULT_FIDELITY = 0.1
PLACE = str  # of a cache: not a path, which would lose a slash of s3://
PLACE_HELP = (
    "A cache lies in a folder, in an object store (s3://BUCKET/PATH, gs://BUCKET/PATH, az://CONTAINER/PATH) or, to "
    "read only, on a web server (https://HOST/PATH). Credentials come from the environment: AWS_ACCESS_KEY_ID, "
    "AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL; GOOGLE_APPLICATION_CREDENTIALS; AZURE_STORAGE_ACCOUNT_NAME, "
    "AZURE_STORAGE_ACCOUNT_KEY; or from the machine's own role."
)


def data_options(command: Command) -> Command:
    """`--data`, `--stream`, `--download` and `--local-copy`."""
    command = click.option(
        "--local-copy",
        default=None,
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Keep what is read of remote wds shards, or of a remote cache, in this folder, and read it there the next "
        "time. Without it, --stream fetches shards in every pass, and few of them lie on disk at a time.",
    )(command)
    command = click.option(
        "--stream",
        is_flag=True,
        help="Leave the images of wds shards where they lie until they are needed, for data larger than memory; "
        "training then shuffles shard by shard.",
    )(command)
    command = click.option("--download", is_flag=True, help="Let cifar100 fetch its files.")(command)
    return click.option("--data", required=True, metavar="SPEC", help=DATA_HELP)(command)


def is_remote(data: str) -> bool:
    """Whether `--data` names images in an object store or on a web server."""
    from gdkd_cache.data.sources.registry import takes

    return "://" in data and takes(data, "local_copy")


def machine_options(command: Command) -> Command:
    """`--device` and `--workers`."""
    command = click.option(
        "--workers",
        type=int,
        default=None,
        help="Processes that render. [default: 0 for images in memory, else one a core]",
    )(command)
    return click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")(command)


def view_options(command: Command) -> Command:
    """The teacher and the views that it is shown."""
    for option in reversed(
        [
            click.option("--teacher", required=True, metavar="MODEL", help=MODEL_HELP),
            click.option("--weights", required=True, type=click.Path(path_type=Path), help=WEIGHTS_HELP),
            click.option("--views", required=True, type=int, help="Views of each image: training uses one an epoch."),
            click.option(
                "--recipe",
                default="crop-flip",
                show_default=True,
                metavar="SPEC",
                help=f"What is done to the images: {RECIPE_HELP}",
            ),
            click.option("--seed", default=0, show_default=True, help="Seed of the views."),
        ]
    ):
        command = option(command)
    return command


def card_options(command: Command) -> Command:
    """`--license` and `--contact`."""
    contact = "Who to ask about the cache, such as a name and an address; in its digest and its README.md."
    command = click.option("--contact", default=None, metavar="TEXT", help=contact)(command)
    license = "The license that you give the cache, such as cc-by-4.0; in its digest and its README.md."
    return click.option("--license", default=None, metavar="TEXT", help=license)(command)


def codec_options(command: Command) -> Command:
    """What a cache shall serve, and how closely; `codec_request` reads them."""
    for option in reversed(
        [
            click.option("--codec", default="auto", show_default=True, metavar="SPEC", help=CODEC_HELP),
            click.option(
                "--fidelity",
                default=DEFAULT_FIDELITY,
                show_default=True,
                help="The largest gradient error allowed, for each declared loss: ||G_cache - G_full|| / ||G_full||.",
            ),
            click.option(
                "--for",
                "losses",
                multiple=True,
                default=("gdkd",),
                show_default=True,
                metavar="LOSS",
                help="A loss that the cache shall serve: kd, dkd, gdkd or gdkd3, with settings as in "
                "gdkd:w2=8,temperature=1. May be repeated: all must meet the fidelity.",
            ),
            click.option(
                "--temperature",
                "temperatures",
                type=float,
                multiple=True,
                default=(4.0,),
                show_default=True,
                help="T of the losses whose spec names none; may be repeated.",
            ),
            click.option("--k", type=int, default=None, help="k, likewise. [default: 5; gdkd3: 4]"),
            click.option("--w0", type=float, default=None, help="gdkd's w0, likewise. [default: 1]"),
            click.option("--w1", type=float, default=None, help="gdkd's w1, likewise. [default: 1]"),
            click.option("--w2", type=float, default=None, help="gdkd's w2, likewise. [default: 8]"),
        ]
    ):
        command = option(command)
    return command


def codec_request(
    codec: str,
    fidelity: float,
    losses: tuple[str, ...],
    temperatures: tuple[float, ...],
    **weights: float | None,
) -> "CodecRequest":
    """The request that the options of `codec_options` make."""
    from gdkd_cache.codec.choose import CodecRequest
    from gdkd_cache.losses.settings import LossSettings

    given = {name: value for name, value in weights.items() if value is not None}
    settings = []
    for spec in losses:
        for temperature in (None,) if "temperature=" in spec else temperatures:
            defaults = given if temperature is None else given | {"temperature": temperature}
            settings.append(LossSettings.from_spec(spec, defaults))
    for name in given:
        if not any(name in loss.to_json() for loss in settings):
            raise click.UsageError(f"--{name} is a setting of none of the losses {', '.join(losses)}")
    return CodecRequest(spec=codec, fidelity=fidelity, losses=tuple(dict.fromkeys(settings)))
