"""`gdkd-cache push` and `gdkd-cache pull`: one copy in two directions."""

import re
from dataclasses import dataclass

import click

from gdkd_cache.fields import option
from gdkd_cache.terminal import say
from gdkd_cache_cli.options import PLACE_HELP, CacheOptions
from gdkd_cache_cli.taking import argument, takes


@dataclass(frozen=True, kw_only=True)
class _CopyOptions(CacheOptions):
    """What of a cache is copied."""

    views: str | None = option(
        None,
        "Copy these views only, such as 0-39, or 7 alone: a cache of its own, whose views keep their numbers.",
        metavar="A-B",
    )


@dataclass(frozen=True, kw_only=True)
class _PushOptions(_CopyOptions):
    """And where to."""

    create: bool = option(False, "Make the repository of hf://, where there is none; only you will see it.")
    replace: bool = option(False, "Let another cache go that stands in hf://; the commits before keep it.")


def _copy(source: str, destination: str, options: _CopyOptions, **how: bool) -> None:
    from gdkd_cache.sharing.copy import copy

    views = options.views
    found = None if views is None else re.fullmatch(r"(\d{1,7})(?:-(\d{1,7}))?", views)
    if views is not None and found is None:
        raise click.UsageError(
            f"--views is {views!r}; it must be the first and the last, such as 0-39, or one, such as 7"
        )
    numbers = None if found is None else range(int(found[1]), int(found[2] or found[1]) + 1)
    result = copy(source, destination, views=numbers, digest=options.digest, **how)
    manifest = result.manifest
    standing = len(manifest.objects) - result.num_sent
    stood = f", the other {standing} stood there already" if standing else ""
    say(
        f"{result.num_sent} of {len(manifest.objects)} objects copied ({result.num_bytes:,} bytes){stood}; "
        f"{result.location} is complete: {manifest.digest}"
    )
    if numbers is not None and manifest.digest != result.source_digests[0]:
        say(f"it holds views {numbers[0]} to {numbers[-1]} of {result.source_digests[0]}")


@click.command(short_help="Copy a cache to an object store or the Hub.", epilog=PLACE_HELP)
@argument("source")
@argument("destination")
@takes(options=_PushOptions)
def push(source: str, destination: str, options: _PushOptions) -> None:
    """Copy the cache SOURCE to DESTINATION, an object store, a dataset repository of the Hub (or a folder).

    Every byte is checked against the manifest on the way, and the manifest is written last. A copy that was
    interrupted goes on when the same command is run again: objects that stand already are compared, not sent.

    \b
    Examples:
      gdkd-cache push digits.zarr s3://bucket/caches/digits.zarr
      gdkd-cache push digits.zarr gs://bucket/small.zarr --views 0-39
      gdkd-cache push digits.zarr hf://datasets/ORG/digits-logits --create
    """
    _copy(source, destination, options, create=options.create, replace=options.replace)


@click.command(short_help="Copy a cache from an object store or the Hub.", epilog=PLACE_HELP)
@argument("source")
@argument("destination")
@takes(options=_CopyOptions)
def pull(source: str, destination: str, options: _CopyOptions) -> None:
    """Copy the cache SOURCE, in an object store, on the Hub or on a web server, to the folder DESTINATION.

    Every byte is checked against the manifest on the way, and the manifest is written last. A copy that was
    interrupted goes on when the same command is run again: objects that stand already are checked, not fetched.

    \b
    Examples:
      gdkd-cache pull s3://bucket/caches/digits.zarr digits.zarr --digest sha256:...
      gdkd-cache pull https://example.org/digits.zarr small.zarr --views 0-39
      gdkd-cache pull hf://datasets/ORG/digits-logits@v1 digits.zarr
    """
    _copy(source, destination, options)
