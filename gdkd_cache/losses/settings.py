"""One distillation loss with its settings: what a user asks for, a cache declares, and a trainer calls."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gdkd_cache.errors import CacheError, UsageError
from gdkd_cache.losses.gdkd import dkd, gdkd, gdkd3
from gdkd_cache.losses.kd import kd, standardize
from gdkd_cache.losses.partition import KL_KINDS, label_groups, log_masses, ranked_groups
from gdkd_cache.schema import check_json
from gdkd_cache.spec import parse_spec

_FIELDS = {
    "kd": (),
    "dkd": ("alpha", "beta"),
    "gdkd": ("k", "w0", "w1", "w2", "kl"),
    "gdkd3": ("k", "w0", "w1", "w2", "kl"),
}
LOSS_JSON = {
    "loss": str,
    "temperature": float,
    "k?": int,
    **{f"{name}?": float for name in ("w0", "w1", "w2", "alpha", "beta")},
    "kl?": str,
    "standardize?": bool,
}
_DEFAULT_K = {"gdkd": 5, "gdkd3": 4}


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """A named distillation loss and its settings; fields that the named loss does not have are ignored.

    Attributes:
        loss: `kd`, `dkd`, `gdkd` or `gdkd3`.
        temperature: T > 0.
        k: size of the top group; None means the published 5 (gdkd) or 4 (gdkd3).
        w0, w1, w2: gdkd's weights: top level, inside the top group, inside the rest.
        alpha, beta: dkd's weights.
        kl: gdkd's divergence inside the groups: `forward`, `reverse` or `both`.
        standardize: standardize student and teacher logits first (LSKD, LS-GDKD).

    Raises:
        UsageError: an unknown loss, a temperature, k, weight or kl out of range.
    """

    loss: str
    temperature: float = 4.0
    k: int | None = None
    w0: float = 1.0
    w1: float = 1.0
    w2: float = 8.0
    alpha: float = 1.0
    beta: float = 8.0
    kl: str = "forward"
    standardize: bool = False

    def __post_init__(self) -> None:
        if self.loss not in _FIELDS:
            raise UsageError(f"loss is {self.loss!r}; it must be one of {', '.join(_FIELDS)}")
        if not 0 < self.temperature < float("inf"):
            raise UsageError(f"temperature is {self.temperature}; it must be above 0 and finite")
        if self.kl not in KL_KINDS:
            raise UsageError(f"kl is {self.kl!r}; it must be one of {', '.join(KL_KINDS)}")
        for name in ("w0", "w1", "w2", "alpha", "beta"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 0 and finite")
        if self.k is not None and self.k < (2 if self.loss == "gdkd3" else 1):
            raise UsageError(f"k is {self.k}; {self.loss} needs at least {2 if self.loss == 'gdkd3' else 1}")

    @classmethod
    def from_spec(cls, spec: str, given: Mapping[str, float]) -> "LossSettings":
        """Read a spec such as `gdkd:w2=8,temperature=1`.

        Args:
            spec: a loss and its settings.
            given: settings for what the spec leaves open; those that the loss does not have are left out.

        Raises:
            UsageError: an unknown loss or setting, or a value out of range.
        """
        name, _, options = spec.partition(":")
        plain = cls(loss=name)
        defaults = {"standardize": 0, **plain.to_json()}
        del defaults["loss"]
        values = parse_spec(
            f"loss {name}", options, defaults | {k: type(defaults[k])(v) for k, v in given.items() if k in defaults}
        )
        return cls(loss=name, **{**values, "standardize": bool(values["standardize"])})

    @property
    def num_top(self) -> int:
        """How many exact top classes the loss needs from the teacher: its k, or 0."""
        return self.k or _DEFAULT_K[self.loss] if self.loss in _DEFAULT_K else 0

    def to_json(self) -> dict[str, Any]:
        """The settings that matter for this loss; `LossSettings(**settings.to_json())` equals it in effect."""
        values = {"loss": self.loss, "temperature": self.temperature}
        values |= {name: getattr(self, name) for name in _FIELDS[self.loss]}
        if "k" in values:
            values["k"] = self.num_top
        return values | ({"standardize": True} if self.standardize else {})

    @classmethod
    def from_json(cls, stored: object) -> "LossSettings":
        """Rebuild settings from what a cache stores.

        Raises:
            CacheError: a field is missing, unknown, of another type or out of range.
        """
        check_json("a declared loss", stored, LOSS_JSON)
        assert isinstance(stored, dict)
        try:
            return cls(**stored)
        except UsageError as error:
            raise CacheError(f"a declared loss of the cache cannot be read: {error}") from None

    def __str__(self) -> str:
        return " ".join(f"{value}" if key == "loss" else f"{key}={value}" for key, value in self.to_json().items())

    def __call__(self, student: Tensor, teacher: Tensor, labels: Tensor, top: Tensor | None = None) -> Tensor:
        """The loss of student logits [batch, class] against teacher logits [batch, class]: a scalar."""
        if self.standardize:
            student, teacher = standardize(student), standardize(teacher)
        if self.loss == "kd":
            return kd(student, teacher, temperature=self.temperature)
        if self.loss == "dkd":
            return dkd(student, teacher, labels, alpha=self.alpha, beta=self.beta, temperature=self.temperature)
        decoupled = gdkd if self.loss == "gdkd" else gdkd3
        return decoupled(
            student,
            teacher,
            k=self.num_top,
            w0=self.w0,
            w1=self.w1,
            w2=self.w2,
            temperature=self.temperature,
            kl=self.kl,
            top=top,
        )

    def within_groups(
        self, teacher: Tensor, labels: Tensor, top: Tensor | None = None
    ) -> tuple[Float[Tensor, "batch class"], Float[Tensor, "batch class"]]:
        """How much the loss weighs each class, and the teacher's probability of the class within its group.

        T times their product is how far the loss's gradient moves with the teacher's logit of that class.

        Args:
            teacher: float32 [batch, class]; standardize them first for a standardized loss.
            labels: int64 [batch].
            top: int64 [batch, >= k], the exact partition.

        Returns:
            weights [batch, class] >= 0 and probabilities [batch, class].
        """
        z = teacher / self.temperature
        if self.loss == "kd":
            group, weights = torch.zeros(z.shape, dtype=torch.int64, device=z.device), [1.0]
        elif self.loss == "dkd":
            group, weights = label_groups(z.shape, labels), [0.0, self.beta]
        elif self.loss == "gdkd":
            group, weights = ranked_groups(teacher, top, [self.num_top]), [self.w1, self.w2]
        else:
            group, weights = ranked_groups(teacher, top, [1, self.num_top - 1]), [0.0, self.w1, self.w2]
        masses = log_masses(z, group, len(weights)).gather(-1, group)
        return torch.tensor(weights, dtype=z.dtype, device=z.device)[group], (z - masses).exp()
