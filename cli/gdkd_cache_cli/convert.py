"""`gdkd-cache convert`."""

from typing import TYPE_CHECKING

import click

from gdkd_cache.terminal import say
from gdkd_cache_cli.options import CacheOptions
from gdkd_cache_cli.taking import argument, takes

if TYPE_CHECKING:
    from gdkd_cache.data.source import Source


@click.command(short_help="Between Zarr and sidecars beside WebDataset shards.")
@argument("cache")
@argument("out")
@click.option(
    "--data",
    default=None,
    metavar="wds:PATTERN",
    help="Write sidecars of these image shards: all that the cache was built from. Without it, CACHE must be a folder "
    "(or URL) of sidecars, and OUT becomes a Zarr cache.",
)
@takes(trust=CacheOptions)
def convert(cache: str, out: str, data: str | None, trust: CacheOptions) -> None:
    """Write CACHE in its other form, OUT: sidecars for WebDataset shards, or Zarr. Nothing is lost either way.

    A sidecar NAME.logits.tar speaks of the samples of NAME.tar, in their order: a WebDataset shard with one record a
    view, of .npy columns. The image shards are only read; OUT may be their folder. Back in Zarr, every object has the
    same bytes, and the cache the same digest. Sidecars are not compressed, so they are larger; train and inspect
    take either.

    \b
    Examples:
      gdkd-cache convert c100.zarr data --data wds:data/train-{000000..000003}.tar
      gdkd-cache convert data c100.zarr
    """
    from gdkd_cache.data.sources.registry import open_source
    from gdkd_cache.data.sources.registry import takes as takes_option
    from gdkd_cache.sharing.convert import from_sidecars

    if data is not None:
        if not takes_option(data, "stream"):
            raise click.UsageError(f"--data is {data}; sidecars lie beside the shards of --data wds:PATTERN")
        say(write_sidecars(cache, out, open_source(data, stream=True), trust.digest))
        return
    copied = from_sidecars(cache, out, digest=trust.digest)
    say(f"{out} is complete: {len(copied.manifest.objects)} objects, {copied.manifest.digest}")


def write_sidecars(cache: str, out: str, shards: "Source", digest: str | None = None) -> str:
    """Write a cache as sidecars of streamed image shards; what to say of it."""
    from gdkd_cache.sharing.convert import to_sidecars

    written = to_sidecars(cache, out, shards, digest=digest)
    size = sum(sidecar.file.size for sidecar in written.sidecars.values())
    return (
        f"{out}: {len(written.sidecars)} sidecars, {size:,} bytes, of {written.manifest.digest}; "
        f"to pin them: --digest {written.digest}"
    )
