"""`gdkd-cache merge`."""

import click

from gdkd_cache.building.options import CardOptions
from gdkd_cache.terminal import say
from gdkd_cache_cli.options import PLACE_HELP, UseOptions
from gdkd_cache_cli.taking import argument, takes


@click.command(short_help="Join caches of different views of the same data.", epilog=PLACE_HELP)
@argument("caches", nargs=-1, required=True)
@click.option("--out", required=True, help="The joined cache: a folder, or a URL: s3://, gs://, az://.")
@takes(card=CardOptions, own=UseOptions)
def merge(caches: tuple[str, ...], out: str, card: CardOptions, own: UseOptions) -> None:
    """Join CACHES that differ in nothing but their views, such as views 0-3 and 4-7, built by two teams.

    The result is the cache that one build of all the views gives, to the byte, where the parts were built on the same
    kind of machine. Every byte is checked on the way, the manifest is written last, and a merge that was interrupted
    goes on when the same command is run again.

    \b
    Example:
      gdkd-cache build --data digits --teacher cnn-l --weights teacher.safetensors --views 4 --out a.zarr
      gdkd-cache build --data digits --teacher cnn-l --weights teacher.safetensors --first-view 4 --views 4 \\
          --codec-from a.zarr --out b.zarr
      gdkd-cache merge a.zarr b.zarr --out all.zarr
    """
    from gdkd_cache.sharing.merge import merge as run_merge
    from gdkd_cache_cli.facts import cache_lines

    result = run_merge(caches, out, license=card.license, contact=card.contact)
    say(f"{result.num_sent} of {len(result.manifest.objects)} objects written, {result.num_bytes:,} bytes; {out}:")
    say(*cache_lines(result.manifest))
