"""What a loss is to all that asks for one: its settings as fields, what it needs of a teacher, and its call."""

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from gdkd_cache.errors import CacheError, NotServedError, UsageError
from gdkd_cache.fields import check_fields, option, parse_fields
from gdkd_cache.limits import LARGEST_FACTOR, LEAST_TEMPERATURE
from gdkd_cache.losses.partition import standardize
from gdkd_cache.losses.registry import LOSSES
from gdkd_cache.schema import check_json, kind_of, short

Logits = Float[Tensor, "*batch class"]
Labels = Int[Tensor, "*batch"]
Top = Int[Tensor, "*batch rank"]


@dataclass(frozen=True, kw_only=True)
class Loss(ABC):
    """A distillation loss with its settings: what a user asks for, a cache declares, and a training calls.

    A subclass is a frozen, keyword-only dataclass whose fields are made by `option`; it has `value`, and says what it
    needs of a teacher.

    Raises:
        UsageError: a setting of another type or out of range; it names it.
    """

    needs_labels: ClassVar[bool] = False
    """Whether it needs one label for each row."""
    needs_tail: ClassVar[bool] = True
    """Whether it needs each class of the teacher's tail, and not only the tail's mass spread uniformly."""

    temperature: float = option(4.0, "T, which logits are divided by", least=LEAST_TEMPERATURE, most=LARGEST_FACTOR)
    standardize: bool = option(False, "standardize student and teacher logits first (LSKD, LS-GDKD)")

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def name(self) -> str:
        """As it is typed: one of the registry's names, or `package.module:name`."""
        return LOSSES.name_of(type(self))

    @property
    def spec(self) -> str:
        """As it can be typed: what `parse_loss` reads, without the settings that are defaults."""
        settings = [
            f"{field.name}={'/'.join(map(str, value)) if isinstance(value, tuple) else value}"
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) != field.default
        ]
        return f"{self.name}:{','.join(settings)}".removesuffix(":")

    @property
    def num_top(self) -> int:
        """How many exact top classes it needs of the teacher, in rank order."""
        return 0

    @abstractmethod
    def value(self, student: Logits, teacher: Logits, labels: Labels, top: Top | None) -> Float[Tensor, ""]:
        """The loss: a scalar, the mean over all leading positions.

        Args:
            student, teacher: [..., class], standardized already where that is asked for.
            labels: int64 [...].
            top: int64 [..., >= num_top], the teacher's exact partition; None ranks `teacher` itself.
        """

    def logit_sensitivity(self, teacher: Logits, labels: Labels, top: Top) -> Logits | None:
        """How far its gradient moves with each of the teacher's logits, at the teacher: [..., class] >= 0.

        The diagonal of the gradient's Jacobian; a codec keeps what matters more finely. None where it cannot be said.
        """
        return None

    def __call__(self, student: Logits, teacher: Logits, labels: Labels, top: Top | None = None) -> Float[Tensor, ""]:
        """The loss of student logits against teacher logits, both [..., class]: a scalar."""
        if self.standardize:
            student, teacher = standardize(student), standardize(teacher)
        return self.value(student, teacher, labels, top)

    def sensitivity(self, teacher: Logits, labels: Labels, top: Top) -> Logits | None:
        """`logit_sensitivity` for the logits as they are, standardized or not."""
        if not self.standardize:
            return self.logit_sensitivity(teacher, labels, top)
        found = self.logit_sensitivity(standardize(teacher), labels, top)
        return None if found is None else found / teacher.std(-1, keepdim=True)

    def to_json(self) -> dict[str, Any]:
        """Its name and settings, as manifests hold them."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        standardized = values.pop("standardize")
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        return {"loss": self.name, **values, **({"standardize": True} if standardized else {})}

    def __str__(self) -> str:
        return " ".join(f"{value}" if key == "loss" else f"{key}={value}" for key, value in self.to_json().items())


@dataclass(frozen=True, kw_only=True)
class ForeignLoss(Loss):
    """A loss that a cache mentions and nobody has named in this process: it can be written again, and nothing else.

    Attributes:
        stored: what the cache holds of it.
    """

    stored: dict[str, Any]

    @property
    def name(self) -> str:
        return self.stored["loss"]

    def _refuse(self) -> NotServedError:
        return NotServedError(
            f"loss {short(self.name)} is code that no file may load: if you have it and trust it, name it yourself, "
            f"with --use {short(self.name)} (or gdkd_cache.use)"
        )

    def value(self, student: Logits, teacher: Logits, labels: Labels, top: Top | None) -> Tensor:
        raise self._refuse()

    def logit_sensitivity(self, teacher: Logits, labels: Labels, top: Top) -> Tensor | None:
        raise self._refuse()

    def to_json(self) -> dict[str, Any]:
        return self.stored


def parse_loss(spec: str | Loss) -> Loss:
    """Make a loss from a spec such as `gdkd:k=5,w2=8,temperature=4`; a loss is given as it is.

    Args:
        spec: a name of the registry or a user's own `package.module:name`, then its settings.

    Raises:
        UsageError: an unknown loss or setting, or a value out of range.
    """
    if isinstance(spec, Loss):
        return spec
    name, settings = LOSSES.split(spec)
    return parse_fields(LOSSES.load(name), f"loss {name}", settings)


loss = parse_loss
"""Its public name."""


def loss_from_json(stored: object) -> Loss:
    """Rebuild a loss from what a cache holds; a user's own that nobody has named yet is a `ForeignLoss`.

    Raises:
        CacheError: an unknown loss, or a setting that is missing, unknown, of another type or out of range.
    """
    check_json("a declared loss", stored, {str: (str, bool, float, [object])})
    assert isinstance(stored, dict)
    name = stored.get("loss")
    if not isinstance(name, str):
        raise CacheError(f"a declared loss is {short(stored)}; expected its name in loss")
    try:
        if ":" in name and not LOSSES.is_known(name):
            given: dict[str, Any] = {
                field: stored[field] for field in ("temperature", "standardize") if field in stored
            }
            return ForeignLoss(stored=dict(stored), **given)
        kind = LOSSES.known(name)
        check_json("a declared loss", stored, {"loss": str, **kind_of(kind)})
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in stored.items()
        }
        del values["loss"]
        return kind(**values)
    except UsageError as error:
        raise CacheError(f"a declared loss of the cache cannot be read: {error}") from None
