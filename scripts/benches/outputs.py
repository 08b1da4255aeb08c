"""What a teacher might say."""

import numpy as np


def logits_of(num_rows: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits float16 [row, class] like a trained teacher's, which share a few directions, and labels int64 [row]."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, num_classes, num_rows)
    labels[:num_classes] = np.arange(num_classes)[:num_rows]
    directions = rng.normal(size=(16, num_classes)).astype(np.float32)
    centres = rng.normal(size=(num_classes, 16)).astype(np.float32)
    logits = np.empty((num_rows, num_classes), np.float16)
    for rows in np.array_split(np.arange(num_rows), -(-num_rows // 4096)):
        factors = centres[labels[rows]] + rng.standard_normal((len(rows), 16), np.float32)
        said = factors @ directions / 2 + rng.standard_normal((len(rows), num_classes), np.float32) / 4
        said[np.arange(len(rows)), labels[rows]] += 6
        logits[rows] = said
    return logits, labels
