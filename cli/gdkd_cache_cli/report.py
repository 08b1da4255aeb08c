"""`gdkd-cache report`."""

from pathlib import Path

import click

from gdkd_cache.report.options import ReportOptions
from gdkd_cache.terminal import say
from gdkd_cache_cli.options import CacheOptions, KnownDataOptions, RecipeOptions
from gdkd_cache_cli.taking import argument, takes

_FORMATS = (".html", ".htm")


@click.command(short_help="Make a page of a cache, and of trainings from it, for people to look at and share.")
@argument("cache")
@takes(data=KnownDataOptions)
@click.option(
    "--out",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The page to write, .html; another of that name is replaced.",
)
@click.option(
    "--figures",
    type=click.Path(file_okay=False, path_type=Path),
    help="Also write each figure as SVG and each table as CSV into this folder; others of these names are replaced.",
    metavar="DIR",
)
@takes(options=ReportOptions, trust=CacheOptions, recipe=RecipeOptions)
def report(
    cache: str,
    data: KnownDataOptions,
    out: Path,
    figures: Path | None,
    options: ReportOptions,
    trust: CacheOptions,
    recipe: RecipeOptions,
) -> None:
    """Make one page of CACHE: what it is, how good its teacher is, what compression loses, the paper's figures.

    The page is a single file that loads nothing, for a browser, a printer or a phone. With --data it shows images and
    their views, checked as for training; with --run, what students learned. It needs gdkd-cache[report].

    \b
    Examples:
      gdkd-cache report digits.zarr --out report.html
      gdkd-cache report digits.zarr --data digits --run student --run student-1 --out report.html --figures figures
    """
    if out.suffix.lower() not in _FORMATS:
        raise click.UsageError(f"--out is {str(out)!r}; it must end in {', '.join(_FORMATS)}")
    recipe.check(data)

    from gdkd_cache.files import replace_file, require_free
    from gdkd_cache.report.report import report as run_report
    from gdkd_cache.report.report import require_libraries

    require_libraries()

    from gdkd_cache.report.files import require_folder, write_files

    require_free(out, force=True)
    if figures is not None:
        require_folder(figures)
    source = data.opened()
    made = run_report(options, trust.open(cache, data.local_copy), source=source, recipe=recipe.opened(source))
    if figures is not None:
        files = made.files()
        write_files(figures, files)
        say(f"{figures}: {len(files)} files")
    replace_file(out, made.html)
    say(f"{out}: {len(made.html):,} bytes")
