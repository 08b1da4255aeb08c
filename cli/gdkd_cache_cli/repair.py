"""`gdkd-cache repair`."""

from pathlib import Path

import click

from gdkd_cache_cli.options import DATA_HELP, MODEL_HELP, PLACE, WEIGHTS_HELP, machine_options


@click.command(short_help="Build what is damaged in a cache again, or drop the damaged views.")
@click.argument("cache", type=PLACE)
@click.option("--data", default=None, metavar="SPEC", help=f"The images that it was built from. {DATA_HELP}")
@click.option("--teacher", default=None, metavar="MODEL", help=f"The teacher that it was built with. {MODEL_HELP}")
@click.option("--weights", default=None, type=click.Path(path_type=Path), help=WEIGHTS_HELP)
@click.option(
    "--recipe", default=None, metavar="SPEC", help="The recipe of the cache's views, where it is a compat: one."
)
@click.option("--drop", is_flag=True, help="Keep only the views before the first damaged one; needs no teacher.")
@machine_options
def repair(
    cache: str,
    data: str | None,
    teacher: str | None,
    weights: Path | None,
    recipe: str | None,
    drop: bool,
    device: str,
    workers: int | None,
) -> None:
    """Make a damaged cache whole: each damaged object gets the bytes of the manifest's checksum, or is left as it is.

    Damaged metadata needs no more than the cache; keys and labels need --data; shards and the codec's tables need the
    data and the teacher, and are built again, those alone. A damaged manifest cannot be repaired: build again.

    With --drop, the views from the first damaged one on are given up instead, and the smaller cache has a digest of its
    own. Views keep their numbers, as these say how the images were augmented.

    \b
    Examples:
      gdkd-cache repair digits.zarr --data digits --teacher cnn-l --weights teacher/best.safetensors
      gdkd-cache repair digits.zarr --drop
    """
    from gdkd_cache import open_cache, open_source
    from gdkd_cache.building.repair import repair as run_repair
    from gdkd_cache.data.recipes.presets import open_recipe
    from gdkd_cache.data.views import image_size
    from gdkd_cache.models.network import open_teacher

    if (teacher is None) != (weights is None) or (teacher is not None and data is None):
        raise click.UsageError("--teacher needs --weights and --data, and --weights needs --teacher")
    source = open_source(data) if data is not None else None
    loaded = None
    if teacher is not None and weights is not None and source is not None:
        stated = open_cache(cache).manifest.identity.teacher
        loaded = open_teacher(stated, teacher, weights, len(source.classes), device=device)
    named = None if recipe is None or source is None else open_recipe(recipe, *image_size(source))
    result = run_repair(cache, source=source, teacher=loaded, recipe=named, num_workers=workers, drop=drop)
    for problem in result.problems:
        click.echo(problem, err=True)
    views = result.manifest.identity.num_views
    dropped = f", views {views} to {views + result.dropped_views - 1} dropped" if result.dropped_views else ""
    verdict = f"{len(result.problems)} problems are left" if result.problems else "whole"
    click.echo(f"{cache}: {len(result.restored)} objects repaired{dropped}, {verdict}; {result.manifest.digest}")
    if result.problems:
        raise SystemExit(1)
