"""`gdkd-cache train`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from gdkd_cache.fields import check_fields, option
from gdkd_cache.limits import LARGEST_SEED
from gdkd_cache.terminal import say
from gdkd_cache.training.options import CROSS_ENTROPY, TrainOptions
from gdkd_cache_cli.config import config_option, told
from gdkd_cache_cli.options import CachedDataOptions, UseOptions
from gdkd_cache_cli.presets import preset_option
from gdkd_cache_cli.taking import takes

if TYPE_CHECKING:
    from gdkd_cache.cache.cache import Cache
    from gdkd_cache.cache.ensemble import Ensemble
    from gdkd_cache.training.presets.preset import Preset
    from gdkd_cache.training.train import Views


@dataclass(frozen=True, kw_only=True)
class _TeachersOptions(UseOptions):
    """What the distillation loss reads, and which views are trained on."""

    caches: tuple[str, ...] = option(
        (),
        "What the distillation loss reads: a folder or a URL (s3://, gs://, az://, https://); given again for each "
        "further teacher, the mean of their probabilities at the loss's temperature.",
        flag="--cache",
        metavar="CACHE",
    )
    cache_weights: tuple[float, ...] = option(
        (),
        "Weight of a teacher in the mean, one for each --cache, in their order.",
        unset="all alike",
        flag="--cache-weight",
        rare=True,
    )
    digests: tuple[str, ...] = option(
        (),
        "Refuse any other cache; one for each --cache, in their order.",
        flag="--digest",
        metavar="sha256:...",
        rare=True,
    )
    strict_replay: bool = option(False, "Refuse views that differ from the teacher's by rounding.", rare=True)
    recipe: str | None = option(
        None,
        "What ce's views are made with, as for build; with a cache, the cache's, where that has code of your own.",
        unset="the preset's, else crop-flip",
        metavar="SPEC",
    )
    view_seed: int | None = option(
        None,
        "Seed of ce's views; with a cache it must be the cache's.",
        least=-LARGEST_SEED,
        most=LARGEST_SEED,
        unset="0",
        rare=True,
    )

    def __post_init__(self) -> None:
        check_fields(self)
        super().__post_init__()

    def check(self, loss: str, is_remote: bool, has_copy: bool) -> None:
        """Refuse options that do not go together.

        Raises:
            click.UsageError: it names them.
        """
        if loss == CROSS_ENTROPY and self.caches:
            raise click.UsageError(f"--loss {loss} uses no cache; name a distillation loss, or leave --cache out")
        if loss != CROSS_ENTROPY and not self.caches:
            raise click.UsageError(f"--loss {loss} needs --cache; build one with: gdkd-cache build")
        if not self.caches and (self.digests or self.strict_replay):
            raise click.UsageError("--digest and --strict-replay go with --cache")
        if has_copy and not self.caches and not is_remote:
            raise click.UsageError("--local-copy goes with --cache, or with wds shards in an object store")
        for flag, given in (("--digest", self.digests), ("--cache-weight", self.cache_weights)):
            if given and len(given) != len(self.caches):
                raise click.UsageError(
                    f"{flag} is given {len(given)} times, --cache {len(self.caches)} times; give as many"
                )

    def open(self, data: CachedDataOptions) -> "Cache | Ensemble | None":
        """The cache, or the mean of several; None for none.

        Raises:
            MismatchError: a digest or the views' seed is another.
        """
        from gdkd_cache.cache.cache import open_cache
        from gdkd_cache.cache.ensemble import ensemble
        from gdkd_cache.errors import MismatchError

        opened = [
            # Where the copy is for images, a cache may lie in a folder beside it.
            open_cache(
                cache, digest=digest, local_copy=None if data.is_remote and "://" not in cache else data.local_copy
            )
            for cache, digest in zip(self.caches, self.digests or [None] * len(self.caches), strict=True)
        ]
        for cache in opened:
            made = cache.manifest.identity.views
            if self.view_seed is not None and made is not None and self.view_seed != made.seed:
                raise MismatchError(f"view seed {self.view_seed} is not the cache's {made.seed}; leave --view-seed out")
        return ensemble(opened, self.cache_weights or None) if len(opened) > 1 else next(iter(opened), None)

    def views(self, preset: "Preset | None") -> "Views":
        """The views that are rendered where no cache says which."""
        from gdkd_cache.training.train import Views

        stated = None if preset is None else preset.recipe
        return Views(recipe=self.recipe or stated or "crop-flip", seed=self.view_seed or 0)


@dataclass(frozen=True, kw_only=True)
class _EvaluatedDataOptions(CachedDataOptions):
    """The images, and those that are evaluated on."""

    eval_data: str | None = option(None, "Evaluate on this.", unset="the test split of --data", metavar="SPEC")


@click.command(short_help="Train a student from a cache, or a teacher with cross-entropy.")
@takes(data=_EvaluatedDataOptions)
@preset_option
@config_option(train=TrainOptions, data=_EvaluatedDataOptions, teachers=_TeachersOptions)
@takes(teachers=_TeachersOptions, options=TrainOptions)
def train(
    data: _EvaluatedDataOptions,
    preset: "Preset | None",
    teachers: _TeachersOptions,
    options: TrainOptions,
) -> None:
    """Train a network: with cross-entropy alone, or also from a cache's teacher logits, with no teacher.

    Ranks that torchrun starts train one network together, each on its part of every step's images; the first writes.

    Writes best.safetensors and last.safetensors (each says how to rebuild its network), metrics.jsonl, run.toml and
    log.txt. Stopped or killed, it goes on when the same command is run again; SIGTERM, Ctrl-C and Slurm's warning
    (--signal=USR1@120) have it save first.

    \b
    Examples:
      gdkd-cache train --loss ce --data digits --student cnn-l --epochs 8 --out teacher
      gdkd-cache train --loss gdkd --data digits --cache digits.zarr --student cnn-s --epochs 8 --out student
      gdkd-cache train --preset cifar100/resnet32x4-resnet8x4 --data cifar100:data --cache c100.zarr --out student
      gdkd-cache train --loss gdkd:k=5,w2=8,temperature=4 --data digits --cache s3://bucket/digits.zarr \\
          --local-copy kept --student cnn-s --epochs 8 --out student
      gdkd-cache train --loss gdkd --data wds:data/train-{000..127}.tar --stream --cache data \\
          --eval-data wds:data/val-{000..003}.tar --student torchvision:resnet18 --epochs 100 --out student
      torchrun --nproc-per-node 4 --no-python gdkd-cache train --loss gdkd --data imagefolder:imagenet \\
          --cache imagenet.zarr --student torchvision:resnet18 --batch-size 1024 --epochs 100 --out student
    """
    evaluated = data.for_evaluation(data.eval_data)
    is_remote = data.is_remote or evaluated.is_remote
    teachers.check(str(options.loss), is_remote, data.local_copy is not None)

    from gdkd_cache import allocator
    from gdkd_cache.data.recipes.presets import open_recipe
    from gdkd_cache.data.views import image_size
    from gdkd_cache.device import choose_device
    from gdkd_cache.ranks import this_rank
    from gdkd_cache.training.records.scores import SCORES
    from gdkd_cache.training.train import train as run_train

    options.check()
    if choose_device(options.device).type == "cpu":
        allocator.keep_memory()
    cache = teachers.open(data)
    source, eval_source = data.open(), evaluated.open("test")
    tables = told(data=data, teachers=teachers)
    if cache is None:
        result = run_train(options, source, eval_source, views=teachers.views(preset), command=tables)
    else:
        recipe = None if teachers.recipe is None else open_recipe(teachers.recipe, *image_size(source))
        result = run_train(
            options,
            source,
            eval_source,
            cache=cache,
            strict_replay=teachers.strict_replay,
            recipe=recipe,
            command=tables,
        )
    if this_rank().rank:
        return
    say(
        f"{options.student}: best {SCORES[result.score]} {result.best_score:.2%} (epoch {result.best_epoch}), last "
        f"{result.last_score:.2%}, {result.images_per_second:,.0f} images/s; {options.out / 'best.safetensors'}"
    )
