"""`gdkd-cache inspect`."""

import json
from pathlib import Path

import click


@click.command(short_help="Say what a cache holds.")
@click.argument("cache", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for machines.")
def inspect(cache: Path, as_json: bool) -> None:
    """Say what a cache holds: data, teacher, views, codec, size, digest. Reads the manifest only.

    \b
    Example:
      gdkd-cache inspect digits.zarr --json
    """
    from gdkd_cache import open_cache
    from gdkd_cache_cli.report import cache_json, cache_lines

    manifest = open_cache(cache).manifest
    click.echo(json.dumps(cache_json(manifest), indent=1) if as_json else "\n".join(cache_lines(manifest)))
