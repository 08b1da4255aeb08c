"""`gdkd-cache eval`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import click

from gdkd_cache.data.options import MemoryOptions, RenderOptions
from gdkd_cache.errors import UsageError
from gdkd_cache.fields import check_fields, option
from gdkd_cache.models.registry import MODEL_HELP
from gdkd_cache.terminal import say, say_json, say_table
from gdkd_cache.training.amounts import parse_sides
from gdkd_cache_cli.options import CachedDataOptions, CacheOptions, NetworkOptions
from gdkd_cache_cli.taking import takes

if TYPE_CHECKING:
    from gdkd_cache.data.source import FullSource
    from gdkd_cache.models.network import Network
    from gdkd_cache.training.agreement import Agreement
    from gdkd_cache.training.evaluation import Evaluation
    from gdkd_cache.training.mask_evaluation import Windows


@dataclass(frozen=True, kw_only=True)
class _EvalOptions(NetworkOptions, RenderOptions, MemoryOptions):
    """What is evaluated, and on what."""

    model: str | None = option(
        None, f"The network, needed where the weights have no card, or name code: {MODEL_HELP}", metavar="MODEL"
    )
    split: str | None = option(
        None, "Which part of the data.", choices=("train", "test"), unset="test; with --cache train"
    )
    recipe: str | None = option(
        None,
        "What makes the network's inputs, as for build; with --cache it must be the cache's, and is needed only where "
        "that has code of your own.",
        unset="as it was evaluated in training",
        metavar="SPEC",
    )
    per_class: bool = option(False, "Also print a table of the classes, the worst first.")
    window: str | None = option(
        None,
        "Look at images with masks through windows of this height and width: where these overlap, a pixel has the mean "
        "of their logits.",
        metavar="HxW",
        unset="whole images",
    )
    stride: str | None = option(
        None, "Pixels from one window to the next, down and across.", metavar="HxW", unset="two thirds of --window"
    )

    def __post_init__(self) -> None:
        check_fields(self)
        super().__post_init__()
        for name in ("window", "stride"):
            if (text := getattr(self, name)) is not None:
                parse_sides(name, text)
        if self.stride is not None and self.window is None:
            raise UsageError("--stride is of windows; give --window, too")

    @property
    def _windows(self) -> "Windows | None":
        from gdkd_cache.training.mask_evaluation import Windows

        if self.window is None:
            return None
        height, width = parse_sides("window", self.window)
        thirds = (max(height * 2 // 3, 1), max(width * 2 // 3, 1))
        down, across = thirds if self.stride is None else parse_sides("stride", self.stride)
        return Windows(height=height, width=width, down=down, across=across)

    def evaluate(self, source: "FullSource", network: "Network") -> "Evaluation":
        """The figures of a network on images as they are."""
        from gdkd_cache.data.recipes.stated import stated_recipe
        from gdkd_cache.training.evaluate import Evaluator

        if self.window is not None and not source.has_masks:
            raise UsageError(f"--window is for images with masks, and {source.name} has none")
        recipe = self.recipe
        if recipe is None:
            recipe = stated_recipe(network.eval_recipe, network.description.name)
        evaluator = Evaluator(
            source,
            mean=network.mean,
            std=network.std,
            device=network.device,
            num_workers=self.num_workers,
            images_in_memory=self.images_in_memory,
            decoded=self.decoded,
            recipe=recipe,
            windows=self._windows,
        )
        network.tried(len(source.classes), evaluator.size, dense=evaluator.dense)
        return evaluator(network.model)


@dataclass(frozen=True, kw_only=True)
class _TeacherOptions(CacheOptions):
    """The cache that a student is compared with."""

    cache: str | None = option(
        None,
        "Compare with what this cache's teacher said, without the teacher: how often both name the same class on the "
        "first view of each image of --data, which the cache was built from; and the mean KL divergence of the "
        "student's probabilities from the teacher's, which are the cache's, and so have its error.",
        metavar="CACHE",
    )

    def check(self, data: CachedDataOptions, per_class: bool) -> None:
        """Refuse options that do not go together.

        Raises:
            click.UsageError: it names them.
        """
        if self.cache is None and self.digest is not None:
            raise click.UsageError("--digest goes with --cache")
        if self.cache is None and data.local_copy is not None and not data.is_remote:
            raise click.UsageError("--local-copy goes with --cache, or with wds shards in an object store")
        if self.cache is not None and per_class:
            raise click.UsageError("--per-class goes without --cache")

    def agree(
        self, data: CachedDataOptions, options: _EvalOptions, source: "FullSource", network: "Network"
    ) -> "Agreement":
        """What a student has in common with the cache's teacher."""
        from gdkd_cache.data.loader import default_num_workers
        from gdkd_cache.data.recipes.presets import open_recipe
        from gdkd_cache.data.views import image_size
        from gdkd_cache.models.statements import CARD
        from gdkd_cache.training.agreement import agree

        assert self.cache is not None
        # A student may have been trained on the same views at another size, as its card then says.
        trained_at = network.size if network.origins.get("size") == CARD else None
        dataset = self.open(self.cache, data.local_copy).dataset(
            source,
            recipe=None if options.recipe is None else open_recipe(options.recipe, *image_size(source)),
            size=trained_at[0] if trained_at and trained_at[0] == trained_at[1] else None,
            images_in_memory=options.images_in_memory,
            decoded=options.decoded,
            num_workers=options.num_workers,
        )
        network.tried(len(source.classes), dataset.size, dense=source.has_masks)
        num_workers = default_num_workers(dataset.source) if options.num_workers is None else options.num_workers
        return agree(
            network.model,
            dataset,
            mean=network.mean,
            std=network.std,
            device=network.device,
            num_workers=num_workers,
        )


