"""`gdkd-cache verify`."""

import json
from pathlib import Path

import click

from gdkd_cache_cli.options import DATA_HELP, MODEL_HELP, PLACE, WEIGHTS_HELP


@click.command(short_help="Check that a cache is whole and belongs to these images and this teacher.")
@click.argument("cache", type=PLACE)
@click.option("--data", default=None, metavar="SPEC", help=f"Also render the probed views again. {DATA_HELP}")
@click.option("--digest", default=None, metavar="sha256:...", help="Refuse any other cache.")
@click.option(
    "--recipe",
    default=None,
    metavar="SPEC",
    help="The recipe of the cache's views, where it is a compat: one; another is refused.",
)
@click.option("--strict-replay", is_flag=True, help="Count views that differ by rounding as a problem.")
@click.option("--deep", is_flag=True, help="Also decode every chunk of every view, and check every value.")
@click.option("--teacher", default=None, metavar="MODEL", help=f"Also run the teacher on some rows. {MODEL_HELP}")
@click.option("--weights", default=None, type=click.Path(path_type=Path), help=f"{WEIGHTS_HELP} Needed by --teacher.")
@click.option("--rows", default=256, show_default=True, help="On how many views of an image --teacher is run.")
@click.option("--device", default="auto", show_default=True, help="For --teacher: auto, cpu, cuda or cuda:N.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for machines.")
def verify(
    cache: str,
    data: str | None,
    digest: str | None,
    recipe: str | None,
    strict_replay: bool,
    deep: bool,
    teacher: str | None,
    weights: Path | None,
    rows: int,
    device: str,
    as_json: bool,
) -> None:
    """Compare every object of a cache with its manifest; exit with 1 when something is wrong.

    With --data, every probed image (1 in 64, at least 32) is decoded and its views are rendered again, and compared
    with what the teacher saw. With --teacher and --weights too, that teacher is run again on some rows: its weights
    must be those of the manifest, and its logits those of the cache, within the error that the manifest states.

    \b
    Examples:
      gdkd-cache verify digits.zarr --data digits
      gdkd-cache verify digits.zarr --deep --data digits --teacher cnn-l --weights teacher/best.safetensors
    """
    from gdkd_cache import open_cache, open_source
    from gdkd_cache.checking.verify import verify as run_verify
    from gdkd_cache.data.recipes.presets import open_recipe
    from gdkd_cache.data.views import image_size
    from gdkd_cache.models.network import open_teacher

    if (teacher is None) != (weights is None) or (teacher is not None and data is None):
        raise click.UsageError("--teacher needs --weights and --data, and --weights needs --teacher")
    if recipe is not None and data is None:
        raise click.UsageError("--recipe goes with --data")
    source = open_source(data) if data is not None else None
    named = None if recipe is None or source is None else open_recipe(recipe, *image_size(source))
    loaded = None
    if teacher is not None and weights is not None and source is not None:
        stated = open_cache(cache, digest=digest).manifest.identity.teacher
        loaded = open_teacher(stated, teacher, weights, len(source.classes), device=device)
    result = run_verify(
        cache,
        digest=digest,
        deep=deep,
        source=source,
        recipe=named,
        strict=strict_replay,
        teacher=loaded,
        num_rows=rows,
    )
    if as_json:
        facts = {"digest": result.digest, "objects": result.num_objects, "problems": list(result.problems)}
        facts["views_decoded"] = result.views_decoded
        facts["replay"] = None if result.replay is None else vars(result.replay)
        facts["teacher"] = None if result.rerun is None else vars(result.rerun)
        click.echo(json.dumps(facts, indent=1))
    else:
        for problem in result.problems:
            click.echo(problem, err=True)
        if result.replay is not None:
            click.echo(result.replay)
        if result.rerun is not None:
            click.echo(result.rerun)
        verdict = f"{len(result.problems)} problems" if result.problems else "whole"
        decoded = f", {result.views_decoded} views decoded" if deep else ""
        click.echo(f"{cache}: {result.num_objects} objects checked{decoded}, {verdict}; {result.digest}")
    if result.problems:
        raise SystemExit(1)
