"""`gdkd-cache verify`."""

import json

import click

from gdkd_cache_cli.options import DATA_HELP, PLACE


@click.command(short_help="Check that a cache is whole and belongs to these images.")
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
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for machines.")
def verify(
    cache: str, data: str | None, digest: str | None, recipe: str | None, strict_replay: bool, as_json: bool
) -> None:
    """Compare every object of a cache with its manifest; exit with 1 when something is wrong.

    With --data, every probed image (1 in 64, at least 32) is decoded and its views are rendered again, and compared
    with what the teacher saw.

    \b
    Example:
      gdkd-cache verify digits.zarr --data digits
    """
    from gdkd_cache import open_source
    from gdkd_cache.data import image_size, open_recipe
    from gdkd_cache.pipeline.verify import verify as run_verify

    if recipe is not None and data is None:
        raise click.UsageError("--recipe goes with --data")
    source = open_source(data) if data is not None else None
    named = None if recipe is None or source is None else open_recipe(recipe, *image_size(source))
    result = run_verify(cache, digest=digest, source=source, recipe=named, strict=strict_replay)
    if as_json:
        facts = {"digest": result.digest, "objects": result.num_objects, "problems": list(result.problems)}
        facts["replay"] = None if result.replay is None else vars(result.replay)
        click.echo(json.dumps(facts, indent=1))
    else:
        for problem in result.problems:
            click.echo(problem, err=True)
        if result.replay is not None:
            click.echo(result.replay)
        verdict = f"{len(result.problems)} problems" if result.problems else "whole"
        click.echo(f"{cache}: {result.num_objects} objects checked, {verdict}; {result.digest}")
    if result.problems:
        raise SystemExit(1)
