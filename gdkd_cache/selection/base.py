"""What a method of selection is: settings as fields, and what it makes of what the teacher said."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gdkd_cache.cache.cache import Cache
from gdkd_cache.errors import UsageError
from gdkd_cache.fields import check_fields, option, parse_fields
from gdkd_cache.limits import LARGEST_FACTOR, LEAST_TEMPERATURE
from gdkd_cache.progress import Advance
from gdkd_cache.selection.registry import SELECTIONS

_VALUES_AT_ONCE = 2**22
_MOST_BYTES = 2**32


class Views:
    """Some views of a cache, or of the cache that it is compared with.

    Args:
        cache: what is read.
        numbers: the views, at least one.
        advance: is told the rows that were read.
    """

    def __init__(self, cache: Cache, numbers: Sequence[int], advance: Advance) -> None:
        self.cache, self.numbers, self._advance = cache, tuple(numbers), advance

    def log_probabilities(self, temperature: float) -> Iterator[tuple[slice, Float[Tensor, "row class"]]]:
        """What the teacher said of some rows of a view, view by view: log softmax(z / T) in float64."""
        rows, at_once = self.cache.num_rows, max(_VALUES_AT_ONCE // self.cache.num_classes, 1)
        for number in self.numbers:
            view = self.cache.view(number)
            for first in range(0, rows, at_once):
                part = slice(first, min(first + at_once, rows))
                logits = view.logits(np.arange(part.start, part.stop))
                yield part, (logits.double() / temperature).log_softmax(-1)
                self._advance(part.stop - part.start)


@dataclass(frozen=True, kw_only=True)
class Selection(ABC):
    """A method of selection: the rows of a cache in the order in which they are taken.

    A subclass is a frozen, keyword-only dataclass whose fields are made by `option`.

    Raises:
        UsageError: a setting of another type or out of range; it names it.
    """

    needs_reference: ClassVar[bool] = False
    """Whether it compares the cache with a second one, of the same rows."""
    least_views: ClassVar[int] = 1
    """How many views it needs."""

    temperature: float = option(1.0, "T, which logits are divided by", least=LEAST_TEMPERATURE, most=LARGEST_FACTOR)

    def __post_init__(self) -> None:
        check_fields(self)

    @abstractmethod
    def choose(self, views: Views, reference: Views | None, number: int) -> Int[np.ndarray, " number"]:
        """The rows that are taken first: int64, in the order in which they are; of equal ones the lower row.

        Args:
            views: what the teacher said.
            reference: what the other teacher said, for a method that needs it.
            number: how many to take, 1 to all.
        """


def largest(scores: Float[np.ndarray, " row"], number: int) -> Int[np.ndarray, " number"]:
    """The rows of the largest scores, the largest first; of equal ones the lower row."""
    return np.argsort(-scores, kind="stable")[:number]


def entropies(log_probabilities: Float[Tensor, "row class"]) -> Float[Tensor, " row"]:
    """-sum p log p, in nats."""
    return torch.special.entr(log_probabilities.exp()).sum(-1)


def require_memory(size: int) -> None:
    """Refuse what would hold the probabilities of all rows, where these take more than 4 GiB.

    Raises:
        UsageError: it says how many bytes.
    """
    if size > _MOST_BYTES:
        raise UsageError(
            f"the probabilities of all rows take {size / 2**30:.3g} GiB of memory, and at most {_MOST_BYTES / 2**30:g} "
            "are allowed: select from a cache of a --subset, or take --method entropy or miniplm, which hold none"
        )


def parse_selection(spec: str) -> Selection:
    """Make a method from a spec such as `entropy:temperature=4`.

    Raises:
        UsageError: an unknown method or setting, or a value out of range.
    """
    name, settings = SELECTIONS.split(spec)
    return parse_fields(SELECTIONS.load(name), f"method {name}", settings)
