"""`gdkd-cache demo`."""

from pathlib import Path

import click


@click.command(short_help="The main job end to end on real images: no download, no GPU.")
@click.option(
    "--out",
    default=Path("demo"),
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder for what it makes.",
)
def demo(out: Path) -> None:
    """Train a teacher on scikit-learn's digits, cache it, and train one student in three ways.

    Cross-entropy only, GDKD with the live teacher, and GDKD from the cache: from the same initial weights,
    on the same batches, in one table. Takes about two minutes on two cores.

    \b
    Example:
      gdkd-cache demo --out demo
    """
    from gdkd_cache.demo import run_demo

    run_demo(out)
