"""`transform`: the whole distribution as transform-coded residuals to the class means, the top classes exact."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gdkd_cache.codec.base import Codec, CodecOptions, Column, Decoded, TopK, check_num_top, check_step, exact_top
from gdkd_cache.codec.transform.head import decode_head, encode_head
from gdkd_cache.codec.transform.patterns import Patterns
from gdkd_cache.codec.transform.quantise import quantise, sensitivity
from gdkd_cache.codec.transform.tables import TransformTables, tables_from_bytes
from gdkd_cache.errors import GdkdCacheError
from gdkd_cache.fields import option
from gdkd_cache.losses.base import Loss, loss_from_json
from gdkd_cache.threads import one_thread

if TYPE_CHECKING:
    from gdkd_cache.codec.calibration import Calibration

QUARTERS = 4
BASIS_SCALE = 127
HEAD_WEIGHT = 20.0
LABEL_WEIGHT = 64
_RANKED_CLASSES = 2048
_DECODE_VALUES = 2**19
"""Logits decoded at once: what fits the processor's caches, and bounds the memory of a batch of many classes."""


@dataclass(frozen=True, kw_only=True)
class TransformOptions(CodecOptions):
    """Options of `transform`."""

    step: float | None = option(
        None,
        "quantisation step, in logits",
        above=0,
        most=2**64,
        unset="the coarsest that meets the fidelity",
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class TransformCodec(Codec):
    """Transform codec.

    A row's centred logits are predicted from the means of its top-1 class (and of its label, where that differs);
    the residual's coefficients in a fitted basis are kept as whole steps, chosen for the declared losses' gradient
    (quantise.py); the top classes as ranks in the reconstruction (head.py); and neighbouring columns share bytes
    (patterns.py). Reconstruction is exact integer arithmetic, so ranks are the same on every machine.

    Attributes:
        num_classes: C.
        num_top: how many classes are kept in exact rank order, 1 <= num_top < C.
        step: quantisation step, in logits.
        penalty: squared logits a bit, of the quantiser; 0 rounds.
        weight_scale: mean sensitivity of the calibration rows, which the quantiser's weights are divided by.
        losses: the losses that it was fitted for; it serves all others too, at an error of their own.
        tables: the fitted arrays.
    """

    Options = TransformOptions
    searches = True
    exact_values = False

    step: float
    penalty: float
    weight_scale: float
    losses: tuple[Loss, ...]
    tables: TransformTables
    _patterns: Patterns = field(init=False)
    _resident: dict[tuple[str, torch.device, torch.dtype], Tensor] = field(init=False)
    _order: np.ndarray | None = field(init=False)

    def __post_init__(self) -> None:
        check_num_top(self.num_top, self.num_classes)
        check_step(self.step)
        object.__setattr__(self, "_patterns", Patterns(self.tables.costs, self.tables.groups))
        object.__setattr__(self, "_resident", {})
        object.__setattr__(self, "_order", self._top1_order())

    @classmethod
    def fit(cls, calibration: "Calibration", options: TransformOptions, fidelity: float) -> Codec:
        from gdkd_cache.codec.transform.search import fit_to  # it makes instances of this class

        return fit_to(calibration, options, fidelity)

    @property
    def num_components(self) -> int:
        return self.tables.basis.shape[1]

    @property
    def _num_columns(self) -> int:
        return self.num_components + 2 * self.num_top

    @property
    def unit(self) -> float:
        """What the exact integers count, in logits."""
        return self.step / (QUARTERS * BASIS_SCALE)

    @property
    def value_step(self) -> int:
        """Quantisation step of the top classes' corrections, in units: one step."""
        return QUARTERS * BASIS_SCALE

    def columns(self) -> dict[str, Column]:
        return {
            "packed": Column(dtype="uint8", shape=(len(self._patterns),), fill=255, separate=True),
            "escape": Column(dtype="int16", shape=(self._num_columns,), fill=-(2**15), sparse=True),
        }

    def _tensor(self, name: str, device: torch.device, dtype: torch.dtype) -> Tensor:
        """A table on a device, where it stays."""
        key = (name, device, dtype)
        if key not in self._resident:
            table = self._order if name == "order" else getattr(self.tables, name)
            self._resident[key] = torch.from_numpy(table).to(device, dtype)
        return self._resident[key]

    def _prediction(self, top1: Tensor, labels: Tensor) -> Tensor:
        """What is predicted of the coefficients, in quarter steps: int32 [row, component]."""
        means = self._tensor("class_means", top1.device, torch.int16)
        other = means.index_select(0, labels).mul_((labels != top1)[:, None])
        return means.index_select(0, top1).int().add_(other.int().mul_(LABEL_WEIGHT).add_(128) >> 8)

    def _scores(self, coefficients: Tensor) -> Tensor:
        """Reconstructed logits in units: whole quarter steps [row, component] -> whole float64 [row, class]."""
        # Products and sums of small integers in float64 are exact in any order, on any device.
        mean, basis = (self._tensor(name, coefficients.device, torch.float64) for name in ("mean", "basis"))
        return torch.addmm(mean, coefficients.double(), basis.T)

    def _top1_order(self) -> np.ndarray | None:
        """For each label, the classes in the order in which its mean suggests them as top-1: int16 [class, rank]."""
        if self.num_classes > _RANKED_CLASSES:
            return None
        keys = self._scores(torch.from_numpy(self.tables.class_means)).long() * self.num_classes
        keys += self.num_classes - 1 - torch.arange(self.num_classes)
        keys.fill_diagonal_(2**62)  # the label itself comes first
        return keys.argsort(dim=-1, descending=True, stable=True).short().numpy()

    def residual(self, logits: Tensor, top1: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Centred logits and what prediction leaves of them, both float32 [row, class], and the prediction."""
        centred = logits - logits.mean(-1, keepdim=True)
        prediction = self._prediction(top1, labels)
        return centred, centred - self._scores(prediction).float() * self.unit, prediction

    @one_thread()
    def quantised(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The integers that are stored: int64 [row, column], columns coefficients, ranks, corrections, top-1 code.

        Args:
            logits: float32 [row, class].
            labels: int64 [row].
        """
        top = exact_top(logits, self.num_top)
        top1 = top.classes[:, 0]
        centred, residual, prediction = self.residual(logits, top1, labels)
        weights = sensitivity(self.losses, logits, labels, top.classes) / self.weight_scale
        # Ids cost bits where the reconstruction misranks them: the top classes are kept accurate.
        kept = weights.gather(-1, top.classes).clamp(min=HEAD_WEIGHT * self.penalty)
        device = logits.device
        steps = quantise(
            residual,
            weights.scatter(-1, top.classes, kept),
            self._tensor("basis", device, torch.float32) * (self.step / BASIS_SCALE),
            self._tensor("costs", device, torch.float32)[: self.num_components, 1:] / 16,
            self._tensor("variances", device, torch.float32),
            self.penalty,
        ).long()
        scores = self._scores(prediction + QUARTERS * steps)
        values = (centred.gather(-1, top.classes).double() / self.unit).round().long()
        ranks, corrections = encode_head(scores, top.classes, values, self.value_step)
        code = top1
        if self._order is not None:
            code = (self._tensor("order", device, torch.int16)[labels] == top1[:, None]).long().argmax(-1)
        return torch.cat([steps, ranks, corrections, code[:, None]], -1)

    def encode(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        symbols = self.quantised(logits.float(), labels)
        if symbols.abs().max() >= 2**15:
            row = int(symbols.abs().amax(-1).argmax())
            raise GdkdCacheError(
                f"row {row} of the batch: its logits are beyond {2**15} steps of {self.step:.3g}; use codec dense"
            )
        packed, escape = self._patterns.pack(symbols)
        return {"packed": packed, "escape": escape}

    def check(self, columns: Mapping[str, np.ndarray], labels: np.ndarray) -> None:
        least, most = np.full(self._num_columns, -(2**15)), np.full(self._num_columns, 2**15 - 1)
        ranks, code = slice(self.num_components, self.num_components + self.num_top - 1), -1
        least[ranks], most[ranks] = 0, self.num_classes - 2 - np.arange(self.num_top - 1)
        least[code], most[code] = 0, self.num_classes - 1
        self._patterns.check(columns["packed"], columns["escape"], least, most)

    def decode(self, columns: Mapping[str, Tensor], labels: Tensor, temperature: float | None = None) -> Decoded:
        rows = max(_DECODE_VALUES // self.num_classes, 1)
        pieces = zip(columns["packed"].split(rows), columns["escape"].split(rows), labels.split(rows), strict=True)
        logits, values, classes = map(torch.cat, zip(*(self._decode(*piece) for piece in pieces), strict=True))
        return Decoded(logits, TopK(values, classes))

    def _decode(self, packed: Tensor, escape: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, and the top classes' values and ids."""
        symbols = self._patterns.unpack(packed, escape)
        steps, head = symbols[:, : self.num_components], symbols[:, self.num_components :].long()
        ranks, corrections, code = head.split([self.num_top - 1, self.num_top, 1], -1)
        first = code[:, 0]
        if self._order is not None:
            first = self._tensor("order", labels.device, torch.int16)[labels, first].long()
        scores = self._scores(self._prediction(first, labels).add_(steps, alpha=QUARTERS))
        classes, values = decode_head(scores, first, ranks, corrections, self.value_step)
        values = (values.double() * self.unit).float()
        # No class outside the top may come above the last of it.
        logits = scores.float().mul_(self.unit).clamp_(max=values[:, -1:]).scatter_(-1, classes, values)
        return logits, values, classes

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "num_classes": self.num_classes,
            "num_top": self.num_top,
            "step": self.step,
            "penalty": self.penalty,
            "weight_scale": self.weight_scale,
            "losses": [loss.to_json() for loss in self.losses],
            "num_components": self.num_components,
            "num_groups": len(self.tables.groups),
            "tables_bytes": self.tables_bytes().size,
        }

    @classmethod
    def json_kinds(cls) -> dict[str, Any]:
        numbers = dict.fromkeys(("num_classes", "num_top", "num_components", "num_groups", "tables_bytes"), int)
        return {**numbers, **dict.fromkeys(("step", "penalty", "weight_scale"), float), "losses": [object]}

    @classmethod
    def from_json(cls, stored: dict[str, Any], tables: np.ndarray) -> "TransformCodec":
        fields = dict(stored)
        sizes = {name: fields.pop(name) for name in ("num_components", "num_groups")}
        sizes |= {name: fields[name] for name in ("num_classes", "num_top")}
        fields["losses"] = tuple(map(loss_from_json, fields["losses"]))
        return cls(**fields, tables=tables_from_bytes(tables, **sizes))

    def tables_bytes(self) -> np.ndarray:
        return self.tables.to_bytes()
