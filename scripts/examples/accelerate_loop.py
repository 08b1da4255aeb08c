"""Accelerate, with any number of processes: accelerate launch scripts/examples/accelerate_loop.py CACHE OUT"""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.nn import functional as F

import gdkd_cache as gc
from gdkd_cache import losses
from gdkd_cache.models.build import build_model


def main(cache: str, out: str, epochs: int = 2) -> None:
    accelerator = Accelerator()
    data = gc.open_cache(cache).dataset(gc.open_source("digits"))
    # Every epoch is split over the processes already: network and optimizer alone are to be prepared.
    loader = data.loader(batch_size=128 // accelerator.num_processes, shuffle=True, device=accelerator.device)
    torch.manual_seed(0)
    student = accelerator.prepare(build_model("cnn-s", 10))
    optimizer = accelerator.prepare(torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9))
    loss = torch.zeros(())
    accelerator.register_for_checkpointing(loader)
    if Path(out).exists():
        accelerator.load_state(out)
    while loader.epoch < epochs:
        for images, labels, teacher in loader:
            logits = student(images)
            loss = F.cross_entropy(logits, labels) + losses.gdkd(logits, teacher.logits, top=teacher.top)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        accelerator.save_state(out)  # or after any step
        accelerator.print(f"epoch {loader.epoch}: loss {loss.item():.3f}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
