"""Parts of a training's options: what its loss is, how it is optimised, and how it computes; loads no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gdkd_cache.fields import option
from gdkd_cache.limits import LARGEST_FACTOR, MOST_EPOCHS, MOST_WORKERS, TRAIN_PRECISIONS
from gdkd_cache.losses.registry import LOSSES
from gdkd_cache.training.methods.registry import METHODS
from gdkd_cache.training.optimization.registry import SCHEDULES

if TYPE_CHECKING:
    from gdkd_cache.losses.base import Loss

CROSS_ENTROPY = "ce"


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """What a batch's loss is."""

    loss: "str | Loss" = option(
        CROSS_ENTROPY,
        f"{CROSS_ENTROPY} for cross-entropy alone, which needs no cache: it makes teachers; or a distillation loss "
        f"beside it: {', '.join(LOSSES)}, with settings as in gdkd:k=5,w2=8,temperature=4 (`gdkd-cache losses` lists "
        "them), or package.module:name.",
        metavar="LOSS",
    )
    method: str | None = option(
        None,
        f"A method around the loss, with heads or parameters of its own: {', '.join(METHODS)}, with settings as in "
        "dho:alpha=0.5 (`gdkd-cache methods` lists them), or package.module:name.",
        metavar="METHOD",
        unset="none",
    )
    signal: Path | None = option(
        None,
        "What else the teacher left, for a method that needs it: a file of `gdkd-cache signal`.",
        unset="nothing",
        metavar="FILE",
        outcome=False,
        rare=True,
    )
    ce_weight: float = option(1.0, "Weight of the cross-entropy.", least=0, most=LARGEST_FACTOR)
    distillation_weight: float = option(1.0, "Weight of the distillation loss.", least=0, most=LARGEST_FACTOR)
    warmup: int = option(
        0,
        "Epochs over which the distillation loss ramps up: min(epoch / warmup, 1).",
        least=0,
        most=MOST_EPOCHS,
    )
    skip_epochs: int = option(
        0,
        "Epochs of cross-entropy alone before the distillation, and its warm-up, begins.",
        least=0,
        most=MOST_EPOCHS,
        rare=True,
    )
    distillation_weights: str | None = option(
        None,
        "Weights by epoch, from 1, in place of --distillation-weight: linear between those that are named.",
        metavar="EPOCH:WEIGHT,...",
        rare=True,
    )
    temperatures: str | None = option(
        None,
        "The loss's temperature by epoch, from 1, in place of its own: linear between those that are named.",
        metavar="EPOCH:T,...",
        rare=True,
    )
    agreeing_weight: float = option(
        1.0,
        "Weight, in the distillation loss, of images whose first class the student shares with the teacher.",
        least=0,
        most=LARGEST_FACTOR,
        rare=True,
    )
    disagreeing_weight: float = option(
        1.0,
        "Weight of the other images there, as where many are of no class that the teacher knows.",
        least=0,
        most=LARGEST_FACTOR,
        rare=True,
    )
    aux_weight: float = option(
        0.4,
        "Of masks: weight of the losses of a network's outputs beside its main one.",
        least=0,
        most=LARGEST_FACTOR,
        rare=True,
    )
    labelled: str | None = option(
        None,
        "Hide the labels of all images but so many, always the same, or those of a file's keys, one a line: the others "
        "learn from the teacher alone.",
        metavar="N|KEYS.txt",
        unset="all that have one",
        rare=True,
    )
    label_smoothing: float = option(
        0.0, "Part of each label that the cross-entropy spreads over all classes.", least=0, most=1, rare=True
    )


@dataclass(frozen=True, kw_only=True)
class OptimisationOptions:
    """How weights follow from gradients."""

    optimizer: str = option(
        "sgd",
        "The optimizer: one of torch.optim, or timm:NAME, with settings as in adamw:betas=0.9/0.95,eps=1e-8; sgd has "
        "momentum 0.9.",
        metavar="SPEC",
    )
    lr: float = option(0.05, "Learning rate.", above=0, most=10**9)
    weight_decay: float = option(5e-4, "Weight decay.", least=0, most=LARGEST_FACTOR)
    no_norm_decay: bool = option(False, "No weight decay for tensors of one dimension: norms and biases.", rare=True)
    schedule: str = option(
        "cosine",
        f"How lr falls: {SCHEDULES.forms()} (`gdkd-cache schedules` lists their settings).",
        metavar="SPEC",
    )
    schedule_by: str = option("epoch", "After what lr changes.", choices=("epoch", "step"), rare=True)
    lr_warmup: int = option(0, "Epochs over which lr rises linearly.", least=0, most=MOST_EPOCHS)
    clip_grad_norm: float | None = option(
        None, "Scale the gradients of a step down to this norm.", above=0, most=10**9, unset="as they are", rare=True
    )
    accumulate: int = option(
        1, "Parts of a step's images, each with passes of its own: less memory.", least=1, most=2**20, rare=True
    )
    ema: float | None = option(
        None,
        "Also keep an exponential moving average of the weights: its decay a step, such as 0.9999.",
        above=0,
        most=1,
        unset="none",
        rare=True,
    )


@dataclass(frozen=True, kw_only=True)
class ComputeOptions:
    """How steps are computed: none of it changes what is asked for, but its last bits, its speed and its memory."""

    precision: str = option(
        "float32",
        "Precision of the steps; float16 and bfloat16 are autocast, tf32 is for a GPU's float32.",
        choices=TRAIN_PRECISIONS,
    )
    device: str = option("auto", "auto, cpu, cuda or cuda:N.", outcome=False)
    threads: int | None = option(
        None,
        "Threads that compute on the CPU.",
        least=1,
        most=MOST_WORKERS,
        unset="one or all, whichever takes a step faster at the start",
        rare=True,
        outcome=False,
    )
    memory_format: str = option(
        "auto",
        "Order of images and weights in memory; auto is the faster one that the network takes.",
        choices=("auto", "contiguous", "channels_last"),
        rare=True,
    )
    compile: bool = option(False, "Compile the network with torch.compile.", rare=True)
    activation_checkpointing: bool = option(
        False,
        "Keep only the inputs of a network's blocks, and compute the rest again: less memory, more time.",
        rare=True,
    )
    sync_batchnorm: bool = option(False, "Have BatchNorm take the statistics of all ranks' images; on GPUs.", rare=True)
    max_memory: str | None = option(
        None,
        "Memory that a step may take, as in 4GiB: of the GPU, or of the process; --accumulate is then found by trying.",
        metavar="SIZE",
        unset="no bound",
        rare=True,
    )
