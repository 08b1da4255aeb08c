"""`gdkd-cache eval`."""

import json
from dataclasses import dataclass

import click

from gdkd_cache.data.options import MemoryOptions, RenderOptions
from gdkd_cache.fields import check_fields, option
from gdkd_cache.models.registry import MODEL_HELP
from gdkd_cache.terminal import say
from gdkd_cache_cli.options import DataOptions, NetworkOptions, UseOptions
from gdkd_cache_cli.taking import takes


@dataclass(frozen=True, kw_only=True)
class _EvalOptions(NetworkOptions, RenderOptions, MemoryOptions):
    """What is evaluated, and on what."""

    model: str | None = option(
        None, f"The network, needed where the weights have no card, or name code: {MODEL_HELP}", metavar="MODEL"
    )
    split: str = option("test", "Which part of the data.", choices=("train", "test"))
    recipe: str | None = option(
        None, "What makes the network's inputs, as for build.", unset="as it was evaluated in training", metavar="SPEC"
    )

    def __post_init__(self) -> None:
        check_fields(self)
        super().__post_init__()


@click.command("eval", short_help="Top-1 accuracy of trained weights.")
@takes(data=DataOptions, options=_EvalOptions, own=UseOptions)
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for machines.")
def evaluate(data: DataOptions, options: _EvalOptions, own: UseOptions, as_json: bool) -> None:
    """Evaluate trained weights on a dataset, without augmentation.

    \b
    Example:
      gdkd-cache eval --data digits --weights student/best.safetensors
    """
    from gdkd_cache.data.recipes.stated import stated_recipe
    from gdkd_cache.training.evaluate import Evaluator

    source = data.open(options.split)
    network = options.load(options.model, source, "float32")
    recipe = options.recipe
    if recipe is None:
        recipe = stated_recipe(network.eval_recipe, network.description.name)
    evaluator = Evaluator(
        source,
        mean=network.mean,
        std=network.std,
        device=network.device,
        num_workers=options.num_workers,
        images_in_memory=options.images_in_memory,
        decoded=options.decoded,
        recipe=recipe,
    )
    network.tried(len(source.classes), evaluator.size)
    result = evaluator(network.model)
    if as_json:
        say(json.dumps(vars(result)))
    else:
        say(f"accuracy {result.accuracy:.2%}, loss {result.loss:.4f} on {result.num_rows} images")
