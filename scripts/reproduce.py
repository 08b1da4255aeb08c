#!/usr/bin/env python
"""A row of a paper's table: a teacher, its cache, and students with and without them, beside the published figures.

    python scripts/reproduce.py cifar100/resnet32x4-resnet8x4 --data cifar100:DIR --out RUNS
    python scripts/reproduce.py cifar100/vgg13-vgg8 --data cifar100:DIR --weights vgg13.pth --normalize cifar --out RUNS
    python scripts/reproduce.py cifar100/resnet32x4-resnet8x4 --data wds:DIR/train-{000000..000003}.tar \\
        --eval-data wds:DIR/test-000000.tar --student resnet8 --epochs 10 --losses kd gdkd --out RUNS

The students: cross-entropy alone, each loss of the preset from one cache, and one with the teacher live. At each seed
all share initial weights, views and order. Started again, it goes on where it was: what is finished is not run again.
"""

import argparse
import logging
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from student_runs import spread

from gdkd_cache import open_cache, open_source
from gdkd_cache.building.build import build
from gdkd_cache.building.options import BuildOptions
from gdkd_cache.cache.cache import Cache
from gdkd_cache.data.source import Source
from gdkd_cache.errors import GdkdCacheError, UsageError
from gdkd_cache.models.network import Network
from gdkd_cache.models.normalization import NAMED
from gdkd_cache.models.opening import open_network
from gdkd_cache.terminal import log_lines, say, say_table
from gdkd_cache.training.loop import TrainResult
from gdkd_cache.training.options import CROSS_ENTROPY
from gdkd_cache.training.presets.preset import Preset, PresetFile, open_preset, open_preset_file
from gdkd_cache.training.train import TrainOptions, Views, train

_PUBLISHED = {  # top-1 of students in percent, as DKD (CVPR 2022) tells them
    "cifar100/resnet32x4-resnet8x4": {"kd": 73.33, "dkd": 76.32},
    "cifar100/wrn_40_2-wrn_16_2": {"kd": 74.92, "dkd": 76.23},
    "cifar100/resnet56-resnet20": {"kd": 70.66, "dkd": 71.97},
    "cifar100/vgg13-vgg8": {"kd": 72.98, "dkd": 74.68},
    "imagenet/ResNet34-ResNet18": {"kd": 71.03, "dkd": 71.70},
}


@dataclass(frozen=True, kw_only=True)
class _Study:
    """What is trained.

    Attributes:
        arguments: of the command line.
        file: that the preset stands in.
        losses: the settings of each, by the preset's name for it.
        alone: the settings without a teacher.
        source, eval_source: what is trained and evaluated on.
        given: options that stand above those of a preset.
    """

    arguments: argparse.Namespace
    file: PresetFile
    losses: Mapping[str, Preset]
    alone: Preset
    source: Source
    eval_source: Source
    given: Mapping[str, Any]

    def options(self, preset: Preset, name: str, **more: Any) -> TrainOptions:
        settings = dict(preset.settings)
        if epochs := self.arguments.epochs:
            settings = _scaled(settings, epochs)
        return TrainOptions(**{**settings, **self.given, **more, "out": self.arguments.out / name})

    def teacher(self) -> tuple[Network, TrainResult | None]:
        """The teacher, and what its training gave where it is trained here: by the file's settings, not the pair's."""
        first, weights = next(iter(self.losses.values())), self.arguments.weights
        name, made = self.arguments.teacher or first.teacher, None
        if weights is None:
            if name is None:
                raise UsageError(f"{self.arguments.preset} names no teacher; name one with --teacher")
            own = _without_teacher(self.file, None)
            options = self.options(own, "teacher", student=name, loss=CROSS_ENTROPY)
            made = train(options, self.source, self.eval_source, views=Views(recipe=self.recipe))
            weights = options.out / "last.safetensors"
        normalization = NAMED[self.arguments.normalize] if self.arguments.normalize else None
        return open_network(name, weights, len(self.source.classes), normalization=normalization), made

    @property
    def recipe(self) -> str:
        return next(iter(self.losses.values())).recipe or "crop-flip"

    @property
    def num_views(self) -> int:
        return self.arguments.views or self.options(next(iter(self.losses.values())), "cache").epochs

    def cache(self, teacher: Network) -> Cache:
        """One cache for all the losses, built or gone on with."""
        specs = dict.fromkeys(str(preset.settings["loss"]) for preset in self.losses.values())
        options = BuildOptions(
            out=self.arguments.out / "cache.zarr",
            num_views=self.num_views,
            recipe=self.recipe,
            losses=tuple(specs),
            accept_teacher=self.arguments.accept_teacher,
        )
        build(options, self.source, teacher)
        return open_cache(options.out)

    def students(self, teacher: Network, cache: Cache) -> Iterator[tuple[str, TrainResult]]:
        """All runs, by what they are called in the table."""
        views = Views(recipe=self.recipe, num_views=self.num_views)
        live = self.arguments.live or [next(iter(self.losses))]
        for seed in range(self.arguments.seeds):
            options = self.options(self.alone, f"{CROSS_ENTROPY}-{seed}", loss=CROSS_ENTROPY, seed=seed)
            yield "cross-entropy", train(options, self.source, self.eval_source, views=views)
            for name, preset in self.losses.items():
                options = self.options(preset, f"{name}-{seed}", seed=seed)
                yield f"{name}, cached", train(options, self.source, self.eval_source, cache=cache)
            for name in live:
                options = self.options(self.losses[name], f"{name}-live-{seed}", seed=seed)
                done = train(options, self.source, self.eval_source, views=views, teacher=teacher.logits)
                yield f"{name}, live", done


