#!/usr/bin/env python
"""Do students agree? One student trained from the live teacher and from caches of several codecs, over several seeds.

    python scripts/compare_students.py --data wds:DIR/train-{000000..000003}.tar \\
        --eval-data wds:DIR/test-000000.tar --out RUNS

At each seed all variants share initial weights, views and order. Prints the accuracy of the last epoch and of the best.
"""

import argparse
import statistics
from pathlib import Path

from rich.console import Console
from rich.table import Table
from student_runs import spread

from gdkd_cache import open_cache, open_source
from gdkd_cache.building.build import build
from gdkd_cache.building.options import BuildOptions
from gdkd_cache.models.opening import open_network
from gdkd_cache.training.options import CROSS_ENTROPY
from gdkd_cache.training.train import TrainOptions, Views, train

_CODECS = {
    "dense float16": ("dense", 0.1),
    "transform, target 0.1": ("transform", 0.1),
    "transform, target 0.17": ("transform", 0.17),
    "transform, target 0.27": ("transform", 0.27),
    "ten classes and the exact tail mass": ("topk:k=10", 0.1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--eval-data", required=True)
    parser.add_argument("--teacher", default="resnet8", help="a model, or package.module:name of your own")
    parser.add_argument("--weights", type=Path, help="of the teacher, with a card; without, it is trained first")
    parser.add_argument("--recipe", default="crop-flip")
    parser.add_argument("--teacher-epochs", type=int, default=16)
    parser.add_argument("--student", default="cnn-s")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--out", type=Path, required=True, help="an empty folder; finished runs in it are kept")
    arguments = parser.parse_args()
    out: Path = arguments.out
    source, eval_source = open_source(arguments.data), open_source(arguments.eval_data, split="test")
    loss = "gdkd:k=5,w1=2,w2=8,temperature=4"
    weights = arguments.weights or out / "teacher" / "last.safetensors"
    if arguments.weights is None:
        options = TrainOptions(out=out / "teacher", student=arguments.teacher, epochs=arguments.teacher_epochs)
        print("teacher:", train(options, source, eval_source, views=Views(recipe=arguments.recipe)))
    teacher = open_network(arguments.teacher, weights, len(source.classes))
    facts: dict[str, tuple[float, float]] = {}
    for name, (codec, fidelity) in _CODECS.items():
        options = BuildOptions(
            out=out / f"{name}.zarr", num_views=arguments.epochs, recipe=arguments.recipe, codec=codec,
            fidelity=fidelity, losses=(loss,),
        )  # fmt: skip
        manifest = build(options, source, teacher).manifest
        size = manifest.num_bytes / (manifest.identity.num_rows * manifest.identity.num_views)
        facts[name] = size, max(manifest.identity.fidelity.gradient_error.values())
    last: dict[str, list[float]] = {}
    best: dict[str, list[float]] = {}
    for seed in range(arguments.seeds):
        for name in ("cross-entropy only", "live teacher", *_CODECS):
            options = TrainOptions(
                out=out / f"{name}-{seed}", student=arguments.student, epochs=arguments.epochs,
                loss=CROSS_ENTROPY if name == "cross-entropy only" else loss,
                lr=arguments.lr, warmup=3, seed=seed,
            )  # fmt: skip
            views = Views(recipe=arguments.recipe, num_views=arguments.epochs)
            if name in _CODECS:
                result = train(options, source, eval_source, cache=open_cache(out / f"{name}.zarr"))
            else:
                live = teacher.logits if name == "live teacher" else None
                result = train(options, source, eval_source, views=views, teacher=live)
            last.setdefault(name, []).append(result.last_accuracy)
            best.setdefault(name, []).append(result.best_accuracy)
    table = Table("student trained with", "bytes a view", "gradient error", "last epoch", "against live", "best epoch")
    live = last["live teacher"]
    for name, values in last.items():
        size, error = facts.get(name, (None, None))
        difference = statistics.mean(a - b for a, b in zip(values, live, strict=True))
        table.add_row(
            name,
            "-" if size is None else f"{size:.1f}",
            "-" if error is None else f"{error:.3f}",
            spread(values),
            f"{100 * difference:+.2f}",
            spread(best[name]),
        )
    Console(width=130, highlight=False).print(table)


if __name__ == "__main__":
    main()