@click.command(
    "eval", short_help="How right trained weights are, and how calibrated; or how far they follow a teacher."
)
@takes(data=CachedDataOptions, options=_EvalOptions, teacher=_TeacherOptions)
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for machines.")
def evaluate(data: CachedDataOptions, options: _EvalOptions, teacher: _TeacherOptions, as_json: bool) -> None:
    """Evaluate trained weights on a dataset, without augmentation; or, with --cache, against a teacher on its views.

    Top-1 and top-5 accuracy, the mean negative log-likelihood of the labels (NLL, in nats), and the expected
    calibration error (ECE, of 15 bins of confidence). Of images with masks, the mean over classes of intersection over
    union (IoU), pixel accuracy, and the NLL of a pixel, at the size of the masks.

    \b
    Examples:
      gdkd-cache eval --data digits --weights student/best.safetensors
      gdkd-cache eval --data digits --weights student/best.safetensors --per-class
      gdkd-cache eval --data digits --weights student/best.safetensors --cache digits.zarr
      gdkd-cache eval --data camvid:CamVid --weights student/best.safetensors --per-class
    """
    teacher.check(data, options.per_class)
    source = data.open(options.split or ("test" if teacher.cache is None else "train"))
    network = options.load(options.model, source, "float32")
    if teacher.cache is None:
        result = options.evaluate(source, network)
        _tell(result, source.shown_names, options.per_class, as_json)
    else:
        agreement = teacher.agree(data, options, source, network)
        _tell_agreement(agreement, as_json)


def _tell(result: "Evaluation", names: Sequence[str], per_class: bool, as_json: bool) -> None:
    figures = result.by_class()
    rows = [
        {"class": number, "name": name, **dict(zip(figures, values, strict=True))}
        for number, (name, *values) in enumerate(zip(names, *figures.values(), strict=True))
    ]
    if as_json:
        say_json(
            {name: value for name, value in asdict(result).items() if not isinstance(value, tuple)} | {"classes": rows}
        )
        return
    if per_class:
        seen, right = figures
        known = sorted((row for row in rows if row[right] is not None), key=lambda row: row[right])
        table = [(str(row["class"]), row["name"], str(row[seen]), f"{row[right]:.2%}") for row in known]
        say_table(("class", "name", *result.class_titles.values()), table)
    say(str(result))


def _tell_agreement(result: "Agreement", as_json: bool) -> None:
    if as_json:
        say_json(asdict(result))
        return
    accuracy = "" if result.accuracy is None else f"accuracy {result.accuracy:.2%}, "
    say(
        f"agreement with the teacher {result.agreement:.2%}, KL {result.divergence:.4f}, {accuracy}"
        f"on view {result.view} of {result.num_rows} images"
    )
