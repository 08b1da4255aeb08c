"""`gdkd-cache export`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from gdkd_cache.fields import option
from gdkd_cache.limits import MOST_CLASSES
from gdkd_cache.models.export.options import ExportOptions
from gdkd_cache.models.normalization import named_normalization
from gdkd_cache.models.registry import MODEL_HELP
from gdkd_cache.terminal import say
from gdkd_cache_cli.options import NetworkOptions, UseOptions
from gdkd_cache_cli.taking import takes

if TYPE_CHECKING:
    from gdkd_cache.data.source import FullSource
    from gdkd_cache.models.network import Network


@dataclass(frozen=True, kw_only=True)
class _ExportedOptions(NetworkOptions, UseOptions):
    """What is exported."""

    device: str = "cpu"  # no option: the file runs anywhere
    model: str | None = option(
        None, f"The network, needed where the weights have no card, or name code: {MODEL_HELP}", metavar="MODEL"
    )
    data: str | None = option(
        None,
        "Images of the classes that it knows: their names go into the file; --classes needs it.",
        unset="the names that the network's library has for its outputs",
        metavar="SPEC",
    )
    num_classes: int | None = option(
        None,
        "How many classes it knows.",
        least=2,
        most=MOST_CLASSES,
        unset="as --data, the weights' card or the network's library says",
    )

    def __post_init__(self) -> None:
        NetworkOptions.__post_init__(self)
        UseOptions.__post_init__(self)

    def source(self) -> "FullSource | None":
        """The images, where some were named.

        Raises:
            click.UsageError: options that do not go together.
        """
        from gdkd_cache.data.sources.registry import open_source

        if self.data is not None and self.num_classes is not None:
            raise click.UsageError("--data says how many classes there are; leave --num-classes out")
        if self.data is None and self.classes is not None:
            raise click.UsageError("--classes goes with --data")
        return None if self.data is None else open_source(self.data)

    def open(self, num_classes: int) -> "Network":
        """The network, where no images were named."""
        from gdkd_cache.models.opening import open_network

        return open_network(
            self.model,
            self.weights,
            num_classes,
            normalization=named_normalization(self.normalize, self.mean, self.std),
            weights_key=self.weights_key,
            output=self.output,
            device=self.device,
            precision="float32",
        )


@click.command(short_help="Write a network for other programs: safetensors, torch.export or ONNX.")
@takes(network=_ExportedOptions, options=ExportOptions)
def export(network: _ExportedOptions, options: ExportOptions) -> None:
    """Write a network with its weights as one file for other programs.

    safetensors is for this package too: weights of others become such as need no --model, mean or deviation any more.
    The programs (torch-export, onnx) are float32, and take any number of images; those of a network for masks give its
    main output at its own stride. What the file gives for random images
    is compared with the network before it is put in place. It says its mean, deviation, size and classes itself.

    \b
    Examples:
      gdkd-cache export --weights student/best.safetensors --out student.onnx
      gdkd-cache export --weights student/best.safetensors --input pixels --data digits --out student.pt2
      gdkd-cache export --model torchvision:resnet50 --weights IMAGENET1K_V2 --out resnet50.safetensors
    """
    from gdkd_cache.files import require_free
    from gdkd_cache.models.export.export import export as run_export
    from gdkd_cache.models.opening import known_classes

    require_free(options.out, force=options.force)
    source = network.source()
    if source is None:
        num_classes = network.num_classes or known_classes(network.model, network.weights)
        opened = network.open(num_classes)
        class_names = opened.classes or ()
    else:
        num_classes = len(source.classes)
        opened = network.load(network.model, source, "float32")
        class_names = source.shown_names
    result = run_export(options, opened, num_classes, class_names=class_names)
    said = f"{options.out}: {opened.description.name} as {result.format}, {result.num_bytes:,} bytes"
    say(f"{said}; its logits differ from the network's by at most {result.difference:.2g}")
    say(f"open with: {result.hint}")
