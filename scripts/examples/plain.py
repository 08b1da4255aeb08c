"""A loop of one's own, which goes on where it stopped when run again: python scripts/examples/plain.py CACHE STATE"""

import sys
from pathlib import Path

import torch
from torch.nn import functional as F

import gdkd_cache as gc
from gdkd_cache import losses
from gdkd_cache.models.build import build_model


def main(cache: str, state: str, epochs: int = 2) -> None:
    data = gc.open_cache(cache).dataset(gc.open_source("digits"))
    loader = data.loader(batch_size=128, shuffle=True)
    torch.manual_seed(0)
    student, loss = build_model("cnn-s", 10), torch.zeros(())
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    if Path(state).exists():
        saved = torch.load(state)
        student.load_state_dict(saved["student"])
        optimizer.load_state_dict(saved["optimizer"])
        loader.load_state_dict(saved["loader"])
    while loader.epoch < epochs:
        for images, labels, teacher in loader:  # each pass is the next epoch, in another order, of another view
            logits = student(images)
            loss = F.cross_entropy(logits, labels) + losses.gdkd(logits, teacher.logits, top=teacher.top)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            parts = {"student": student, "optimizer": optimizer, "loader": loader}
            torch.save({name: part.state_dict() for name, part in parts.items()}, state)  # after any step
        print(f"epoch {loader.epoch}: loss {loss.item():.3f}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
