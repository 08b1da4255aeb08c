"""What a teacher said, or might say."""

import zipfile
from pathlib import Path

import numpy as np


def logits_in(spec: str) -> tuple[str, np.ndarray, np.ndarray]:
    """What they are called, logits float [view, row, class], and labels int64 [row], of a .npz file.

    Args:
        spec: the file, whose arrays are `teacher` and `label`; or with `:NAME` behind it, `NAME` and `NAME_label`.
    """
    path, found, name = spec.partition(".npz:")
    path = path + ".npz" if found else path
    teacher, label = (name, f"{name}_label") if found else ("teacher", "label")
    try:
        with np.load(path, allow_pickle=False) as file:
            logits, labels = file[teacher], file[label].astype(np.int64)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise SystemExit(f"--logits {spec} is no .npz file of {teacher} and {label}: {error}") from None
    if logits.ndim != 3 or logits.shape[1] != len(labels):
        raise SystemExit(f"--logits {spec}: {teacher} is {logits.shape}; it must be [view, {len(labels)} rows, class]")
    return name or Path(path).stem, logits, labels


def logits_of(num_rows: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits float16 [row, class], and labels int64 [row].

    Within a class they vary like those of networks trained on CIFAR-100 and ImageNet: half of it in a fourteenth as
    many directions as there are classes, nine tenths in a quarter.
    """
    rng = np.random.default_rng(0)
    labels = rng.integers(0, num_classes, num_rows)
    num_directions = num_classes // 2
    energies = np.exp(-10 * np.arange(num_directions) / num_classes)
    scales = np.sqrt(2.4 * energies / energies.sum()).astype(np.float32)
    directions = scales[:, None] * rng.standard_normal((num_directions, num_classes), np.float32)
    centres = rng.standard_normal((num_classes, num_directions), np.float32)
    logits = np.empty((num_rows, num_classes), np.float16)
    for rows in np.array_split(np.arange(num_rows), -(-num_rows // 4096)):
        factors = centres[labels[rows]] + rng.standard_normal((len(rows), num_directions), np.float32)
        logits[rows] = factors @ directions
    logits[np.arange(num_rows), labels] += 6
    return logits, labels
