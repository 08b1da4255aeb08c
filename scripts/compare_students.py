#!/usr/bin/env python
"""What does a fidelity cost? One student trained from the live teacher and from caches of several, over several seeds.

    python scripts/compare_students.py --data wds:DIR/train-{000000..000003}.tar \\
        --eval-data wds:DIR/test-000000.tar --out RUNS
    python scripts/compare_students.py --data tiny-imagenet:DIR --teacher timm:efficientnet_lite0 \\
        --weights pretrained --classes imagenet-1k --views 4 --epochs 12 --out RUNS

At each seed all variants share initial weights, views and order. Prints top-1 of the last epoch and of the best, and
top-5 of the last (of masks mean IoU, and pixel accuracy), and how far each is from the live teacher's student of the
same seed. The teacher runs once over each view. Started again, it goes on where it was.
"""

import argparse
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from student_runs import against, common_arguments, spread, teacher_of

from gdkd_cache import open_cache, open_source
from gdkd_cache.building.build import build
from gdkd_cache.building.options import BuildOptions
from gdkd_cache.codec.registry import AUTO
from gdkd_cache.data.source import FullSource, settle
from gdkd_cache.errors import GdkdCacheError
from gdkd_cache.models.network import Network
from gdkd_cache.terminal import log_lines, say, say_table
from gdkd_cache.training.options import CROSS_ENTROPY
from gdkd_cache.training.records.layout import METRICS
from gdkd_cache.training.train import TrainOptions, Views, train

_OTHER = {"accuracy": "top5_accuracy", "mean_iou": "pixel_accuracy"}
_ALONE, _LIVE = "cross-entropy only", "live teacher"


class _Run(NamedTuple):
    """A student: its score, top-1 accuracy or mean IoU, after the last epoch and the best, and another of the last."""

    last: float
    best: float
    other: float


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common_arguments(parser)
    parser.add_argument("--loss", default="gdkd:k=5,w1=2,w2=8,temperature=4")
    parser.add_argument("--fidelities", type=float, nargs="+", default=[0.05, 0.1, 0.17, 0.3], metavar="ERROR")
    parser.add_argument(
        "--kept", type=int, default=10, help="classes of the cache that stands for other tools' records"
    )
    return parser


def _caches(arguments: argparse.Namespace, source: FullSource, teacher: Network) -> dict[str, tuple[Path, str, str]]:
    """Build caches: for each what a table calls it, its place, its bytes a view and its gradient error."""
    kept = arguments.kept
    asked = {"all logits as float16": ("dense", 0.1), f"{kept} classes, exact tail mass": (f"topk:k={kept}", 0.1)}
    asked |= {f"cache, target {fidelity:g}": (AUTO, fidelity) for fidelity in arguments.fidelities}
    built: dict[str, tuple[Path, str, str]] = {}
    for name, (codec, fidelity) in asked.items():
        options = BuildOptions(
            out=arguments.out / f"{name}.zarr",
            num_views=arguments.views or arguments.epochs,
            recipe=arguments.recipe,
            codec=codec,
            fidelity=fidelity,
            losses=(arguments.loss,),
        )
        manifest = build(options, source, teacher).manifest
        size = manifest.num_bytes / (manifest.identity.num_rows * manifest.identity.num_views)
        error = max(manifest.identity.fidelity.gradient_error.values())
        built[name] = Path(options.out), f"{size:.1f}", f"{error:.3f}"
        say(f"{name}: {manifest.identity.codec.name}, {size:.1f} bytes a view at {error:.3f}", error=True)
    return built


def _students(
    arguments: argparse.Namespace,
    source: FullSource,
    eval_source: FullSource,
    teacher: Network,
    caches: Mapping[str, tuple[Path, str, str]],
) -> dict[str, list[_Run]]:
    """All runs, by what is trained from."""
    views = Views(recipe=arguments.recipe, num_views=arguments.views or arguments.epochs)
    found: dict[str, list[_Run]] = {name: [] for name in (_ALONE, _LIVE, *caches)}
    for seed in range(arguments.seeds):
        for name, results in found.items():
            options = TrainOptions(
                out=arguments.out / f"{name}-{seed}",
                student=arguments.student,
                epochs=arguments.epochs,
                loss=CROSS_ENTROPY if name == _ALONE else arguments.loss,
                batch_size=arguments.batch_size,
                lr=arguments.lr,
                warmup=3,
                seed=seed,
            )
            if name in caches:
                result = train(options, source, eval_source, cache=open_cache(caches[name][0]))
            else:
                live = teacher if name == _LIVE else None
                result = train(options, source, eval_source, views=views, teacher=live)
            last = json.loads((options.out / METRICS).read_text().splitlines()[-1])
            results.append(_Run(result.last_score, result.best_score, last[_OTHER[result.score]]))
            say(f"seed {seed}, {name}: {result.last_score:.2%}, at best {result.best_score:.2%}", error=True)
    return found


def main() -> None:
    arguments = _parser().parse_args()
    log_lines(logging.WARNING)
    try:
        source = settle(open_source(arguments.data))
        eval_source = settle(open_source(arguments.eval_data or arguments.data, split="test"))
        teacher = teacher_of(arguments, source, eval_source)
        caches = _caches(arguments, source, teacher)
        found = _students(arguments, source, eval_source, teacher, caches)
    except GdkdCacheError as error:
        say(f"error: {error}", error=True)
        raise SystemExit(1) from None
    other = "pixel accuracy" if source.has_masks else "top-5"
    columns = ["student trained with", "bytes a view", "gradient error"]
    columns += [title for kind in ("last epoch", "best epoch", other) for title in (kind, "against live")]
    live, rows = [*zip(*found[_LIVE], strict=True)], []
    for name, results in found.items():
        _, size, error = caches.get(name, ("", "-", "-"))
        pairs = zip(zip(*results, strict=True), live, strict=True)
        rows.append(
            (name, size, error, *(cell for ours, theirs in pairs for cell in (spread(ours), against(ours, theirs))))
        )
    say_table(columns, rows)


if __name__ == "__main__":
    main()
