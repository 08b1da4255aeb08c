"""Choose a codec from calibration rows: the coarsest that meets a gradient error, or the one that was asked for."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numcodecs import Zstd
from torch import Tensor

from gdkd_cache.codec.columns import Codec, check_num_top
from gdkd_cache.codec.dense import DenseCodec
from gdkd_cache.codec.fidelity import ENCODE_ROWS, measure
from gdkd_cache.codec.topk import TopKCodec
from gdkd_cache.codec.transform.fit import Statistics, fit_transform, gather_statistics
from gdkd_cache.errors import UsageError
from gdkd_cache.losses.settings import LossSettings
from gdkd_cache.spec import parse_spec

CODECS = ("auto", "transform", "topk", "dense")

_MARGIN = 0.99  # of the target on held-out rows: other views came out up to 0.9% worse
_CLOSE = 0.97
_STEPS = 8
_CALIBRATION_VALUES = 2**28
_SAMPLE_ROWS = 4096


@dataclass(frozen=True, kw_only=True)
class CodecRequest:
    """What a user asks of the codec.

    Attributes:
        spec: `auto`, `transform[:step=X,k=N]`, `topk[:k=N,step=X]` or `dense[:k=N,dtype=float32]`.
        fidelity: the largest gradient error allowed for each declared loss, above 0; for `auto` and for
            `transform` without a step.
        losses: the declared losses, at least one.
        num_top: exact classes where the spec does not say; fewer where there are fewer classes.

    Raises:
        UsageError: an unknown codec or option, or a number out of range.
    """

    spec: str = "auto"
    fidelity: float = 0.1
    losses: tuple[LossSettings, ...] = (LossSettings(loss="gdkd"),)
    num_top: int = 8

    def __post_init__(self) -> None:
        if not 0 < self.fidelity < math.inf:
            raise UsageError(f"fidelity is {self.fidelity}; it must be a gradient error above 0, such as 0.1")
        if not self.losses:
            raise UsageError("no loss is declared; declare at least one that the cache shall serve")
        if self.num_top < 1:
            raise UsageError(f"num_top is {self.num_top}; it must be at least 1")
        if self.name not in CODECS:
            raise UsageError(f"codec is {self.name!r}; it must be one of {', '.join(CODECS)}")
        self._options(2)

    def check(self, num_classes: int) -> None:
        """Refuse what a number of classes cannot serve.

        Raises:
            UsageError: a declared loss, or a number of exact classes, that needs more classes than there are.
        """
        for settings in self.losses:
            if settings.num_top >= num_classes:
                raise UsageError(
                    f"the declared loss {settings} needs more than {settings.num_top} classes, and there are "
                    f"{num_classes}; declare a smaller k, or kd"
                )
        if "k" in (options := self._options(num_classes)):
            check_num_top(int(options["k"]), num_classes)

    @property
    def name(self) -> str:
        return self.spec.partition(":")[0]

    def _options(self, num_classes: int) -> dict[str, Any]:
        defaults: dict[str, dict[str, int | float | str]] = {
            "auto": {},
            "transform": {"k": self._num_top(num_classes), "step": 0.0},
            "topk": {"k": self._num_top(num_classes), "step": 1 / 64},
            "dense": {"k": self._num_top(num_classes), "dtype": "float16"},
        }
        return parse_spec(f"codec {self.name}", self.spec.partition(":")[2], defaults[self.name])

    def _num_top(self, num_classes: int) -> int:
        wanted = max(self.num_top, *(settings.num_top for settings in self.losses))
        return max(1, min(wanted, num_classes - 1))

    def to_json(self) -> dict[str, Any]:
        return {
            "spec": self.spec,
            "fidelity": self.fidelity,
            "losses": [settings.to_json() for settings in self.losses],
            "num_top": self.num_top,
        }

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> "CodecRequest":
        """The request of a manifest, whose types are checked.

        Raises:
            CacheError, UsageError: an unknown codec, option or loss, or a number out of range.
        """
        fields = dict(stored)
        losses = tuple(map(LossSettings.from_json, fields.pop("losses")))
        return cls(**fields, losses=losses)

    @property
    def temperatures(self) -> tuple[float, ...]:
        """The declared losses' temperatures, in the order of declaration."""
        return tuple(dict.fromkeys(settings.temperature for settings in self.losses))


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A fitted codec.

    Attributes:
        codec: the codec.
        fidelity: what `measure` says of it on held-out rows.
        bytes_per_view: of those rows' compressed columns; tables and metadata not included.
    """

    codec: Codec
    fidelity: dict[str, Any]
    bytes_per_view: float

    @property
    def worst_error(self) -> float:
        """The largest gradient error over the declared losses that it serves; infinite when it serves none."""
        return max(self.fidelity["gradient_error"].values(), default=math.inf)


def calibration_rows(num_rows: int, num_classes: int) -> int:
    """How many rows to calibrate on: the larger of 4096 and 40 a class, at most all, and at most 1 GiB of logits."""
    return min(num_rows, max(4096, 40 * num_classes), max(_CALIBRATION_VALUES // num_classes, 1))


class Calibration:
    """Calibration rows, and the codecs that can be fitted to them.

    Every fourth row is held out: codecs are fitted to the others and measured on these.

    Args:
        request: what is asked for.
        logits: float [row, class], finite; `calibration_rows` of view 0.
        labels: int64 [row].
        stored_rows: how many rows times views share the codec's tables, for comparing sizes.

    Raises:
        UsageError: a declared loss, or a number of exact classes, that needs more classes than there are.
    """

    def __init__(self, request: CodecRequest, logits: Tensor, labels: Tensor, *, stored_rows: int) -> None:
        request.check(logits.shape[-1])
        self.request = request
        self._options = request._options(logits.shape[-1])
        self.num_rows, self._num_classes = logits.shape
        self._stored_rows = stored_rows
        logits = logits.float().cpu()
        labels = labels.cpu()
        held_out = torch.arange(len(logits)) % 4 == 3
        if not held_out.any():
            held_out[:] = True  # too few rows to spare any: measured on what it was fitted to
        fitted = ~held_out if len(logits) >= 4 else held_out
        self._held_out = logits[held_out][:_SAMPLE_ROWS], labels[held_out][:_SAMPLE_ROWS]
        self._fitted = logits[fitted], labels[fitted]
        self._statistics: Statistics | None = None

    def sample(self) -> tuple[Tensor, Tensor]:
        """Held-out logits [row, class] and labels [row], at most as many as are encoded at once."""
        return self._held_out[0][:ENCODE_ROWS], self._held_out[1][:ENCODE_ROWS]

    def choose(self) -> Choice:
        """The codec that the request names; for `auto`, the smallest that meets the fidelity."""
        name = self.request.name
        if name == "transform":
            step = float(self._options["step"])
            return self.transform_at(step) if step else self.transform()
        if name == "topk":
            return self.topk()
        if name == "dense":
            return self.dense()
        choices = [self.topk(), self.transform(), self.dense()]
        good = [choice for choice in choices if self._meets(choice)]
        return min(good or choices[1:], key=self.total_bytes)

    def total_bytes(self, choice: Choice) -> float:
        """Bytes a view with the codec's tables spread over all stored rows."""
        tables = choice.codec.tables_bytes()
        return choice.bytes_per_view + (_compressed(tables) / self._stored_rows if tables.size else 0)

    def _meets(self, choice: Choice) -> bool:
        served = choice.fidelity["gradient_error"]
        return len(served) == len({*map(str, self.request.losses)}) and choice.worst_error <= self.request.fidelity

    def topk(self) -> Choice:
        step = float(self._options.get("step", 1 / 64)) if self.request.name == "topk" else 1 / 64
        return self._choice(
            TopKCodec(
                num_classes=self._num_classes, num_top=self._k(), temperatures=self.request.temperatures, step=step
            )
        )

    def dense(self) -> Choice:
        dtype = str(self._options.get("dtype", "float16"))
        return self._choice(DenseCodec(num_classes=self._num_classes, num_top=self._k(), dtype=dtype))

    def _k(self) -> int:
        return int(self._options.get("k", self.request._num_top(self._num_classes)))

    def transform_at(self, step: float) -> Choice:
        """`transform` at a quantisation step, in logits."""
        return self._choice(fit_transform(self._gathered(), step))

    def _gathered(self) -> Statistics:
        if self._statistics is None:
            logits, labels = self._fitted
            self._statistics = gather_statistics(logits, labels, num_top=self._k(), losses=self.request.losses)
        return self._statistics

    def transform(self, fidelity: float | None = None) -> Choice:
        """`transform` at the coarsest step that meets a gradient error (the request's, where none is given).

        The error rises about in proportion to the step, so the search is a secant in the logarithms. Where no step
        of at least a thousandth of the logits' deviation meets the target, this is `dense`.
        """
        target = (fidelity or self.request.fidelity) * _MARGIN
        deviation = max(float(self._fitted[0].std(-1).mean()), 1e-3)
        step = 5 * target * deviation
        below, above = 0.0, math.inf  # the largest step that met the target, the smallest that did not
        for _ in range(_STEPS):
            codec = fit_transform(self._gathered(), step, group=False)
            error = max(measure(codec, *self._held_out, self.request.losses)[0]["gradient_error"].values())
            if error <= target:
                below = step
                if error >= _CLOSE * target:
                    break
            else:
                above = step
            ratio = target * (1 + _CLOSE) / 2 / error if error else 4.0
            step *= min(max(ratio, 0.1), 4.0) ** 1.2
            if not below < step < above:
                step = above / 2 if not below else below * 2 if above == math.inf else math.sqrt(below * above)
            if step < deviation / 1000:
                break
        return self.transform_at(below) if below else self.dense()

    def _choice(self, codec: Codec) -> Choice:
        logits, labels = self._held_out
        fidelity, columns = measure(codec, logits, labels, self.request.losses)
        size = sum(
            _compressed(np.ascontiguousarray(part))
            for column in columns.values()
            for part in column.cpu().numpy().reshape(len(logits), -1).T
        )
        return Choice(codec=codec, fidelity=fidelity, bytes_per_view=size / len(logits))


def _compressed(data: np.ndarray) -> int:
    return len(Zstd(level=19).encode(data))
