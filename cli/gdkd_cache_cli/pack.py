"""`gdkd-cache pack`."""

from pathlib import Path
from typing import Any

import click

from gdkd_cache_cli.options import PLACE, card_options, codec_options, codec_request


@click.command(short_help="Make a cache of logits that were computed elsewhere.")
@click.argument("logits", type=click.Path(path_type=Path))
@click.argument("out", type=PLACE)
@click.option("--labels", type=click.Path(path_type=Path), default=None, help="A .npy of class ids [row].")
@click.option(
    "--keys", type=click.Path(path_type=Path), default=None, help="A file of one key a line. [default: numbers]"
)
@codec_options
@card_options
@click.option("--force", is_flag=True, help="Replace another cache there.")
def pack(
    logits: Path,
    out: str,
    labels: Path | None,
    keys: Path | None,
    license: str | None,
    contact: str | None,
    force: bool,
    **codec: Any,
) -> None:
    """Make a cache of LOGITS, which another program computed: a .npy of [view, row, class] floats.

    A .npz is read too: its `teacher` or `logits`, and its `label` or `labels` where --labels is not given. Without
    any labels, the top-1 classes of view 0 stand in for them.

    \b
    Example:
      gdkd-cache pack logits.npy my.zarr --labels labels.npy --keys keys.txt --fidelity 0.1
    """
    from gdkd_cache.building.pack import pack as run_pack
    from gdkd_cache.building.pack import read_logits
    from gdkd_cache_cli.report import cache_lines

    request = codec_request(**codec)
    arrays = read_logits(logits, labels, keys)
    if arrays.guessed_labels:
        click.echo("no labels given: the top-1 classes of view 0 stand in for them", err=True)
    manifest = run_pack(
        out,
        arrays.logits,
        keys=arrays.keys,
        labels=arrays.labels,
        codec=request.spec,
        fidelity=request.fidelity,
        losses=request.losses,
        license=license,
        contact=contact,
        force=force,
    )
    for line in cache_lines(manifest):
        click.echo(line)
