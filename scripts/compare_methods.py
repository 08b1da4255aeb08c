#!/usr/bin/env python
"""What do the methods give? One student by each of them, over several seeds, all from one cache.

    python scripts/compare_methods.py --data wds:DIR/train-{000000..000003}.tar \\
        --eval-data wds:DIR/test-000000.tar --out RUNS
    python scripts/compare_methods.py --data tiny-imagenet:DIR --epochs 10 --methods kd dkd gdkd --out RUNS

At each seed all methods share initial weights, views and order. Prints, as a table in Markdown, the settings, the
cache's gradient error for the loss, top-1 of the last epoch and of the best, how far that of the last is from `kd` at
the same seeds, images a second and the most memory that the process took. Each training is a process of its own.
Started again, it goes on where it was; `--out` holds the teacher, the cache and the runs.
"""

import argparse
import json
import logging
import multiprocessing
import statistics
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from student_runs import against, common_arguments, spread, teacher_of

from gdkd_cache import open_cache, open_source
from gdkd_cache.building.build import build
from gdkd_cache.building.options import BuildOptions
from gdkd_cache.cache.cache import Cache
from gdkd_cache.data.source import FullSource, settle
from gdkd_cache.errors import GdkdCacheError, NotServedError
from gdkd_cache.losses.registry import LOSSES
from gdkd_cache.terminal import log_lines, say
from gdkd_cache.training.options import CROSS_ENTROPY
from gdkd_cache.training.records.layout import METRICS
from gdkd_cache.training.train import TrainOptions, train

_REFERENCE = "kd"
_RAMP = {"warmup": 3}
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "ce": {"loss": CROSS_ENTROPY},
    # As in the code of GDKD, DKD and LSKD for CIFAR-100 (`gdkd-cache presets cifar100`), its ramp of 20 epochs cut.
    "kd": {"loss": "kd:temperature=4", "ce_weight": 0.1, "distillation_weight": 0.9},
    "lskd": {"loss": "kd:temperature=2,standardize=true", "ce_weight": 0.1, "distillation_weight": 9.0},
    "dkd": {"loss": "dkd:alpha=1,beta=8,temperature=4", **_RAMP},
    "gdkd": {"loss": "gdkd:k=5,w0=1,w1=2,w2=8,temperature=4", **_RAMP},
    "gdkd3": {"loss": "gdkd3:k=4,w0=1,w1=2,w2=8,temperature=4", **_RAMP},
    # Its paper's loss stands in place of the cross-entropy.
    "pld": {"loss": "pld", "ce_weight": 0.0},
    # Squares of raw logits: chosen here, so that the two terms are alike at the start.
    "margin_mse": {"loss": "margin_mse", "distillation_weight": 0.1},
    "dho": {"loss": "kd:temperature=2", "method": "dho"},
}
"""By what a table calls a method; other registered losses have their own defaults, and weigh as cross-entropy does."""


class _Run(NamedTuple):
    """A student: top-1 of the last epoch and of the best, images a second, and bytes of memory at most."""

    last: float
    best: float
    speed: float
    memory: int


def methods() -> dict[str, Mapping[str, Any]]:
    """The settings of `TrainOptions` of each method: those above, and every other registered loss."""
    return {**SETTINGS, **{name: {"loss": name} for name in LOSSES if name not in SETTINGS}}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common_arguments(parser)
    parser.add_argument("--fidelity", type=float, default=0.1, help="of the cache, built for the loss of `gdkd`")
    parser.add_argument("--methods", nargs="+", choices=methods(), default=[*methods()], metavar="METHOD")
    return parser


def _sources(arguments: argparse.Namespace) -> tuple[FullSource, FullSource]:
    source = settle(open_source(arguments.data))
    return source, settle(open_source(arguments.eval_data or arguments.data, split="test"))


