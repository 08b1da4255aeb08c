"""The options of a training; loads no torch, as the command line reads them for help."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gdkd_cache.data.options import MemoryOptions, RenderOptions
from gdkd_cache.errors import UsageError
from gdkd_cache.fields import option
from gdkd_cache.limits import LARGEST_BATCH, LARGEST_FACTOR, LARGEST_SEED, LARGEST_SIDE, MOST_EPOCHS, MOST_WORKERS
from gdkd_cache.losses.registry import LOSSES
from gdkd_cache.models.registry import MODEL_HELP

if TYPE_CHECKING:
    from gdkd_cache.losses.base import Loss

CROSS_ENTROPY = "ce"


@dataclass(frozen=True, kw_only=True)
class TrainOptions(RenderOptions, MemoryOptions):
    """How to train.

    Raises:
        UsageError: a value out of range.
    """

    loss: "str | Loss" = option(
        CROSS_ENTROPY,
        f"{CROSS_ENTROPY} for cross-entropy alone, which needs no cache: it makes teachers; or a distillation loss "
        f"beside it: {', '.join(LOSSES)}, with settings as in gdkd:k=5,w2=8,temperature=4 (`gdkd-cache losses` lists "
        "them), or package.module:name for your own.",
        metavar="LOSS",
    )
    student: str = option(help=f"The network: {MODEL_HELP}", metavar="MODEL")
    init: str | None = option(
        None,
        "Weights to begin from: a file, or what the network's library calls them (IMAGENET1K_V2, DEFAULT, pretrained). "
        "A head for other classes begins fresh; inputs are normalised as the weights' card or the library says.",
        unset="fresh weights",
        metavar="FILE|NAME",
    )
    init_key: str | None = option(None, "Which of several weights in the file of --init.", metavar="KEY")
    epochs: int = option(
        help="Passes over the images; epoch e uses view e of the cache, in turn.", least=1, most=MOST_EPOCHS
    )
    out: Path = option(help="Folder for checkpoints and metrics.jsonl.")
    force: bool = option(False, "Replace an earlier training in that folder.")
    batch_size: int = option(64, "Images a step, of all ranks.", least=1, most=LARGEST_BATCH)
    optimizer: str = option("sgd", "The optimizer; sgd has momentum 0.9.", choices=("sgd", "adamw"))
    lr: float = option(0.05, "Learning rate.", above=0, most=10**9)
    weight_decay: float = option(5e-4, "Weight decay.", least=0, most=LARGEST_FACTOR)
    milestones: tuple[int, ...] = option(
        (),
        "Epochs after which lr falls to a tenth.",
        least=1,
        most=MOST_EPOCHS,
        unset="a cosine to 0 at the end",
        metavar="E,E,...",
        joined=True,
    )
    lr_warmup: int = option(0, "Epochs over which lr rises linearly.", least=0, most=MOST_EPOCHS)
    ce_weight: float = option(1.0, "Weight of the cross-entropy.", least=0, most=LARGEST_FACTOR)
    distillation_weight: float = option(1.0, "Weight of the distillation loss.", least=0, most=LARGEST_FACTOR)
    warmup: int = option(
        0,
        "Epochs over which the distillation loss ramps up: min(epoch / warmup, 1), epochs from 1.",
        least=0,
        most=MOST_EPOCHS,
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
    )
    seed: int = option(0, "Seed of the initial weights and of the order.", least=-LARGEST_SEED, most=LARGEST_SEED)
    precision: str = option("float32", "Precision of the steps; bfloat16 is autocast.", choices=("float32", "bfloat16"))
    device: str = option("auto", "auto, cpu, cuda or cuda:N.")
    threads: int | None = option(
        None,
        "Threads that compute on the CPU.",
        least=1,
        most=MOST_WORKERS,
        unset="one or all, whichever takes a step faster at the start",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.loss, str) and self.loss.startswith(f"{CROSS_ENTROPY}:"):
            raise UsageError(f"loss is {self.loss!r}; {CROSS_ENTROPY} takes no settings")
        if list(self.milestones) != sorted(set(self.milestones)):
            raise UsageError(f"milestones are {list(self.milestones)}; they must be rising epochs above 0")

    @property
    def distillation(self) -> "Loss | None":
        """The distillation loss; None trains with cross-entropy alone.

        Raises:
            UsageError: an unknown loss or setting, or a value out of range.
        """
        from gdkd_cache.losses.base import parse_loss

        return None if self.loss == CROSS_ENTROPY else parse_loss(self.loss)
