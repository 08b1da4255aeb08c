"""`gdkd-cache train`."""

from pathlib import Path
from typing import Any

import click

from gdkd_cache_cli.options import MODEL_HELP, PLACE, RECIPE_HELP, data_options, is_remote, machine_options

# Which options belong to which loss: an option that a loss does not have is an error, not ignored.
_LOSS_OPTIONS = {
    "ce": (),
    "kd": ("temperature", "standardize"),
    "dkd": ("temperature", "standardize", "alpha", "beta"),
    "gdkd": ("temperature", "standardize", "k", "w0", "w1", "w2", "kl"),
    "gdkd3": ("temperature", "standardize", "k", "w0", "w1", "w2", "kl"),
}


@click.command(short_help="Train a student from a cache, or a teacher with cross-entropy.")
@click.option(
    "--loss",
    required=True,
    type=click.Choice(list(_LOSS_OPTIONS)),
    help="ce needs no cache: it makes teachers.",
)
@data_options
@click.option("--eval-data", default=None, metavar="SPEC", help="Evaluate on this. [default: the test split of --data]")
@click.option(
    "--cache",
    "caches",
    multiple=True,
    type=PLACE,
    help="What the distillation loss reads: a folder or a URL (s3://, gs://, az://, https://). Given again for each "
    "further teacher, over the same views, it reads the mean of their probabilities at the loss's temperature.",
)
@click.option(
    "--cache-weight",
    "cache_weights",
    multiple=True,
    type=float,
    help="Weight of a teacher in the mean, one for each --cache, in their order. [default: all alike]",
)
@click.option(
    "--digest",
    "digests",
    multiple=True,
    metavar="sha256:...",
    help="Refuse any other cache; one for each --cache, in their order.",
)
@click.option("--student", required=True, metavar="MODEL", help=MODEL_HELP)
@click.option(
    "--epochs",
    required=True,
    type=int,
    help="Passes over the images; epoch e uses view e of the cache, in turn.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for checkpoints and metrics.jsonl.")