def _without_teacher(file: PresetFile, pair: str | None) -> Preset:
    """A file's settings for cross-entropy; where it has none, those of its first loss."""
    return file.preset(pair, CROSS_ENTROPY if CROSS_ENTROPY in file.losses(pair) else None)


def _scaled(settings: dict[str, Any], epochs: int) -> dict[str, Any]:
    """Settings for another number of epochs: what counts epochs keeps its share of them."""
    share = epochs / settings["epochs"]

    def moved(numbers: Iterable[int]) -> list[int]:
        return sorted({max(round(number * share), 1) for number in numbers})

    scaled: dict[str, Any] = {"epochs": epochs}
    for name in ("warmup", "lr_warmup", "skip_epochs"):
        if settings.get(name):
            scaled[name] = round(settings[name] * share)
    if stated := re.search(r"(?<=at=)[0-9/]+", settings.get("schedule", "")):
        at = "/".join(map(str, moved(map(int, stated[0].split("/")))))
        scaled["schedule"] = settings["schedule"].replace(stated[0], at)
    return settings | scaled


def _study(arguments: argparse.Namespace) -> _Study:
    head, suffix, rest = arguments.preset.partition(".toml")
    stem, _, pair = (head + suffix, "/", rest.strip("/")) if suffix else arguments.preset.partition("/")
    file = open_preset_file(stem)
    open_preset(f"{stem}/{pair}")  # a pair that it lacks is refused
    names = arguments.losses or [name for name in file.losses(pair) if name != CROSS_ENTROPY]
    losses = {name: open_preset(f"{stem}/{pair}/{name}") for name in names}
    if missing := set(arguments.live or ()) - set(losses):
        raise SystemExit(f"--live {min(missing)} is none of the losses: {', '.join(losses)}")
    return _Study(
        arguments=arguments,
        file=file,
        losses=losses,
        alone=_without_teacher(file, pair),
        source=open_source(arguments.data),
        eval_source=open_source(arguments.eval_data or arguments.data, split="test"),
        given={} if arguments.student is None else {"student": arguments.student},
    )


def _tell(study: _Study, teacher: TrainResult | None, runs: Mapping[str, list[TrainResult]]) -> None:
    arguments = study.arguments
    is_published = not (arguments.student or arguments.teacher or arguments.epochs or arguments.views)
    published = _PUBLISHED.get(arguments.preset, {}) if is_published else {}
    rows = [] if teacher is None else [("the teacher", 1, [teacher])]
    rows += [(name, len(found), found) for name, found in runs.items()]
    say_table(
        ("student trained with", "seeds", "last epoch", "best epoch", "images/s", "published"),
        [
            (
                name,
                str(count),
                spread([one.last_score for one in found]),
                spread([one.best_score for one in found]),
                f"{statistics.mean(one.images_per_second for one in found):,.0f}",
                f"{published[loss]:.2f}%" if (loss := name.split(",")[0]) in published else "-",
            )
            for name, count, found in rows
        ],
        title=arguments.preset,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "preset", metavar="PRESET", help="FILE/PAIR as `gdkd-cache presets` lists them, or a .toml file"
    )
    parser.add_argument("--data", required=True, help="as for gdkd-cache train")
    parser.add_argument("--eval-data", help="by default the test split of --data")
    parser.add_argument("--out", type=Path, required=True, help="a folder; finished runs in it are kept")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--losses", nargs="+", metavar="LOSS", help="the preset's names; by default all but ce")
    parser.add_argument("--live", nargs="+", metavar="LOSS", help="those also trained with the teacher live: the first")
    parser.add_argument("--epochs", type=int, help="instead of the preset's; warm-up and the schedule keep their share")
    parser.add_argument("--views", type=int, help="of the cache; by default one an epoch")
    parser.add_argument("--teacher", help="instead of the preset's")
    parser.add_argument("--weights", type=Path, help="of the teacher; without, it is trained first")
    parser.add_argument("--normalize", choices=NAMED, help="how the teacher sees images, where its weights do not say")
    parser.add_argument("--accept-teacher", action="store_true", help="build though the teacher seems wrong")
    parser.add_argument("--student", help="instead of the preset's")
    arguments = parser.parse_args()
    log_lines(logging.INFO)
    try:
        study = _study(arguments)
        teacher, made = study.teacher()
        runs: dict[str, list[TrainResult]] = {}
        for name, found in study.students(teacher, study.cache(teacher)):
            runs.setdefault(name, []).append(found)
    except GdkdCacheError as error:
        say(f"error: {error}", error=True)
        raise SystemExit(1) from None
    _tell(study, made, runs)


if __name__ == "__main__":
    main()
