"""`gdkd-cache select`."""

from dataclasses import dataclass
from pathlib import Path

import click

from gdkd_cache.fields import check_fields, option
from gdkd_cache.selection.registry import SELECTIONS
from gdkd_cache.terminal import say
from gdkd_cache_cli.options import CacheOptions
from gdkd_cache_cli.taking import argument, takes

_SUMMARIES = "; ".join(f"{form} ({summary})" for form, summary in SELECTIONS.summaries().items())


@dataclass(frozen=True, kw_only=True)
class _SelectOptions(CacheOptions):
    """Which rows, and where their keys go."""

    method: str = option(
        help=f"How: {_SUMMARIES}; with settings as in entropy:temperature=4, or package.module:name.", metavar="SPEC"
    )
    keep: int = option(help="How many rows to keep.", least=1)
    out: Path = option(help="The text file to write: one key a line, as --subset takes it.")
    views: str | None = option(None, "Which views count, as in 0-19 or 0,3.", metavar="VIEWS", unset="all")
    reference: str | None = option(
        None, "The cache of a smaller teacher over the same rows, for miniplm.", metavar="CACHE"
    )
    force: bool = option(False, "Replace a file of that name.")

    def __post_init__(self) -> None:
        check_fields(self)
        super().__post_init__()


@click.command(short_help="Choose rows worth training on, by what the teacher said.")
@argument("cache")
@takes(options=_SelectOptions)
def select(cache: str, options: _SelectOptions) -> None:
    """Choose rows of CACHE by what its teacher said of them, and write their keys, the first chosen first.

    No image is read and no network is run. Train on them with --subset, which takes such a file; a cache of all rows
    serves every part of them.

    \b
    Examples:
      gdkd-cache select c100.zarr --method pcoreset --keep 5000 --out keys.txt
      gdkd-cache train --data cifar100:data --subset keys.txt --cache c100.zarr --loss gdkd --student resnet8x4 \\
          --epochs 240 --out student
      gdkd-cache select large.zarr --method miniplm --reference small.zarr --keep 10000 --out keys.txt
    """
    from gdkd_cache.cache.cache import open_cache
    from gdkd_cache.files import replace_file, require_free
    from gdkd_cache.selection.select import select as run_select

    require_free(options.out, force=options.force)
    opened = options.open(cache)
    reference = None if options.reference is None else open_cache(options.reference)
    keys = run_select(opened, options.method, options.keep, views=options.views, reference=reference)
    replace_file(options.out, "".join(f"{key}\n" for key in keys).encode())
    say(f"{options.out}: {len(keys)} of {opened.num_rows} keys")
