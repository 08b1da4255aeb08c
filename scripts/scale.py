#!/usr/bin/env python
"""What builds would take on 1 to 512 GPUs, and what breaks first: arithmetic, fed by what this machine measures.

    python scripts/scale.py                    # the tables, from scripts/scaling/constants.json
    python scripts/scale.py --measure          # measure that file anew (some minutes)
    python scripts/scale.py --check            # predictions beside real builds of 1, 2 and 4 processes
    python scripts/scale.py --large 10000000   # pack and read a cache of so many rows
    python scripts/scale.py --teacher-rate 5000 --cores 12 --latency 0.05

Renderers, writers, readers and the store's requests are measured by this project's own code in processor seconds; what
a GPU teaches, and a store's latency and request rate, are options, as they are of other machines.
"""

import argparse
import os
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from scaling.large import tell_large
from scaling.measure import BATCH, in_processes, measured
from scaling.model import Case, Constants, Hardware, predict

from gdkd_cache.codec.calibration import calibration_rows
from gdkd_cache.terminal import say, say_table

CASES = (
    Case(name="ImageNet-1k x 300", rows=1_281_167, views=300, row_bytes=57, resident_bytes=57,
         render="photo224"),
    Case(name="ImageNet-22k x 90", rows=14_197_122, views=90, row_bytes=57, resident_bytes=57,
         render="photo224"),
    Case(name="Cityscapes, 640k crops", rows=640_000, views=1, row_bytes=4096 * 2, resident_bytes=4096 * 2,
         render="photo224", pack="10", cells=4096),
    Case(name="1 billion x 10", rows=10**9, views=10, row_bytes=57, resident_bytes=57, render="photo224"),
)  # fmt: skip
"""57 bytes: a view at 1000 classes and a gradient error of 0.17 (BENCHMARKS.md); two a cell of a crop are assumed."""
GPUS = (1, 8, 64, 512)
CHECKS = (("small", 8192, 4), ("photo64", 768, 8))


def check(constants: Constants) -> None:
    """Predicted beside real builds; exits with 1 where processor time is off by more than 15%."""
    rows, worst = [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        for kind, images, views in CHECKS:
            cost = constants.render[kind] + constants.forward[kind] + constants.encode["10"] + constants.pack["10"]
            for processes in (1, 2, 4):
                shards = 8 * views
                predicted = images * views * cost + shards * 6 * constants.write
                shown = constants.alone[kind] + constants.forward[kind]
                predicted += calibration_rows(images, 10) * (shown + constants.calibrate)
                predicted += constants.start + (processes - 1) * constants.follow
                out = Path(folder) / f"{kind}-{processes}.zarr"
                shard_rows = images // 8 // BATCH * BATCH
                found, wall = in_processes(processes, kind, images, views, out, shard_rows)
                off = predicted / found - 1
                worst = max(worst, abs(off))
                at_best = predicted / min(processes, os.cpu_count() or 1)
                rows.append(
                    (f"{kind}, {images} x {views}", str(processes), f"{predicted:.1f}", f"{found:.1f}", f"{off:+.0%}",
                     f"{at_best:.1f}", f"{wall:.1f}", f"{os.getloadavg()[0]:.1f}")
                )  # fmt: skip
    say_table(
        ("build", "processes", "core s predicted", "found", "off", "wall s on idle cores", "wall s here", "load"), rows
    )
    raise SystemExit(worst > 0.15)


def tell(constants: Constants, arguments: argparse.Namespace) -> None:
    """The tables."""
    facts = {name: getattr(arguments, name) for name in ("cores", "teacher_rate", "latency", "request_rate")}
    for case in CASES:
        predictions = {gpus: predict(case, Hardware(gpus=gpus, **facts), constants) for gpus in GPUS}
        rows = [
            (
                str(gpus),
                f"{one.hours:,.1f}",
                f"{one.requests:.1f}",
                one.bottleneck,
                ", ".join(f"{part} {hours:.2g}" for part, hours in one.parts.items()),
            )
            for gpus, one in predictions.items()
        ]
        found = predictions[GPUS[0]]
        say(f"{case.name}: {found.num_bytes / 1e9:,.1f} GB in {found.objects:,} objects; manifest "
            f"{found.manifest_bytes / 1e6:.1f} MB{'' if found.fits else ', more than a reader takes'}; a reader takes "
            f"{found.reader_bytes / 1e9:,.1f} GB and {found.open_seconds:,.0f} s to begin")  # fmt: skip
        say_table(("GPUs", "hours", "requests/s", "bottleneck", "hours of each part alone"), rows)
        say()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--large", type=int, metavar="ROWS", help="pack and read a cache of so many rows")
    parser.add_argument("--teacher-rate", type=float, default=2500, help="images that a GPU teaches a second")
    parser.add_argument("--cores", type=int, default=12, help="cores that render for each GPU")
    parser.add_argument("--latency", type=float, default=0.03, help="seconds of a store's answer")
    parser.add_argument("--request-rate", type=float, default=3500, help="requests that a store takes a second")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.measure:
        measured().save()
    if arguments.large:
        with tempfile.TemporaryDirectory() as folder:
            tell_large(arguments.large, Path(folder))
        return
    constants = Constants.read()
    if arguments.check:
        check(constants)
    tell(constants, arguments)


if __name__ == "__main__":
    main()
