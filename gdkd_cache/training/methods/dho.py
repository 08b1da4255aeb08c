"""DHO: dual-head optimization (arXiv 2505.07675), for images of which few have labels."""

from dataclasses import dataclass

from torch import Tensor, nn

from gdkd_cache.errors import UsageError
from gdkd_cache.fields import option
from gdkd_cache.models.heads import TwoHeads, last_linear, put
from gdkd_cache.models.registry import TWO_HEADS
from gdkd_cache.training.options import TrainOptions
from gdkd_cache.training.task import Task


@dataclass(frozen=True, kw_only=True)
class DHO(Task):
    """Two heads on one body: one learns from labels, the other from the teacher; evaluated, they are mixed.

    With z_l and z_t their logits, and D a distillation loss, of kd:temperature=2 as published:

        ce_weight * mean over labelled rows of CE(z_l, label) + distillation_weight * mean over all rows of D(z_t, t)

    (Kang et al., arXiv 2505.07675; `train_student` in github.com/erjui/DHO, train_imgnet_semi.py at 125734b.) There
    labelled and unlabelled rows come in batches of their own, and the teacher's head reads features of norm 100, as
    CLIP's does; here a batch is of all rows in turn, and both heads read the features as they are. How the heads are
    mixed: see `TwoHeads`.
    """

    alpha: float = option(0.5, "evaluated: the share of the head that learnt from labels", least=0, most=1)
    beta: float = option(0.5, "evaluated: the temperature of the head that learnt from the teacher", above=0, most=1000)

    @classmethod
    def check(cls, options: TrainOptions) -> None:
        super().check(options)
        if options.skip_epochs:
            raise UsageError(f"skip_epochs is {options.skip_epochs}; method dho trains both heads from the first epoch")

    def named(self, network: str) -> str:
        return f"{TWO_HEADS}:{network}"

    def fit(self, model: nn.Module, num_classes: int, images: Tensor, what: str) -> None:
        name, layer = last_linear(model, num_classes, what)
        put(model, name, TwoHeads(layer, alpha=self.alpha, beta=self.beta, apart=True), images, what)

    def heads(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        labels, teacher = outputs.chunk(2, -1)
        return labels, teacher
