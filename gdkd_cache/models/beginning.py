"""Where a training begins when not from fresh weights: others, and how their network saw images."""

import logging
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from gdkd_cache.errors import UsageError
from gdkd_cache.models.normalization import Normalization
from gdkd_cache.models.statements import locate, said_of
from gdkd_cache.models.weights import load_body
from gdkd_cache.schema import short

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """Weights that a network begins from.

    Attributes:
        name: of the network, as for `build_model`.
        path: of their file.
        key: what they lie under there, where it holds several.
        normalization: what they were trained with; None where neither a card nor the library says.
    """

    name: str
    path: Path
    key: str | None
    normalization: Normalization | None

    @classmethod
    def of(cls, name: str, weights: str, key: str | None = None) -> "Beginning":
        """Find weights and what is said of them.

        Args:
            name: of the network.
            weights: a file, or what the network's library calls its weights.
            key: as for `load_model`.

        Raises:
            UsageError: an unknown name.
            ModelError: there are none such.
        """
        path = locate(name, weights)
        if path is None:
            raise UsageError(f"init is {weights!r}; name a file of weights")
        seen, origins = said_of(name, weights, path)
        normalization = seen.get("normalization")
        if normalization is None:
            _LOG.warning("nobody says how %s were fed: they are fed with the data's own mean and deviation", weights)
        else:
            _LOG.info("inputs are normalised as %s says", origins["normalization"])
        return cls(name=name, path=path, key=key, normalization=normalization)

    def load(self, model: nn.Module, num_classes: int) -> None:
        """Give a network these weights; a head of another number of classes stays as it is.

        Raises:
            ModelError: they are of another network.
        """
        fresh = load_body(self.name, model, num_classes, self.path, key=self.key)
        if fresh:
            _LOG.info("%s know other classes: %s stay fresh", self.path, ", ".join(map(short, fresh)))
        else:
            _LOG.info("the network begins from all of %s", self.path)
