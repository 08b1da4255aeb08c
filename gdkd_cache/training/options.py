"""The options of a training; loads no torch, as the command line reads them for help."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from gdkd_cache.data.options import MemoryOptions, RenderOptions
from gdkd_cache.data.view_numbers import parse_views
from gdkd_cache.errors import UsageError
from gdkd_cache.fields import option
from gdkd_cache.limits import LARGEST_BATCH, LARGEST_SEED, LARGEST_SIDE, LEAST_TEMPERATURE, MOST_EPOCHS
from gdkd_cache.models.registry import MODEL_HELP
from gdkd_cache.training.amounts import parse_bytes, parse_course, parse_interval
from gdkd_cache.training.reporters.registry import REPORTERS
from gdkd_cache.training.settings import CROSS_ENTROPY, ComputeOptions, OptimisationOptions, TaskOptions

if TYPE_CHECKING:
    from gdkd_cache.losses.base import Loss

_PARSERS: Mapping[str, Callable[[str, str], object]] = {
    "distillation_weights": parse_course,
    "temperatures": partial(parse_course, least=LEAST_TEMPERATURE),
    "max_memory": parse_bytes,
    "views": lambda name, text: parse_views(text),
    "save_every": parse_interval,
}

TURN, DISAGREEMENT = "turn", "disagreement"
"""By what views are shown."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions(RenderOptions, MemoryOptions, ComputeOptions, OptimisationOptions, TaskOptions):
    """How to train.

    Raises:
        UsageError: a value out of range.
    """

    student: str = option(help=f"The network: {MODEL_HELP}", metavar="MODEL")
    init: str | None = option(
        None,
        "Weights to begin from: a file, or what the network's library calls them (DEFAULT, pretrained). A head for "
        "other classes begins fresh; inputs are normalised as the card or the library says.",
        unset="fresh weights",
        metavar="FILE|NAME",
    )
    init_key: str | None = option(None, "Which of several weights in the file of --init.", metavar="KEY", rare=True)
    epochs: int = option(
        help="Passes over the images; each uses the next view of the cache, in turn.", least=1, most=MOST_EPOCHS
    )
    out: Path = option(help="Folder for weights, metrics.jsonl and all that a training needs to go on.", outcome=False)
    force: bool = option(False, "Replace an earlier training in that folder.", outcome=False)
    batch_size: int = option(64, "Images a step, of all ranks.", least=1, most=LARGEST_BATCH)
    views: str | None = option(
        None,
        "Which views of the cache the epochs use, in turn, as in 0-19 or 0,3.",
        metavar="VIEWS",
        unset="all",
        rare=True,
    )
    views_by: str = option(
        TURN,
        "After a first round, which view of the cache an image is shown: that of the epoch (turn), or the one on which "
        "student and teacher disagreed most when it was last shown (disagreement). All views then lie in memory.",
        choices=(TURN, DISAGREEMENT),
        rare=True,
    )
    size: int | None = option(
        None,
        "Side of the student's views, in pixels: the same boxes at another resolution.",
        least=1,
        most=LARGEST_SIDE,
        unset="the teacher's",
    )
    eval_recipe: str | None = option(
        None,
        "What makes the inputs of evaluation.",
        unset="imagenet-eval where the recipe resamples images, else none",
        metavar="SPEC",
        rare=True,
    )
    seed: int = option(0, "Seed of the initial weights and of the order.", least=-LARGEST_SEED, most=LARGEST_SEED)
    save_every: str | None = option(
        None,
        "Also save all that a resumed training needs after so many steps, or so much time: 500, 90s, 10min, 1h.",
        metavar="STEPS|TIME",
        unset="after each epoch",
        rare=True,
        outcome=False,
    )
    keep_every: int | None = option(
        None,
        "Also keep the weights of every so-many-th epoch, for `gdkd-cache average`.",
        least=1,
        most=MOST_EPOCHS,
        unset="the best and the last alone",
        rare=True,
        outcome=False,
    )
    report_to: tuple[str, ...] = option(
        (),
        "Where metrics go beside metrics.jsonl; may be repeated.",
        choices=tuple(REPORTERS),
        rare=True,
        outcome=False,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.loss, str) and self.loss.startswith(f"{CROSS_ENTROPY}:"):
            raise UsageError(f"loss is {self.loss!r}; {CROSS_ENTROPY} takes no settings")
        if self.ema == 1:
            raise UsageError("ema is 1, which keeps the first weights for ever; it must be below 1")
        for name, parse in _PARSERS.items():
            if getattr(self, name) is not None:
                parse(name, getattr(self, name))

    def check(self) -> None:
        """Refuse what only torch, or a library, can tell is wrong: call it before anything is opened.

        Raises:
            UsageError: an unknown loss, method, optimizer or schedule, or a setting of theirs that is wrong.
        """
        from gdkd_cache.training.optimization.optimizers import parse_optimizer
        from gdkd_cache.training.optimization.schedules import parse_schedule
        from gdkd_cache.training.tasks import task_of

        task_of(self)
        parse_optimizer(self)
        parse_schedule(self.schedule)

    @property
    def distillation(self) -> "Loss | None":
        """The distillation loss; None trains with cross-entropy alone.

        Raises:
            UsageError: an unknown loss or setting, or a value out of range.
        """
        from gdkd_cache.losses.base import parse_loss

        return None if self.loss == CROSS_ENTROPY else parse_loss(self.loss)
