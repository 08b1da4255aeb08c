"""What a user asks of a codec."""

from dataclasses import dataclass
from typing import Any

from gdkd_cache.codec.base import Codec, CodecOptions, check_num_top
from gdkd_cache.codec.registry import AUTO, CODECS
from gdkd_cache.errors import UsageError
from gdkd_cache.fields import check_fields, option, parse_fields
from gdkd_cache.losses.base import Loss, loss_from_json


@dataclass(frozen=True, kw_only=True)
class CodecRequest:
    """What a user asks of a codec; a manifest holds it.

    Attributes:
        spec: `auto`, or a codec with its options.
        fidelity: the largest gradient error allowed for each declared loss; for `auto` and codecs that search.
        losses: the declared losses, at least one.
        num_top: exact classes where the spec does not say; fewer where there are fewer classes.

    Raises:
        UsageError: a number out of range, or no loss.
    """

    spec: str = AUTO
    fidelity: float = option(0.1, above=0)
    losses: tuple[Loss, ...]
    num_top: int = option(8, least=1)

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.losses:
            raise UsageError("no loss is declared; declare at least one that the cache shall serve")

    def codec(self) -> tuple[type[Codec], CodecOptions] | None:
        """The codec that the spec names, and its options; None for `auto`.

        Raises:
            UsageError: an unknown codec or option, or a value out of range.
        """
        if self.spec == AUTO:
            return None
        if self.spec.partition(":")[0] == AUTO:
            raise UsageError(f"codec is {self.spec!r}; {AUTO} takes no options")
        name, options = CODECS.split(self.spec)
        kind = CODECS.load(name)
        return kind, parse_fields(kind.Options, f"codec {name}", options)

    def top_classes(self, options: CodecOptions, num_classes: int) -> int:
        """How many classes are kept in exact rank order."""
        wanted = max(self.num_top, *(loss.num_top for loss in self.losses))
        return options.k or max(1, min(wanted, num_classes - 1))

    def check(self, num_classes: int, unlabelled: int = 0) -> None:
        """Refuse what a number of classes, or so many rows without a label, cannot serve.

        Raises:
            UsageError: a declared loss, or a number of exact classes, that needs more classes than there are; a
                declared loss that needs labels; or an unknown codec or option.
        """
        for loss in self.losses:
            if loss.num_top >= num_classes:
                raise UsageError(
                    f"the declared loss {loss} needs more than {loss.num_top} classes, and there are "
                    f"{num_classes}; declare a smaller k, or kd"
                )
            if unlabelled and loss.needs_labels:
                raise UsageError(
                    f"the declared loss {loss} needs a label of each row, and {unlabelled} rows have none; declare "
                    "another"
                )
        if (codec := self.codec()) is not None:
            check_num_top(self.top_classes(codec[1], num_classes), num_classes)

    @property
    def temperatures(self) -> tuple[float, ...]:
        """The declared losses' temperatures, in the order of declaration."""
        return tuple(dict.fromkeys(loss.temperature for loss in self.losses))

    def to_json(self) -> dict[str, Any]:
        return {
            "spec": self.spec,
            "fidelity": self.fidelity,
            "losses": [loss.to_json() for loss in self.losses],
            "num_top": self.num_top,
        }

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> "CodecRequest":
        """The request of a manifest, whose types are checked.

        Raises:
            CacheError, UsageError: an unknown loss, or a number out of range.
        """
        fields = dict(stored)
        losses = tuple(map(loss_from_json, fields.pop("losses")))
        return cls(**fields, losses=losses)
