"""`gdkd-cache pack`."""

from dataclasses import dataclass
from pathlib import Path

import click

from gdkd_cache.building.options import CardOptions, CodecChoice
from gdkd_cache.fields import option
from gdkd_cache.terminal import say
from gdkd_cache_cli.taking import argument, takes


@dataclass(frozen=True, kw_only=True)
class _PackOptions:
    """What comes with the logits."""

    labels: Path | None = option(None, "A .npy of class ids [row].", unset="those of a .npz, else the top-1 of view 0")
    keys: Path | None = option(None, "A file of one key a line.", unset="numbers")
    outputs: tuple[str, ...] = option(
        (),
        "The names of a dense network's several outputs, as main,aux, in the order of their axis.",
        joined=True,
        metavar="NAME,NAME",
        unset="one output",
    )
    force: bool = option(False, "Replace another cache or build there; refused beside other files.")


@click.command(short_help="Make a cache of logits that were computed elsewhere.")
@click.argument("logits", type=click.Path(path_type=Path))
@argument("out")
@takes(files=_PackOptions, choice=CodecChoice, card=CardOptions)
def pack(logits: Path, out: str, files: _PackOptions, choice: CodecChoice, card: CardOptions) -> None:
    """Make a cache of LOGITS, which another program computed: a .npy of [view, row, class] floats.

    A .npz is read too: its `teacher` or `logits`, and its `label` or `labels` where --labels is not given. Without
    any labels, the top-1 classes of view 0 stand in for them. What a dense network says of each cell of a grid is
    [view, row, height, width, class], or [view, row, output, height, width, class] with --outputs, and needs no labels.

    \b
    Examples:
      gdkd-cache pack logits.npy my.zarr --labels labels.npy --keys keys.txt --fidelity 0.1
      gdkd-cache pack cells.npy streets.zarr --outputs main,aux --for gdkd:k=3,w2=2,temperature=1
    """
    from gdkd_cache.building.arrays import read_logits
    from gdkd_cache.building.pack import pack as run_pack
    from gdkd_cache_cli.facts import cache_lines

    _ = choice.request  # refused before anything is read
    arrays = read_logits(logits, files.labels, files.keys)
    if arrays.guessed_labels:
        say("no labels given: the top-1 classes of view 0 stand in for them", error=True)
    manifest = run_pack(
        out,
        arrays.logits,
        keys=arrays.keys,
        labels=arrays.labels,
        codec=choice.codec,
        fidelity=choice.fidelity,
        losses=choice.losses,
        num_top=choice.num_top,
        license=card.license,
        contact=card.contact,
        force=files.force,
        true_labels=not arrays.guessed_labels,
        outputs=files.outputs,
    )
    say(*cache_lines(manifest))
