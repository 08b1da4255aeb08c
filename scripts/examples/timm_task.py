"""A task for timm whose teacher is a cache: python scripts/examples/timm_task.py CACHE"""

import sys

import timm
import torch
from timm.task import TrainingTask
from torch.nn import functional as F

import gdkd_cache as gc


class CachedDistillation(TrainingTask):  # as LogitDistillationTask, which runs its teacher
    def __init__(self, student: torch.nn.Module, loss: gc.Loss):
        super().__init__()
        self.trainable_module, self.distillation = student, loss

    def forward(self, input, target):
        (labels, (logits, top, *_)), output = target, self.trainable_module(input)
        task, kd = F.cross_entropy(output, labels), self.distillation(output, logits, labels, top)
        return {"loss": task + kd, "output": output, "task_loss": task, "kd_loss": kd}


def main(cache: str, epochs: int = 2) -> None:
    loader = gc.open_cache(cache).dataset(gc.open_source("digits")).loader(batch_size=128, shuffle=True)
    task = CachedDistillation(timm.create_model("test_resnet", num_classes=10), gc.loss("gdkd:k=5,temperature=4"))
    optimizer = torch.optim.AdamW(task.parameters(), lr=3e-3)
    result = {}
    while loader.epoch < epochs:
        for images, labels, teacher in loader:
            result = task(images, (labels, teacher))
            optimizer.zero_grad()
            result["loss"].backward()
            optimizer.step()
        print(f"epoch {loader.epoch}: task {result['task_loss']:.3f}, distillation {result['kd_loss']:.3f}")


if __name__ == "__main__":
    main(sys.argv[1])
