"""`transform`: the whole distribution as transform-coded residuals to the class means, the top classes exact."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import starmap
from typing import TYPE_CHECKING, Any

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
    check_num_top,
    check_rows,
    check_step,
    exact_top,
)
from gdkd_cache.codec.transform.head import decode_head, encode_head
from gdkd_cache.codec.transform.patterns import Patterns
from gdkd_cache.codec.transform.quantise import POWER, quantise, sensitivity
from gdkd_cache.codec.transform.sequential import quantise_in_turn
from gdkd_cache.codec.transform.tables import (
    BASIS_SCALE,
    MOST_REFERENCES,
    MOST_SCALE,
    TableSizes,
    TransformTables,
    tables_from_bytes,
)
from gdkd_cache.errors import CacheError, GdkdCacheError
from gdkd_cache.fields import option
from gdkd_cache.losses.base import Loss, loss_from_json
from gdkd_cache.threads import mapped, one_thread

if TYPE_CHECKING:
    from gdkd_cache.codec.calibration import Calibration

VERSION = 2
"""Of the encoder: 1, of gdkd-cache 0.1.0, takes sensitivities to the power 1.5 and a batch at a time."""
QUARTERS = 4
LABEL_WEIGHT = 64
FACTOR_ONE = 256
DEVIATION_UNIT = 2
"""Quarter steps that a deviation counts."""
_KEPT_WEIGHT = 20.0
_HEAD_WEIGHT = 1.0
_FIRST_POWER = 1.5
MANY_CLASSES = 256
"""Above it, components are quantised some at once, and exact values are finer than a step."""
_RANKED_CLASSES = 2048
_CANDIDATES = (4, 8)
"""Numbers of references that are tried where none is asked for."""
_REFERENCE = "reference_"
"""What the tables of views that predict others are called before their names."""
_QUANTISED_ROWS = 512
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
    references: int | None = option(
        None,
        "first views that later ones are predicted from",
        least=0,
        most=MOST_REFERENCES,
        unset="as many as pay",
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
        references: how many views, the first ones, predict all later ones, and each of them those after it.
        basis_scale: what the whole numbers of `tables.basis` are to be divided by.
        value_units: quantisation step of the top classes' values, in units, where these are finer than a step.
        version: of the encoder, so that rows encoded again are the same bytes; decoding is the same in all.
    """

    Options = TransformOptions
    searches = True
    exact_values = False

    step: float
    penalty: float
    weight_scale: float
    losses: tuple[Loss, ...]
    tables: TransformTables
    references: int = 0
    basis_scale: int = BASIS_SCALE
    value_units: int | None = None
    version: int = 1
    _patterns: dict[str, Patterns] = field(init=False)
    _resident: dict[tuple[str, torch.device, torch.dtype], Tensor] = field(init=False)
    _order: np.ndarray | None = field(init=False)

    def __post_init__(self) -> None:
        check_num_top(self.num_top, self.num_classes)
        check_step(self.step)
        if not 1 <= self.version <= VERSION:
            raise CacheError(f"codec transform has version {self.version}; this gdkd-cache knows 1 to {VERSION}")
        if not (BASIS_SCALE <= self.basis_scale <= MOST_SCALE and 1 <= self.value_step <= QUARTERS * MOST_SCALE):
            raise CacheError(
                f"codec transform has a basis at scale {self.basis_scale} and values in steps of {self.value_step}; "
                f"{BASIS_SCALE} to {MOST_SCALE}, and 1 to {QUARTERS * MOST_SCALE}, are possible"
            )
        patterns = {"": Patterns(self.tables.costs, self.tables.groups)}
        if self.references:
            patterns[_REFERENCE] = Patterns(self.tables.reference_costs, self.tables.reference_groups)
        object.__setattr__(self, "_patterns", patterns)
        object.__setattr__(self, "_resident", {})
        object.__setattr__(self, "_order", self._top1_order())

    @classmethod
    def reference_candidates(cls, options: TransformOptions) -> tuple[int, ...]:
        if options.references is None:
            return _CANDIDATES
        return (options.references,) if options.references else ()

    @classmethod
    def fit(cls, calibration: "Calibration", options: TransformOptions, fidelity: float) -> Codec:
        from gdkd_cache.codec.transform.search import fit_to  # it makes instances of this class

        return fit_to(calibration, options, fidelity)

    @property
    def num_components(self) -> int:
        return self.tables.basis.shape[1]

    @property
    def num_references(self) -> int:
        return self.references

    @property
    def num_predicted(self) -> int:
        return self.tables.factors.shape[1]

    def _kind(self, num_references: int) -> str:
        """Whose tables are those of a view with so many references: of one that predicts others, or of a later one."""
        return _REFERENCE if num_references < self.references else ""

    @property
    def _num_columns(self) -> int:
        return self.num_components + 2 * self.num_top

    @property
    def unit(self) -> float:
        """What the exact integers count, in logits."""
        return self.step / (QUARTERS * self.basis_scale)

    @property
    def value_step(self) -> int:
        """Quantisation step of the top classes' corrections, in units."""
        return self.value_units or QUARTERS * self.basis_scale

    def columns(self) -> dict[str, Column]:
        return {
            "packed": Column(dtype="uint8", shape=(max(map(len, self._patterns.values())),), fill=255, separate=True),
            "escape": Column(dtype="int16", shape=(self._num_columns,), fill=-(2**15), sparse=True),
        }

    def _tensor(self, name: str, device: torch.device, dtype: torch.dtype) -> Tensor:
        """A table on a device, where it stays."""
        key = (name, device, dtype)
        if key not in self._resident:
            table = self._order if name == "order" else getattr(self.tables, name)
            self._resident[key] = torch.from_numpy(table).to(device, dtype)
        return self._resident[key]

    def _prediction(self, top1: Tensor, labels: Tensor, references: References | None) -> Tensor:
        """What is predicted of the coefficients, in quarter steps: int32 [row, component]."""
        prediction = self._class_prediction(top1, labels)
        if references is not None:
            prediction[:, : self.num_predicted] += self._common(references)
        return prediction

    def _common(self, references: References) -> Tensor:
        """What the references let expect beyond the class means, in quarter steps: int32 [row, predicted]."""
        factors = self._tensor("factors", references.weights.device, torch.float64)[references.weights.shape[1] - 1]
        # Sums of products of small integers are exact in float32, and so is the floor of their quotient in float64.
        weights = references.weights.float()
        sums = torch.zeros_like(references.deviations[:, 0], dtype=torch.float32)
        for weight, deviation in zip(weights.unbind(1), references.deviations.unbind(1), strict=True):
            sums.addcmul_(deviation.float(), weight[:, None])
        sums, total = sums.double(), FACTOR_ONE * weights.double().sum(-1, keepdim=True)
        return ((2 * DEVIATION_UNIT * factors * sums + total) / (2 * total)).floor_().int()

    def _class_prediction(self, top1: Tensor, labels: Tensor) -> Tensor:
        """What the class means let expect of the coefficients, in quarter steps: int32 [row, component]."""
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

    def residual(
        self, logits: Tensor, top1: Tensor, labels: Tensor, references: References | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Centred logits and what prediction leaves of them, both float32 [row, class], and the prediction."""
        centred = logits - logits.mean(-1, keepdim=True)
        prediction = self._prediction(top1, labels, references)
        return centred, centred - self._scores(prediction).float() * self.unit, prediction

    def quantised(self, logits: Tensor, labels: Tensor, references: References | None = None) -> Tensor:
        """The integers that are stored: int64 [row, column], columns coefficients, ranks, corrections, top-1 code.

        On a CPU always the same rows are quantised together, in as many threads as this one has for its work.

        Args:
            logits: float32 [row, class].
            labels: int64 [row].
            references: of a view that is predicted from some.
        """
        number = torch.get_num_threads()
        with one_thread():
            if self.version == 1 or logits.device.type != "cpu":
                return self._quantised(logits, labels, *(references or ()))
            parts = [part.split(_QUANTISED_ROWS) for part in (logits, labels, *(references or ()))]
            calls = (partial(self._quantised, *part) for part in zip(*parts, strict=True))
            # A new thread takes over the main one's number of threads: where this one works alone, so do its rows.
            done = mapped(lambda call: call(), calls, number) if number > 1 else (call() for call in calls)
            return torch.cat(list(done))

    def _quantised(self, logits: Tensor, labels: Tensor, *references: Tensor) -> Tensor:
        known = References(*references) if references else None
        top = exact_top(logits, self.num_top)
        top1 = top.classes[:, 0]
        centred, residual, prediction = self.residual(logits, top1, labels, known)
        kind = self._kind(_number(known))
        first = self.version == 1
        weights = sensitivity(self.losses, logits, labels, top.classes, _FIRST_POWER if first else POWER)
        weights /= self.weight_scale
        # Ids cost bits where the reconstruction misranks them, and exact values little: the top classes are kept so
        # accurate that they need none, or weigh no more than others.
        if self.value_units:
            weights.scatter_(-1, top.classes, _HEAD_WEIGHT)
        else:
            kept = weights.gather(-1, top.classes).clamp(min=_KEPT_WEIGHT * self.penalty)
            weights.scatter_(-1, top.classes, kept)
        device = logits.device
        steps = (quantise_in_turn if first or self.num_classes <= MANY_CLASSES else quantise)(
            residual,
            weights,
            self._tensor("basis", device, torch.float32) * (self.step / self.basis_scale),
            self._tensor(f"{kind}costs", device, torch.float32)[: self.num_components, 1:] / 16,
            self._tensor(f"{kind}variances", device, torch.float32),
            self.penalty,
        ).long()
        scores = self._scores(prediction + QUARTERS * steps)
        values = (centred.gather(-1, top.classes).double() / self.unit).round().long()
        ranks, corrections = encode_head(scores, top.classes, values, self.value_step)
        code = top1
        if self._order is not None:
            code = (self._tensor("order", device, torch.int16)[labels] == top1[:, None]).long().argmax(-1)
        return torch.cat([steps, ranks, corrections, code[:, None]], -1)

    def encode(self, logits: Tensor, labels: Tensor, references: References | None = None) -> dict[str, Tensor]:
        symbols = self.quantised(logits.float(), labels, references)
        if symbols.abs().max() >= 2**15:
            row = int(symbols.abs().amax(-1).argmax())
            raise GdkdCacheError(
                f"row {row} of the batch: its logits are beyond {2**15} steps of {self.step:.3g}; use codec dense"
            )
        patterns = self._patterns[self._kind(_number(references))]
        packed, escape = patterns.pack(symbols)
        (width,) = self.columns()["packed"].shape
        return {"packed": torch.nn.functional.pad(packed, (0, width - len(patterns))), "escape": escape}

    def check(self, columns: Mapping[str, np.ndarray], labels: np.ndarray, num_references: int = 0) -> None:
        least, most = np.full(self._num_columns, -(2**15)), np.full(self._num_columns, 2**15 - 1)
        ranks, code = slice(self.num_components, self.num_components + self.num_top - 1), -1
        least[ranks], most[ranks] = 0, self.num_classes - 2 - np.arange(self.num_top - 1)
        least[code], most[code] = 0, self.num_classes - 1
        patterns = self._patterns[self._kind(num_references)]
        patterns.check(columns["packed"], columns["escape"], least, most)
        check_rows(columns["packed"][:, len(patterns) :] == 0, "holds more bytes than its view has")

    def decode(
        self,
        columns: Mapping[str, Tensor],
        labels: Tensor,
        temperature: float | None = None,
        references: References | None = None,
    ) -> Decoded:
        rows = max(_DECODE_VALUES // self.num_classes, 1)
        parts = [columns["packed"].split(rows), columns["escape"].split(rows), labels.split(rows)]
        parts += [] if references is None else [part.split(rows) for part in references]
        logits, values, classes = map(torch.cat, zip(*starmap(self._decode, zip(*parts, strict=True)), strict=True))
        return Decoded(logits, TopK(values, classes))

    def _decode(
        self, packed: Tensor, escape: Tensor, labels: Tensor, *references: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, and the top classes' values and ids."""
        known = References(*references) if references else None
        steps, head, first = self._symbols(packed, escape, labels, _number(known))
        ranks, corrections, _ = head.split([self.num_top - 1, self.num_top, 1], -1)
        scores = self._scores(self._prediction(first, labels, known).add_(steps, alpha=QUARTERS))
        classes, values = decode_head(scores, first, ranks, corrections, self.value_step)
        values = (values.double() * self.unit).float()
        # No class outside the top may come above the last of it.
        logits = scores.float().mul_(self.unit).clamp_(max=values[:, -1:]).scatter_(-1, classes, values)
        return logits, values, classes

    def _symbols(
        self, packed: Tensor, escape: Tensor, labels: Tensor, num_references: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What is stored of the coefficients and of the head, and the top-1 classes."""
        symbols = self._patterns[self._kind(num_references)].unpack(packed, escape)
        steps, head = symbols[:, : self.num_components], symbols[:, self.num_components :].long()
        first = head[:, -1]
        if self._order is not None:
            first = self._tensor("order", labels.device, torch.int16)[labels, first].long()
        return steps, head, first

    def deviations(self, columns: Mapping[str, Tensor], labels: Tensor, references: References | None = None) -> Tensor:
        packed, escape = columns["packed"], columns["escape"]
        return self.deviation(self._symbols(packed, escape, labels, _number(references))[0], references)

    def deviation(self, steps: Tensor, references: References | None) -> Tensor:
        """How the coefficients of a view that predicts others deviate from what the class means let expect.

        Args:
            steps: whole numbers [row, component], what is stored of them.
            references: what the view is predicted from.

        Returns:
            int8 [row, predicted], in half steps, at most 127 of them.
        """
        quarters = steps[:, : self.num_predicted].int() * QUARTERS
        if references is not None:
            quarters += self._common(references)
        return (quarters + DEVIATION_UNIT // 2 >> 1).clamp_(-127, 127).to(torch.int8)

    def to_json(self) -> dict[str, Any]:
        sizes = {
            "references": self.references,
            "num_predicted": self.num_predicted,
            "num_reference_groups": len(self.tables.reference_groups),
        }
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
            **(sizes if self.references else {}),
            **({"basis_scale": self.basis_scale} if self.basis_scale != BASIS_SCALE else {}),
            **({"value_units": self.value_units} if self.value_units else {}),
            **({"version": self.version} if self.version > 1 else {}),
        }

    @classmethod
    def json_kinds(cls) -> dict[str, Any]:
        numbers = dict.fromkeys(("num_classes", "num_top", "num_components", "num_groups", "tables_bytes"), int)
        optional = ("references", "num_predicted", "num_reference_groups", "basis_scale", "value_units", "version")
        numbers |= dict.fromkeys((f"{name}?" for name in optional), int)
        return {**numbers, **dict.fromkeys(("step", "penalty", "weight_scale"), float), "losses": [object]}

    @classmethod
    def from_json(cls, stored: dict[str, Any], tables: np.ndarray) -> "TransformCodec":
        fields = dict(stored)
        sizes = TableSizes(
            num_classes=fields["num_classes"],
            num_top=fields["num_top"],
            num_components=fields.pop("num_components"),
            num_groups=fields.pop("num_groups"),
            basis_scale=fields.get("basis_scale", BASIS_SCALE),
            num_references=fields.get("references", 0),
            num_predicted=fields.pop("num_predicted", 0),
            num_reference_groups=fields.pop("num_reference_groups", 0),
        )
        fields["losses"] = tuple(map(loss_from_json, fields["losses"]))
        return cls(**fields, tables=tables_from_bytes(tables, sizes))

    def tables_bytes(self) -> np.ndarray:
        return self.tables.to_bytes()


def _number(references: References | None) -> int:
    return 0 if references is None else references.weights.shape[1]
