"""What studies of several students share."""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import xxhash
from torch import Tensor, nn

from gdkd_cache.data.source import FullSource
from gdkd_cache.models.classes import output_classes
from gdkd_cache.models.network import Network
from gdkd_cache.models.normalization import NAMED
from gdkd_cache.models.opening import open_network, published_classes
from gdkd_cache.terminal import say
from gdkd_cache.training.train import TrainOptions, Views, train


def common_arguments(parser: argparse.ArgumentParser) -> None:
    """What is asked of every study: the data, the teacher, and how its students train."""
    parser.add_argument("--data", required=True, help="as for gdkd-cache train")
    parser.add_argument("--eval-data", help="by default the test split of --data")
    parser.add_argument("--teacher", default="resnet8", help="a model, or package.module:name of your own")
    parser.add_argument("--weights", help="of the teacher, as for gdkd-cache build; without, it is trained first")
    parser.add_argument("--classes", help="which classes the outputs of weights are, as for gdkd-cache build")
    parser.add_argument("--normalize", choices=NAMED, help="how the teacher sees images, where its weights do not say")
    parser.add_argument("--teacher-epochs", type=int, default=16)
    parser.add_argument("--recipe", default="crop-flip")
    parser.add_argument("--views", type=int, help="which come in turn; by default one an epoch")
    parser.add_argument("--student", default="cnn-s")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--out", type=Path, required=True, help="an empty folder; finished runs in it are kept")


def teacher_of(arguments: argparse.Namespace, source: FullSource, eval_source: FullSource) -> Network:
    """The teacher of a study, trained first where no weights are given."""
    name, weights, classes = arguments.teacher, arguments.weights, None
    if weights is None:
        options = TrainOptions(out=arguments.out / "teacher", student=name, epochs=arguments.teacher_epochs)
        found = train(options, source, eval_source, views=Views(recipe=arguments.recipe))
        say(f"the teacher: {found.last_score:.2%}", error=True)
        weights = options.out / "last.safetensors"
    elif arguments.classes:
        classes = output_classes(arguments.classes, source.class_names, lambda: published_classes(name, weights))
    normalization = NAMED[arguments.normalize] if arguments.normalize else None
    network = open_network(name, weights, len(source.classes), normalization=normalization, classes=classes)
    return asked_once(network)


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation (of n - 1) in percent."""
    return f"{statistics.mean(values):.2%}" + (f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else "")


def against(ours: Sequence[float], others: Sequence[float]) -> str:
    """The mean difference at the same seeds, and its deviation, in points."""
    points = [100 * (one - other) for one, other in zip(ours, others, strict=True)]
    return f"{statistics.mean(points):+.2f}" + (f" ± {statistics.stdev(points):.2f}" if len(points) > 1 else "")


def asked_once(teacher: Network) -> Network:
    """The same teacher, which remembers what it said of each image: many caches and live trainings cost one."""
    return replace(teacher, model=_Remembering(teacher.model))


class _Remembering(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._said: dict[bytes, Tensor] = {}
        self._names: tuple[str, ...] = ()

    def forward(self, images: Tensor) -> Tensor | dict[str, Tensor]:
        keys = [xxhash.xxh3_128_digest(image.contiguous().numpy().tobytes()) for image in images.cpu()]
        new = [row for row, key in enumerate(keys) if key not in self._said]
        if new:
            outputs = self.model(images[new])
            self._names = tuple(outputs) if isinstance(outputs, Mapping) else ()
            given = outputs.values() if isinstance(outputs, Mapping) else [outputs]
            said = torch.stack([one.float().cpu() for one in given], 1)
            self._said |= {keys[row]: one.clone() for row, one in zip(new, said, strict=True)}
        parts = torch.stack([self._said[key] for key in keys], 1).to(images.device)
        return dict(zip(self._names, parts, strict=True)) if self._names else parts[0]
