"""`gdkd-cache eval`."""

import json
from pathlib import Path

import click

from gdkd_cache_cli.options import MODEL_HELP, RECIPE_HELP, data_options, machine_options


@click.command("eval", short_help="Top-1 accuracy of trained weights.")
@data_options
@click.option(
    "--split",
    type=click.Choice(["train", "test"]),
    default="test",
    show_default=True,
    help="Which part of the data.",
)
@click.option("--weights", required=True, type=click.Path(path_type=Path), help="A .safetensors (or torch) file.")
@click.option(
    "--model",
    default=None,
    metavar="MODEL",
    help=f"Needed where no .json lies beside the weights. {MODEL_HELP}",
)
@click.option(
    "--recipe",
    default=None,
    metavar="SPEC",
    help=f"What makes the network's inputs. [default: as it was evaluated in training] {RECIPE_HELP}",
)
@machine_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for machines.")
def evaluate(
    data: str,
    stream: bool,
    download: bool,
    local_copy: Path | None,
    split: str,
    weights: Path,
    model: str | None,
    recipe: str | None,
    device: str,
    workers: int | None,
    as_json: bool,
) -> None:
    """Evaluate trained weights on a dataset, without augmentation.

    \b
    Example:
      gdkd-cache eval --data digits --weights student/best.safetensors
    """
    from gdkd_cache import open_source
    from gdkd_cache.data.loader import default_num_workers
    from gdkd_cache.models.network import open_network
    from gdkd_cache.models.weights import load_card
    from gdkd_cache.training.evaluate import Evaluator

    source = open_source(data, split=split, download=download, stream=stream, local_copy=local_copy)
    teacher = open_network(model, weights, len(source.classes), device=device, precision="float32")
    if workers is None:
        workers = default_num_workers(source)
    if recipe is None:
        card = load_card(weights)
        recipe = "none" if card is None else card.eval_recipe
    evaluator = Evaluator(
        source, mean=teacher.mean, std=teacher.std, device=teacher.device, num_workers=workers, recipe=recipe
    )
    result = evaluator(teacher.model)
    if as_json:
        click.echo(json.dumps(vars(result)))
    else:
        click.echo(f"accuracy {result.accuracy:.2%}, loss {result.loss:.4f} on {result.num_rows} images")
