"""What a training has come to: all that changes from step to step, in one object."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from gdkd_cache.training.optimizers import make_optimizer
from gdkd_cache.training.options import TrainOptions
from gdkd_cache.training.schedules import make_schedule


@dataclass(kw_only=True)
class State:
    """Attributes: epoch: those that are done; best_epoch: from 1, 0 before the first evaluation."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: LRScheduler
    epoch: int = 0
    accuracy: float = 0.0
    best_accuracy: float = -1.0
    best_epoch: int = 0

    @classmethod
    def begin(cls, options: TrainOptions, model: nn.Module) -> "State":
        """The state before the first step."""
        optimizer = make_optimizer(options, model)
        return cls(model=model, optimizer=optimizer, schedule=make_schedule(options, optimizer, 1))

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return self.optimizer.param_groups[0]["lr"]

    def evaluated(self, accuracy: float) -> bool:
        """Take note that an epoch is done, and of what it gave: whether it is the best so far."""
        self.epoch, self.accuracy = self.epoch + 1, accuracy
        if accuracy <= self.best_accuracy:
            return False
        self.best_accuracy, self.best_epoch = accuracy, self.epoch
        return True