@click.option("--force", is_flag=True, help="Replace an earlier training in that folder.")
@click.option("--batch-size", default=64, show_default=True, help="Images a step, of all ranks.")
@click.option("--optimizer", default="sgd", show_default=True, help="sgd (momentum 0.9) or adamw.")
@click.option("--lr", default=0.05, show_default=True, help="Learning rate.")
@click.option("--weight-decay", default=5e-4, show_default=True, help="Weight decay.")
@click.option(
    "--milestones",
    default="",
    metavar="E,E,...",
    help="Epochs after which lr falls to a tenth. [default: cosine]",
)
@click.option("--lr-warmup", default=0, show_default=True, help="Epochs over which lr rises.")
@click.option("--temperature", type=float, default=None, help="T of the distillation loss. [default: 4]")
@click.option("--k", type=int, default=None, help="Size of gdkd's top group. [default: 5; gdkd3: 4]")
@click.option("--w0", type=float, default=None, help="gdkd's weight of the top level. [default: 1]")
@click.option("--w1", type=float, default=None, help="gdkd's weight inside the top group. [default: 1]")
@click.option("--w2", type=float, default=None, help="gdkd's weight inside the rest. [default: 8]")
@click.option(
    "--kl",
    default=None,
    help="gdkd's divergence inside the groups: forward, reverse or both. [default: forward]",
)
@click.option("--alpha", type=float, default=None, help="dkd's weight of the target level. [default: 1]")
@click.option("--beta", type=float, default=None, help="dkd's weight of the other classes. [default: 8]")
@click.option("--standardize", is_flag=True, default=None, help="Standardize the logits first (LSKD, LS-GDKD).")
@click.option("--ce-weight", default=1.0, show_default=True, help="Weight of the cross-entropy.")
@click.option("--distillation-weight", default=1.0, show_default=True, help="Weight of the distillation loss.")
@click.option("--warmup", default=0, show_default=True, help="Epochs over which the distillation loss ramps up.")
@click.option(
    "--recipe",
    default=None,
    metavar="SPEC",
    help="What ce's views are made with [default: crop-flip]; with a cache it must be the cache's, and is needed for "
    f"compat: only. {RECIPE_HELP}",
)
@click.option(
    "--view-seed",
    type=int,
    default=None,
    help="Seed of ce's views [default: 0]; with a cache it must be the cache's.",
)
@click.option(
    "--size",
    type=int,
    default=None,
    help="Side of the student's views, in pixels: the same boxes at another resolution. [default: the teacher's]",
)
@click.option(
    "--eval-recipe",
    default=None,
    metavar="SPEC",
    help="What makes the inputs of evaluation. [default: imagenet-eval where the recipe resamples images, else none]",
)
@click.option("--strict-replay", is_flag=True, help="Refuse views that differ from the teacher's by rounding.")
@click.option("--seed", default=0, show_default=True, help="Seed of the initial weights and of the order.")
@click.option("--precision", default="float32", show_default=True, help="float32, or bfloat16 autocast.")
@machine_options
def train(
    loss: str,
    data: str,
    stream: bool,
    download: bool,
    local_copy: Path | None,
    eval_data: str | None,
    caches: tuple[str, ...],
    cache_weights: tuple[float, ...],
    digests: tuple[str, ...],
    student: str,
    epochs: int,
    out: Path,
    force: bool,
    batch_size: int,
    optimizer: str,
    lr: float,
    weight_decay: float,
    milestones: str,
    lr_warmup: int,
    ce_weight: float,
    distillation_weight: float,
    warmup: int,
    recipe: str | None,
    view_seed: int | None,
    size: int | None,
    eval_recipe: str | None,
    strict_replay: bool,
    seed: int,
    precision: str,
    device: str,
    workers: int | None,
    **loss_options: Any,
) -> None:
    """Train a network: with cross-entropy alone, or also from a cache's teacher logits, with no teacher.

    Ranks that torchrun starts train one network together, each on its part of every step's images; the first writes.

    Writes best.safetensors and last.safetensors (each with a .json of how to rebuild it) and metrics.jsonl.

    \b
    Examples:
      gdkd-cache train --loss ce --data digits --student cnn-l --epochs 8 --out teacher
      gdkd-cache train --loss gdkd --data digits --cache digits.zarr --student cnn-s --epochs 8 --out student
      gdkd-cache train --loss gdkd --data digits --cache s3://bucket/digits.zarr --local-copy kept \\
          --student cnn-s --epochs 8 --out student
      gdkd-cache train --loss gdkd --data digits --cache one.zarr --cache two.zarr \\
          --cache-weight 0.7 --cache-weight 0.3 --student cnn-s --epochs 8 --out student
      gdkd-cache train --loss gdkd --data wds:data/train-{000..127}.tar --stream --cache data \\
          --eval-data wds:data/val-{000..003}.tar --student torchvision:resnet18 --epochs 100 --out student
      torchrun --nproc-per-node 4 --no-python gdkd-cache train --loss gdkd --data imagefolder:imagenet \\
          --cache imagenet.zarr --student torchvision:resnet18 --batch-size 1024 --epochs 100 --out student
    """
    given = {name: value for name, value in loss_options.items() if value is not None}
    if foreign := sorted(given.keys() - set(_LOSS_OPTIONS[loss])):
        raise click.UsageError(f"--{foreign[0].replace('_', '-')} is no option of --loss {loss}")
    if loss == "ce" and caches:
        raise click.UsageError("--loss ce uses no cache; name a distillation loss, or leave --cache out")
    if loss != "ce" and not caches:
        raise click.UsageError(f"--loss {loss} needs --cache; build one with: gdkd-cache build")
    if not caches and (digests or strict_replay):
        raise click.UsageError("--digest and --strict-replay go with --cache")
    from gdkd_cache.data.sources.registry import takes

    evaluated = eval_data or data
    remote = [spec for spec in (data, evaluated) if is_remote(spec)]
    if local_copy is not None and not caches and not remote:
        raise click.UsageError("--local-copy goes with --cache, or with wds shards in an object store")
    for option, given_for in (("--digest", digests), ("--cache-weight", cache_weights)):
        if given_for and len(given_for) != len(caches):
            raise click.UsageError(
                f"{option} is given {len(given_for)} times, --cache {len(caches)} times; give as many"
            )
    if eval_data is None and not takes(data, "split"):
        raise click.UsageError(f"{data} has no test split: name what to evaluate on with --eval-data")
    try:
        milestone_epochs = tuple(int(text) for text in milestones.split(",") if text)
    except ValueError:
        raise click.UsageError(f"--milestones is {milestones!r}; it must be epochs such as 150,180,210") from None

    from gdkd_cache import LossSettings, ensemble, open_cache, open_source
    from gdkd_cache.data.recipes.presets import open_recipe
    from gdkd_cache.data.views import image_size
    from gdkd_cache.errors import MismatchError
    from gdkd_cache.ranks import this_rank
    from gdkd_cache.training.train import TrainOptions, Views
    from gdkd_cache.training.train import train as run_train

    options = TrainOptions(
        out=out,
        student=student,
        epochs=epochs,
        distillation=None if loss == "ce" else LossSettings(loss=loss, **given),
        ce_weight=ce_weight,
        distillation_weight=distillation_weight,
        warmup=warmup,
        optimizer=optimizer,
        lr=lr,
        weight_decay=weight_decay,
        milestones=milestone_epochs,
        lr_warmup=lr_warmup,
        batch_size=batch_size,
        seed=seed,
        device=device,
        num_workers=workers,
        precision=precision,
        size=size,
        eval_recipe=eval_recipe,
        force=force,
    )
    opened = [
        # Where the copy is for images, a cache may lie in a folder beside it.
        open_cache(cache, digest=digest, local_copy=None if remote and "://" not in cache else local_copy)
        for cache, digest in zip(caches, digests or [None] * len(caches), strict=True)
    ]
    copies = dict.fromkeys(remote, local_copy)
    source = open_source(data, download=download, stream=stream, local_copy=copies.get(data))
    fetched, streamed = download and eval_data is None, stream and takes(evaluated, "stream")
    eval_source = open_source(
        evaluated, split="test", download=fetched, stream=streamed, local_copy=copies.get(evaluated)
    )
    if not opened:
        views = Views(recipe="crop-flip" if recipe is None else recipe, seed=view_seed or 0)
        result = run_train(options, source, eval_source, views=views)
    else:
        cache = opened[0] if len(opened) == 1 else ensemble(opened, cache_weights or None)
        made = opened[0].manifest.identity.views
        if view_seed is not None and made is not None and view_seed != made["seed"]:
            raise MismatchError(f"view seed {view_seed} is not the cache's {made['seed']}; leave --view-seed out")
        named = None if recipe is None else open_recipe(recipe, *image_size(source))
        result = run_train(options, source, eval_source, cache=cache, strict_replay=strict_replay, recipe=named)
    if this_rank().rank:
        return
    click.echo(
        f"{student}: best accuracy {result.best_accuracy:.2%} (epoch {result.best_epoch}), last "
        f"{result.last_accuracy:.2%}, {result.images_per_second:,.0f} images/s; {out / 'best.safetensors'}"
    )
