"""What a method puts in the place of a network's last linear layer; what that layer reads are the network's features.

While it trains, such a layer gives several things side by side, in columns of one tensor, so that whatever wraps the
network takes it as it takes logits; evaluated, it gives logits alone.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gdkd_cache.errors import ModelError


def last_linear(model: nn.Module, num_classes: int, what: str) -> tuple[str, nn.Linear]:
    """The last of a network's linear layers that have an output for each class, and its name.

    Raises:
        ModelError: there is none; it names the network.
    """
    found = [
        (name, module)
        for name, module in model.named_modules()
        if name and isinstance(module, nn.Linear) and module.out_features == num_classes
    ]
    if not found:
        raise ModelError(
            f"{what} has no linear layer of {num_classes} outputs at its end, whose features could be read"
        )
    return found[-1]


@contextmanager
def reading_features(model: nn.Module, num_classes: int, what: str) -> Iterator[list[Float[Tensor, "batch feature"]]]:
    """What goes into a network's last linear layer, a tensor for each time that it runs in the block.

    Raises:
        ModelError: there is no such layer.
    """
    seen: list[Tensor] = []
    _, layer = last_linear(model, num_classes, what)
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    try:
        yield seen
    finally:
        hook.remove()


class TwoHeads(nn.Module):
    """A linear layer of logits and its twin, that learns from a teacher; both begin as the layer.

    Evaluated, it gives the logarithm of a mixture of what they say (DHO, arXiv 2505.07675; `evaluate` in
    github.com/erjui/DHO, train_imgnet_semi.py at 125734b):

        log(alpha * softmax(labels) + (1 - alpha) * softmax(teacher / beta))

    Attributes:
        labels, teacher: the two layers.
        alpha, beta: of the mixture, among its weights.
        apart: whether it gives both heads' logits [batch, 2 * class] while it trains.
    """

    alpha: Tensor
    beta: Tensor

    def __init__(self, layer: nn.Linear, *, alpha: float = 0.5, beta: float = 0.5, apart: bool = False) -> None:
        super().__init__()
        self.labels, self.teacher, self.apart = layer, copy.deepcopy(layer), apart
        self.register_buffer("alpha", torch.tensor(alpha))
        self.register_buffer("beta", torch.tensor(beta))

    def forward(self, features: Tensor) -> Tensor:
        labels, teacher = self.labels(features).float(), self.teacher(features).float()
        if self.training and self.apart:
            return torch.cat([labels, teacher], -1)
        parts = [
            self.alpha.log() + labels.log_softmax(-1),
            (1 - self.alpha).log() + (teacher / self.beta).log_softmax(-1),
        ]
        return torch.stack(parts).logsumexp(0)


class Adapter(nn.Sequential):
    """Makes other features of a network's while it trains; what is kept of the network lacks it."""


class Featured(nn.Linear):
    """A linear layer that gives its logits and, while it trains, behind them what it was given: [batch, class + d].

    Args:
        layer: whose weights are its own.
        adapter: makes [batch, d] of the features; may have nothing in it.
    """

    def __init__(self, layer: nn.Linear, adapter: Adapter) -> None:
        super().__init__(layer.in_features, layer.out_features, device="meta")
        self.weight, self.bias, self.adapter = layer.weight, layer.bias, adapter

    def forward(self, input: Tensor) -> Tensor:
        logits = super().forward(input)
        return torch.cat([logits.float(), self.adapter(input).float()], -1) if self.training else logits


def put(model: nn.Module, name: str, layer: nn.Module, images: Tensor, what: str) -> None:
    """Put a layer in the place of a network's last linear one, which must be what gives its logits.

    Args:
        name: of the one that is there.
        images: float [batch, 3, height, width], on which the network is run as it is evaluated.
        what: the network, for messages.

    Raises:
        ModelError: the network does more with that layer's output than give it.
    """
    given: list[Tensor] = []
    hook = model.get_submodule(name).register_forward_hook(lambda *run: given.append(run[-1]))
    was_training = model.training
    with torch.no_grad():
        logits = model.eval()(images)
    model.train(was_training)
    hook.remove()
    if not (given and given[-1].shape == logits.shape and torch.equal(given[-1], logits)):
        raise ModelError(f"{what} gives something else than its last linear layer, {name}, whose place a method needs")
    model.set_submodule(name, layer)


def kept_tensors(model: nn.Module) -> dict[str, Tensor]:
    """A network's tensors by name, without those of its adapters."""
    left = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, Adapter))
    return {name: value for name, value in model.state_dict().items() if not name.startswith(left)}
