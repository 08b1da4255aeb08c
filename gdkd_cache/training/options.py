"""The options of a training."""

from dataclasses import dataclass
from pathlib import Path

from gdkd_cache.data.recipes.step import LARGEST_SIDE
from gdkd_cache.errors import UsageError
from gdkd_cache.losses.settings import LossSettings


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How to train.

    Attributes:
        out: folder for `best.safetensors`, `last.safetensors` (each with its `.json`) and `metrics.jsonl`.
        student: name of the network, as for `build_model`.
        epochs: passes over the data.
        distillation: the distillation loss; None trains with cross-entropy alone.
        ce_weight, distillation_weight: the total is ce_weight * CE + distillation_weight * ramp * distillation.
        warmup: epochs over which the distillation's ramp rises: min(epoch / warmup, 1), epochs from 1; 0 is none.
        optimizer: `sgd` (momentum 0.9) or `adamw`.
        lr, weight_decay: of the optimizer.
        milestones: epochs after which the learning rate falls to a tenth; none means a cosine to 0 at the end.
        lr_warmup: epochs over which the learning rate rises linearly; 0 is none.
        batch_size: images a step, of all ranks together; a multiple of their number.
        seed: of the initial weights and of the order.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        num_workers: processes that render views; None takes 0 for images in memory, else one a core (at most 8).
        precision: `float32`, or `bfloat16` autocast.
        size: side of the student's views in pixels; None takes the recipe's, which is the teacher's.
        eval_recipe: what makes the inputs of evaluation; None takes `imagenet-eval` where the recipe resamples
            images, else the images as they are (resized, with `size`).
        force: replace an earlier training in `out`.

    Raises:
        UsageError: a value out of range.
    """

    out: Path
    student: str
    epochs: int
    distillation: LossSettings | None = None
    ce_weight: float = 1.0
    distillation_weight: float = 1.0
    warmup: int = 0
    optimizer: str = "sgd"
    lr: float = 0.05
    weight_decay: float = 5e-4
    milestones: tuple[int, ...] = ()
    lr_warmup: int = 0
    batch_size: int = 64
    seed: int = 0
    device: str = "auto"
    num_workers: int | None = None
    precision: str = "float32"
    size: int | None = None
    eval_recipe: str | None = None
    force: bool = False

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("warmup", 0), ("lr_warmup", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        for name in ("ce_weight", "distillation_weight", "weight_decay"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 0 and finite")
        if self.num_workers is not None and self.num_workers < 0:
            raise UsageError(f"num_workers is {self.num_workers}; it must be at least 0")
        if self.size is not None and not 1 <= self.size <= LARGEST_SIDE:
            raise UsageError(f"size is {self.size}; it must be in 1..{LARGEST_SIDE} pixels")
        if not 0 < self.lr < float("inf"):
            raise UsageError(f"lr is {self.lr}; it must be above 0 and finite")
        for name, allowed in (
            ("optimizer", ("sgd", "adamw")),
            ("precision", ("float32", "bfloat16")),
        ):
            if getattr(self, name) not in allowed:
                raise UsageError(f"{name} is {getattr(self, name)!r}; it must be {' or '.join(allowed)}")
        if list(self.milestones) != sorted({m for m in self.milestones if m > 0}):
            raise UsageError(f"milestones are {list(self.milestones)}; they must be rising epochs above 0")
