"""What is done to a network before it trains, each where an option asks for it; the names of its weights stay."""

import functools
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from gdkd_cache.errors import UsageError
from gdkd_cache.training.options import TrainOptions


def prepared(options: TrainOptions, model: nn.Module, device: torch.device) -> nn.Module:
    """The network as it trains, before ranks share it: with BatchNorm over all ranks, and blocks that compute again.

    Args:
        options: which of these.
        model: on its device; it is changed, and its weights are those of what is returned, under the same names.
        device: where it trains.

    Raises:
        UsageError: an option that does nothing for this network or on this device.
    """
    if options.sync_batchnorm:
        if device.type != "cuda":
            raise UsageError(f"sync_batchnorm needs a GPU, and the device is {device.type}; leave --sync-batchnorm out")
        if not any(isinstance(module, _BatchNorm) for module in model.modules()):
            raise UsageError(f"model {options.student} has no BatchNorm; leave --sync-batchnorm out")
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if options.activation_checkpointing:
        blocks = _blocks(model)
        if not blocks:
            raise UsageError(
                f"model {options.student} has no blocks in an nn.Sequential or nn.ModuleList, whose activations could "
                "be computed again; leave --activation-checkpointing out"
            )
        for block in blocks:
            # In the instance: a module around it would stand in the names of its weights.
            block.forward = functools.partial(_checkpointed, block, block.forward)
    return model


def compiled(options: TrainOptions, module: nn.Module) -> nn.Module:
    """What computes as a network does, compiled where that is asked for; its parameters are the network's own.

    Raises:
        UsageError: there is no compiler for a CPU's code.
    """
    if not options.compile:
        return module
    on_cpu = all(one.device.type == "cpu" for one in module.parameters())
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if on_cpu and shutil.which(compiler) is None:
        raise UsageError(
            f"compile needs a C++ compiler, and there is no {compiler}; install it, or leave --compile out"
        )
    return torch.compile(module)  # pyright: ignore[reportReturnType]  (a module of a module)


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The outermost children of an nn.Sequential or nn.ModuleList that have children themselves."""
    holds = isinstance(model, nn.Sequential | nn.ModuleList)
    found: list[nn.Module] = []
    for child in model.children():
        is_block = holds and any(True for _ in child.children()) and not isinstance(child, torch.jit.ScriptModule)
        found += [child] if is_block else _blocks(child)
    return found


def _checkpointed(block: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A block's output, whose backward pass computes its activations again."""
    if not (block.training and torch.is_grad_enabled()):
        return forward(*args, **kwargs)
    if torch.compiler.is_compiling():  # writes to buffers are the compiled graph's, which makes them once
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _buffers_put_back(block)

    return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)


@contextmanager
def _buffers_put_back(block: nn.Module) -> Iterator[None]:
    """Let a block write to copies of its buffers: BatchNorm's running statistics have seen the batch already."""
    owners = [(module, *named) for module in block.modules() for named in module.named_buffers(recurse=False)]
    for module, name, buffer in owners:
        setattr(module, name, buffer.clone())
    try:
        yield
    finally:
        for module, name, buffer in owners:
            setattr(module, name, buffer)
