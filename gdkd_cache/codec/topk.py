"""`topk`: the k largest logits, the label's logit and the exact mass of the rest, spread uniformly."""

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gdkd_cache.codec.base import (
    Codec,
    CodecOptions,
    Column,
    Decoded,
    References,
    TopK,
    check_columns,
    check_num_top,
    check_rows,
    check_step,
    class_column,
    class_dtype,
    exact_top,
)
from gdkd_cache.errors import GdkdCacheError, UsageError
from gdkd_cache.fields import option
from gdkd_cache.losses.base import Loss
from gdkd_cache.losses.registry import LOSSES

if TYPE_CHECKING:
    from gdkd_cache.codec.calibration import Calibration

_FINE = 1 / 64
_COARSER = 6
_FURTHER = 3
_MOST_SEARCHED = 128
_MAX_STEPS = 2**16 - 2
_MOST_TEMPERATURE = 2**64  # a tail of float16 times this is finite in float32


@dataclass(frozen=True, kw_only=True)
class TopKOptions(CodecOptions):
    """Options of `topk`."""

    k: int | None = option(
        None, "classes kept in exact rank order", least=1, unset="8, what the losses need, or more to meet the fidelity"
    )
    step: float | None = option(
        None,
        "quantisation step of the top logits, in logits",
        above=0,
        most=2**64,
        unset="the coarsest that meets the fidelity, 1/64 where none does",
    )