def _built(arguments: argparse.Namespace) -> Path:
    """The cache that all learn from."""
    source, eval_source = _sources(arguments)
    options = BuildOptions(
        out=arguments.out / "cache.zarr",
        num_views=arguments.views or arguments.epochs,
        recipe=arguments.recipe,
        fidelity=arguments.fidelity,
        losses=(SETTINGS["gdkd"]["loss"],),
    )
    build(options, source, teacher_of(arguments, source, eval_source))
    return Path(options.out)


def _options(arguments: argparse.Namespace, name: str, seed: int) -> TrainOptions:
    settings = dict(methods()[name])
    return TrainOptions(
        out=arguments.out / f"{name}-{seed}",
        student=arguments.student,
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        lr=arguments.lr,
        seed=seed,
        **settings,
    )


def _trained(arguments: argparse.Namespace, path: Path, name: str, seed: int) -> None:
    """Train one student; runs in a process of its own."""
    log_lines(logging.WARNING)
    options = _options(arguments, name, seed)
    train(options, *_sources(arguments), cache=None if options.distillation is None else open_cache(path))


def _run(arguments: argparse.Namespace, path: Path, name: str, seed: int) -> _Run:
    """One student, trained unless it is there already."""
    metrics = arguments.out / f"{name}-{seed}" / METRICS

    def lines() -> list[dict[str, Any]]:
        return [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []

    if len(lines()) < arguments.epochs:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as process:
            process.submit(_trained, arguments, path, name, seed).result()
    epochs = lines()
    accuracies = [epoch["accuracy"] for epoch in epochs]
    speed = len(epochs) / sum(1 / epoch["images_per_second"] for epoch in epochs)
    return _Run(accuracies[-1], max(accuracies), speed, max(epoch["memory_bytes"] for epoch in epochs))


def _error(cache: Cache, options: TrainOptions) -> str:
    """The cache's gradient error for a method's loss: measured as it was built, or about."""
    if options.distillation is None:
        return "-"
    try:
        error = cache.gradient_error(options.distillation)
    except NotServedError:
        return "refused"
    return "-" if error is None else f"{'' if error.is_measured else '~'}{error.value:.2g}"


def table(arguments: argparse.Namespace, cache: Cache, found: Mapping[str, list[_Run]]) -> list[tuple[str, ...]]:
    """A row a method, in the order of the methods: none is called the best."""
    rows, reference = [], found.get(_REFERENCE)
    for name, runs in found.items():
        options, last = _options(arguments, name, 0), [run.last for run in runs]
        weights = f"{options.ce_weight:g} / {options.distillation_weight:g}"
        rows.append(
            (
                name,
                f"`{options.loss}`" + (f", `--method {options.method}`" if options.method else ""),
                "1 / -" if options.distillation is None else weights,
                _error(cache, options),
                spread(last),
                spread([run.best for run in runs]),
                "-" if reference is None else against(last, [run.last for run in reference]),
                f"{statistics.mean(run.speed for run in runs):,.0f}",
                f"{max(run.memory for run in runs) / 2**20:,.0f}",
            )
        )
    return rows


def main() -> None:
    arguments = _parser().parse_args()
    log_lines(logging.WARNING)
    try:
        path, found = _built(arguments), {name: list[_Run]() for name in arguments.methods}
        for seed in range(arguments.seeds):
            for name, runs in found.items():
                runs.append(_run(arguments, path, name, seed))
                say(f"seed {seed}, {name}: {runs[-1].last:.2%}, at best {runs[-1].best:.2%}", error=True)
    except GdkdCacheError as error:
        say(f"error: {error}", error=True)
        raise SystemExit(1) from None
    columns = ("method", "loss", "weights", "gradient error", "last epoch", "best epoch", f"against {_REFERENCE}")
    columns += ("images/s", "MiB")
    lines = [columns, ("---",) * len(columns), *table(arguments, open_cache(path), found)]
    say(*(f"| {' | '.join(line)} |" for line in lines))


if __name__ == "__main__":
    main()
