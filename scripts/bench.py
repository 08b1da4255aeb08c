#!/usr/bin/env python
"""Ratios, measured side by side in one run: the rows of scripts/BENCHMARKS.md.

    python scripts/bench.py                          # all rows
    python scripts/bench.py loss train-overhead --repeats 9
    python scripts/bench.py loss --device cuda --json

Each row times some things in turn, so that what else goes on touches all of them alike; a ratio is taken in each
repetition, and its median, least and most are told. Look at `uptime` first, and run nothing beside. To add a row: a
function of a `Bench` that gives figures, in one of the modules of `benches/`, and its name here.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from benches import (
    checks,
    clusters,
    fetching,
    folders,
    loading,
    loss,
    render,
    scaling,
    size,
    streaming,
    train_memory,
    training,
)
from benches.timing import Bench, Figure

from gdkd_cache.terminal import say, say_json, say_table

ROWS: tuple[Callable[[Bench], Iterator[Figure]], ...] = (
    loss.loss,
    training.train_overhead,
    training.train_live,
    train_memory.train_memory,
    training.build_overhead,
    clusters.ray_overhead,
    training.startup,
    render.render,
    checks.checks,
    folders.imagefolder,
    fetching.fetch,
    loading.view_load,
    scaling.scale,
    streaming.stream,
    size.size,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    rows = {row.__name__.replace("_", "-"): row for row in ROWS}
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which rows, of {', '.join(rows)}; all without any")
    parser.add_argument("--repeats", type=int, default=5, help="how often each thing is timed (at least 5 to be told)")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    parser.add_argument("--jpegs", type=Path, help="a folder or tar file of your own photographs, to be rendered")
    parser.add_argument("--shards", help="image shards of your own, 32x32 or larger, to be streamed; braces are fine")
    parser.add_argument(
        "--logits",
        nargs="+",
        default=(),
        metavar="FILE.npz[:NAME]",
        help="to be sized: teacher [view, row, class] and label [row], or NAME and NAME_label",
    )
    parser.add_argument("--targets", type=float, nargs="+", default=(), help="gradient errors of caches that are sized")
    parser.add_argument("--drawings", type=Path, help="a folder, for what rows draw (SVG) and its tables (Markdown)")
    parser.add_argument("--smoke", action="store_true", help="only see that the rows run: one repetition, small sizes")
    parser.add_argument("--json", action="store_true", help="one JSON object, for machines")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.names if name not in rows]:
        parser.error(f"{unknown[0]} is no row; rows are {', '.join(rows)}")
    device = torch.device(arguments.device)
    told = []
    for name in arguments.names or rows:
        with tempfile.TemporaryDirectory() as folder:
            repeats = 1 if arguments.smoke else arguments.repeats
            bench = Bench(
                repeats=repeats,
                smoke=arguments.smoke,
                device=device,
                folder=Path(folder),
                jpegs=arguments.jpegs,
                shards=arguments.shards,
                logits=arguments.logits,
                targets=arguments.targets,
                drawings=arguments.drawings,
            )
            for figure in rows[name](bench):
                told.append((name, figure))
                least, most = min(figure.ratios), max(figure.ratios)
                found = f"{figure.median:.2f} ({least:.2f} .. {most:.2f})"
                say(f"{name}: {figure.what} / {figure.against}: {found}", error=True)
    machine = {"device": str(device), "threads": torch.get_num_threads(), "load": os.getloadavg()[0]}
    machine |= {"torch": torch.__version__}
    if arguments.json:
        figures = [
            {"row": name, "what": one.what, "against": one.against, "ratios": list(one.ratios), "goal": one.goal}
            for name, one in told
        ]
        say_json(machine | {"figures": figures})
        return
    say_table(
        ("row", "what", "against", "median", "least .. most", "goal", ""),
        [
            (
                name,
                one.what,
                one.against,
                f"{one.median:.2f}",
                f"{min(one.ratios):.2f} .. {max(one.ratios):.2f}",
                one.goal,
                {None: "", True: "met", False: "missed"}[one.met],
            )
            for name, one in told
        ],
    )
    say(", ".join(f"{name} {value}" for name, value in machine.items()))


if __name__ == "__main__":
    main()
