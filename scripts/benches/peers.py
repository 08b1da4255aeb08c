"""The record layouts of other tools: teacher logits to the bytes that they would keep, and to what those give back."""

import gzip
import pickle
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from gdkd_cache.losses.partition import top_classes

Layout = Callable[[Tensor], tuple[int, Tensor]]
"""Takes logits float32 [row, class]; gives bytes of all records, and log-probabilities [row, class]."""

_LEAST = 2.0**-25  # half of what float16 can still tell from zero: the kindest stand-in for a vanished probability


def layouts(num_classes: int) -> dict[str, Layout]:
    """The layouts that are known, by name."""
    found: dict[str, Layout] = {
        f"TinyViT, k={k}": tinyvit(k) for k in (10, 100, num_classes) if k <= num_classes
    }  # a dict: k = C = 100 is one layout
    found |= {"ml-dr, k=10": ml_dr, "FKD, k=5": fkd, "polynomial head, k=50 (as DistillKit)": polynomial}
    found |= {f"LPQLD, k={size // 4}": lpqld(size // 4) for size in (104, 263, 455) if size // 4 < num_classes}
    return found


def _head(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    classes = top_classes(logits, k)
    return classes, logits.softmax(-1).gather(-1, classes)


def _uniform_tail(classes: Tensor, probabilities: Tensor, num_classes: int) -> Tensor:
    """Log-probabilities with what the head leaves spread over the other classes."""
    rest = (1 - probabilities.sum(-1, keepdim=True)).clamp(min=0) / max(num_classes - classes.shape[1], 1)
    spread = rest.repeat(1, num_classes).scatter(-1, classes, probabilities)
    return spread.clamp(min=_LEAST).log()


def _records(logits: Tensor, k: int, fields: list[tuple[str, str] | tuple[str, str, int]]) -> tuple[int, Tensor]:
    """Records of ids and float16 probabilities beside other fields, headerless."""
    classes, probabilities = _head(logits, k)
    size = np.dtype([("ids", "<i2", k), ("values", "<f2", k), *fields]).itemsize
    return size * len(logits), _uniform_tail(classes, probabilities.half().float(), logits.shape[1])


def tinyvit(k: int) -> Layout:
    """int32 seed, then k x (int16 id, fp16 probability)."""
    return lambda logits: _records(logits, k, [("seed", "<i4")])


def lpqld(k: int) -> Layout:
    """k x (int16 id, fp16 probability)."""
    return lambda logits: _records(logits, k, [])


def ml_dr(logits: Tensor) -> tuple[int, Tensor]:
    """Per view, Python lists of the augmentation's parameters and 10 x (probability, id), pickled and gzipped."""
    classes, probabilities = _head(logits, 10)
    rng = np.random.default_rng(0)
    size, probabilities = 0, probabilities.half().float()  # short numbers gzip better
    for ids, values in zip(classes.tolist(), probabilities.tolist(), strict=True):
        augmentation = [*rng.integers(0, 32, 4).tolist(), bool(rng.integers(2))]
        size += len(gzip.compress(pickle.dumps([augmentation, [values, ids]])))
    return size, _uniform_tail(classes, probabilities, logits.shape[1])


def fkd(logits: Tensor) -> tuple[int, Tensor]:
    """Crop box (4 x fp32), flip (1), 5 x (fp32 id, fp32 probability)."""
    classes, probabilities = _head(logits, 5)
    return (17 + 5 * 8) * len(logits), _uniform_tail(classes, probabilities, logits.shape[1])


def polynomial(logits: Tensor) -> tuple[int, Tensor]:
    """50 ids, the first 8 logits exact (fp32), a cubic in the rank for the others, the tail dropped."""
    kept, exact = min(50, logits.shape[1] - 1), 8
    classes = top_classes(logits, kept)
    values = logits.log_softmax(-1).gather(-1, classes)
    ranks = torch.linspace(-1, 1, kept - exact)
    powers = torch.stack([ranks**power for power in range(4)], -1)
    coefficients = torch.linalg.lstsq(powers, values[:, exact:].T).solution.T
    fitted = torch.cat([values[:, :exact], coefficients @ powers.T], -1)
    bits = max(int(logits.shape[1] - 1).bit_length(), 1)
    size = -(-kept * bits // 8) + 4 * (exact + 4)
    decoded = torch.full_like(logits, float(np.log(_LEAST))).scatter(-1, classes, fitted)
    return size * len(logits), decoded
