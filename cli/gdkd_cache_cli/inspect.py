"""`gdkd-cache inspect`."""

import click

from gdkd_cache.terminal import say, say_json
from gdkd_cache_cli.taking import argument


@click.command(short_help="Say what a cache holds.")
@argument("cache")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for machines.")
def inspect(cache: str, as_json: bool) -> None:
    """Say what a cache holds: data, teacher, views, codec, size, digest. Reads the manifest only.

    \b
    Examples:
      gdkd-cache inspect digits.zarr --json
      gdkd-cache inspect s3://bucket/digits.zarr
    """
    from gdkd_cache import open_cache
    from gdkd_cache_cli.facts import cache_json, cache_lines

    manifest = open_cache(cache).manifest
    if as_json:
        say_json(cache_json(manifest))
    else:
        say(*cache_lines(manifest))
