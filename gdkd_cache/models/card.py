"""The card: what comes with weights to say which network they are of, and what it sees. Anybody may have written it."""

import json
from dataclasses import dataclass
from typing import Any

from gdkd_cache.errors import CacheError, ModelError, UsageError
from gdkd_cache.limits import MOST_CLASSES
from gdkd_cache.models.normalization import Normalization
from gdkd_cache.schema import check_json, from_json, kind_of, short, to_json

CARD_LIMIT = 2**16
"""Bytes of a card."""
_LONGEST_TEXT = 1000


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What is needed to rebuild and rightly feed a trained network.

    Attributes:
        name: as for `build_model`.
        num_classes: size of its output.
        size: height and width of the images that it was trained on.
        mean, std: channel statistics that its inputs were normalised with, for pixels in [0, 1].
        accuracy: top-1 on the split it was evaluated on, in [0, 1]; None when it was not.
        mean_iou: the same of a dense network's pixels.
        eval_recipe: what makes its inputs of images to be evaluated, without augmentation.

    Raises:
        ModelError: a value out of range.
    """

    name: str
    num_classes: int
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    accuracy: float | None = None
    mean_iou: float | None = None
    eval_recipe: str = "none"

    def __post_init__(self) -> None:
        for what, text in (("name", self.name), ("eval_recipe", self.eval_recipe)):
            if not 0 < len(text) <= _LONGEST_TEXT:
                raise ModelError(f"{what} has {len(text)} characters; it must have 1 to {_LONGEST_TEXT}")
        if not 1 <= self.num_classes <= MOST_CLASSES:
            raise ModelError(f"num_classes is {short(self.num_classes)}; it must be 1 to {MOST_CLASSES}")
        if len(self.size) != 2 or not all(1 <= side <= 2**16 for side in self.size):
            raise ModelError(f"size is {short(self.size)}; it must be a height and a width, 1 to {2**16}")
        for what, value in (("accuracy", self.accuracy), ("mean_iou", self.mean_iou)):
            if value is not None and not 0 <= value <= 1:
                raise ModelError(f"{what} is {short(value)}; it must be 0 to 1")
        try:
            Normalization(self.mean, self.std)
        except UsageError as error:
            raise ModelError(str(error)) from None

    def to_json(self) -> dict[str, Any]:
        return to_json(self)


def parse_card(data: bytes | str, where: str) -> ModelCard:
    """Read a card.

    Args:
        data: its JSON.
        where: what holds it, for messages.

    Raises:
        ModelError: it is too large, no JSON, or has a field that is missing, unknown, of another type or out of range.
    """
    try:
        if len(data) > CARD_LIMIT:
            raise ModelError(f"it has {len(data)} bytes, and a card has at most {CARD_LIMIT}")
        stored = json.loads(data)
        if isinstance(stored, dict):
            stored = {name: value for name, value in stored.items() if value is not None}  # as version 0.1.0 wrote
        check_json("card", stored, kind_of(ModelCard))
        return from_json(ModelCard, stored)
    except (ValueError, RecursionError):
        reason = "it is not JSON"
    except (CacheError, ModelError) as error:
        reason = str(error)
    raise ModelError(f"{where} is no model card: {reason}")