@dataclass(frozen=True, kw_only=True)
class TopKCodec(Codec):
    """Top-k codec.

    Per row it keeps the class ids in exact rank order, the logits as whole steps below the one before
    (so that ranks never swap), the label's logit, and at each declared temperature T the tail's
    logsumexp(z/T) relative to the top-1 logit's z/T. The tail is what is neither top-k nor label.

    Attributes:
        num_classes: C.
        num_top: k, 1 <= k < C.
        temperatures: the declared T; `decode` spreads the tail at the exact mass for one of them.
        step: quantisation step of the logits, in logits.
    """

    Options = TopKOptions
    searches = True

    temperatures: tuple[float, ...] = (4.0,)
    step: float = 1 / 64

    def __post_init__(self) -> None:
        check_num_top(self.num_top, self.num_classes)
        if not self.temperatures or not all(0 < t <= _MOST_TEMPERATURE for t in self.temperatures):
            raise UsageError(
                f"temperatures are {list(self.temperatures)}; declare at least one, each above 0 and at most 2**64"
            )
        check_step(self.step)

    @classmethod
    def fit(cls, calibration: "Calibration", options: TopKOptions, fidelity: float) -> "TopKCodec":
        least = calibration.num_top(options)

        def codec(k: int, step: float = _FINE) -> TopKCodec:
            temperatures = calibration.request.temperatures
            return cls(
                num_classes=calibration.num_classes, num_top=k, temperatures=temperatures, step=options.step or step
            )

        def meets(codec: TopKCodec) -> bool:
            served = all(codec.refusal(loss) is None for loss in calibration.request.losses)
            return served and calibration.error(codec) <= fidelity

        # Most of few classes are no head of a distribution: other codecs serve more losses for about the same bytes.
        most = min(_MOST_SEARCHED, calibration.num_classes // 4)
        numbers = range(least, (least if options.k else most) + 1)
        fewest = bisect_left(numbers, True, key=lambda k: meets(codec(k)))
        if fewest == len(numbers):
            return codec(least)
        if options.step is not None:
            return codec(numbers[fewest])
        # A class more may let the others be coarser.
        powers, candidates = range(_COARSER + 1), []
        for k in numbers[fewest : fewest + _FURTHER]:
            fine = bisect_left(powers, True, lo=1, key=lambda power: not meets(codec(k, _FINE * 2**power))) - 1
            candidates.append(codec(k, _FINE * 2**fine))
        return min(candidates, key=lambda one: calibration.choice(one).bytes_per_view)

    def columns(self) -> dict[str, Column]:
        steps = {"steps": Column(dtype="uint16", shape=(self.num_top - 1,), fill=2**16 - 1)}
        return {
            "classes": class_column(self.num_classes, (self.num_top,)),
            **(steps if self.num_top > 1 else {}),  # no array is of width 0
            "label": Column(dtype="uint16", shape=(), fill=2**16 - 1),
            "tail": Column(dtype="float16", shape=(len(self.temperatures),), fill=math.nan),
        }

    def encode(self, logits: Tensor, labels: Tensor, references: References | None = None) -> dict[str, Tensor]:
        z = logits.float()
        top = exact_top(z, self.num_top)
        below = z - top.values[:, :1]
        quantised = (-below / self.step).round()
        if quantised.max() > _MAX_STEPS:
            row = int(quantised.amax(-1).argmax())
            raise GdkdCacheError(
                f"row {row} of the batch: a logit lies {-below[row].min():.0f} below the largest; codec topk "
                f"stores gaps up to {_MAX_STEPS * self.step:.0f}: use codec dense"
            )
        ranked = quantised.gather(-1, top.classes)
        is_top = torch.zeros_like(z, dtype=torch.bool).scatter(-1, top.classes, True)
        label_in_top = is_top.gather(-1, labels[:, None]).squeeze(-1)
        kept = is_top.scatter(-1, labels[:, None], True)
        tail = torch.stack([below.masked_fill(kept, -torch.inf).div(t).logsumexp(-1) for t in self.temperatures], -1)
        label = quantised.gather(-1, labels[:, None]).squeeze(-1)
        return {
            "classes": top.classes.to(getattr(torch, class_dtype(self.num_classes))),
            **({"steps": ranked.diff(dim=-1).to(torch.uint16)} if self.num_top > 1 else {}),
            # The label's logit is already among the top: a constant compresses to nothing.
            "label": label.masked_fill(label_in_top, 0).to(torch.uint16),
            "tail": tail.clamp(min=-65504).to(torch.float16),
        }

    def check(self, columns: Mapping[str, np.ndarray], labels: np.ndarray, num_references: int = 0) -> None:
        label_in_top = (columns["classes"] == labels[:, None]).any(-1)
        lowest = columns["steps"].sum(-1, dtype=np.int64) if self.num_top > 1 else 0
        check_rows(label_in_top | (columns["label"] >= lowest), "holds a label's logit above those of its top")
        check_columns(columns, self.num_classes)

    def decode(
        self,
        columns: Mapping[str, Tensor],
        labels: Tensor,
        temperature: float | None = None,
        references: References | None = None,
    ) -> Decoded:
        temperature = self.temperatures[0] if temperature is None else temperature
        if temperature not in self.temperatures:
            raise UsageError(f"temperature {temperature} is not among the declared {list(self.temperatures)}")
        steps = columns["steps"].long() if self.num_top > 1 else labels.new_zeros(len(labels), 0)
        below = steps.cumsum(-1) * self.step
        top = TopK(torch.nn.functional.pad(-below.float(), (1, 0)), columns["classes"].long())
        label_value = -self.step * columns["label"].float()[:, None]
        label_in_top = (top.classes == labels[:, None]).any(-1)
        # Two sizes are possible: taken together, a row's logarithm is the same wherever it stands in a batch.
        sizes = (self.num_classes - self.num_top - torch.arange(2, device=labels.device)).clamp(min=1).log()
        tail = columns["tail"][:, self.temperatures.index(temperature)].float()
        # Uniform over the tail at its exact mass; rounding must not lift it above the k-th logit.
        level = (temperature * (tail - sizes[(~label_in_top).long()])).minimum(top.values[:, -1])
        logits = level[:, None].repeat(1, self.num_classes)
        logits = logits.scatter(-1, labels[:, None], label_value).scatter(-1, top.classes, top.values)
        return Decoded(logits, top)

    def refusal(self, loss: Loss) -> str | None:
        if loss.standardize:
            reason = "standardized logits need the deviation over all classes"
        elif loss.needs_tail:
            reason = f"{loss.name} needs each class of the tail"
        elif loss.temperature not in self.temperatures:
            reason = f"the tail's mass is not stored at temperature {loss.temperature:g}"
        elif loss.num_top > self.num_top:
            reason = f"{loss.name} with k={loss.num_top} needs more exact classes than the {self.num_top} stored"
        else:
            return None
        *names, last = (name for name in LOSSES if not LOSSES.load(name).needs_tail)
        temperatures = ", ".join(f"{t:g}" for t in self.temperatures)
        return (
            f"{reason}; it serves {', '.join(names)} and {last} with k up to {self.num_top} at temperature "
            f"{temperatures}"
        )
