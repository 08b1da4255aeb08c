"""What a teacher said of the images of each class."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from gdkd_cache.report.numbers.said import row_blocks, softmax


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """Pairs of a label and another class that was said of it, the most frequent first; of equal ones the lower ids.

    Attributes:
        labels, said: class ids, int64 [pair].
        counts: views of which that is so, int64 [pair].
        shares: of the label's views, float64 [pair].
    """

    labels: Int[np.ndarray, " pair"]
    said: Int[np.ndarray, " pair"]
    counts: Int[np.ndarray, " pair"]
    shares: Float[np.ndarray, " pair"]


def confusion(first: Int[np.ndarray, "view row"], labels: Int[np.ndarray, " row"], num_classes: int) -> Confusion:
    """Count what was said that is not the label.

    Args:
        first: the likeliest class of each view.
        labels: of the rows.
        num_classes: C.
    """
    own = np.broadcast_to(labels, first.shape)
    seen = np.bincount(own.reshape(-1), minlength=num_classes)
    wrong = own != first
    pairs, counts = np.unique(own[wrong] * np.int64(num_classes) + first[wrong], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    pairs, counts = pairs[order], counts[order]
    found, said = np.divmod(pairs, num_classes)
    return Confusion(labels=found, said=said, counts=counts, shares=counts / seen[found])


@dataclass(frozen=True, kw_only=True)
class ByClass:
    """Of each class, float64 [class], NaN for one of no row.

    Attributes:
        rows: how many, int64 [class].
        accuracy: how often its views are said to be it.
        confidence: the mean probability of what is said.
        own: the mean probability of the class itself.
    """

    rows: Int[np.ndarray, " class"]
    accuracy: Float[np.ndarray, " class"]
    confidence: Float[np.ndarray, " class"]
    own: Float[np.ndarray, " class"]


def by_class(
    first: Int[np.ndarray, "view row"],
    confidence: Float[np.ndarray, "view row"],
    own: Float[np.ndarray, "view row"],
    labels: Int[np.ndarray, " row"],
    num_classes: int,
) -> ByClass:
    """Means over the views of each class's rows; arguments as in `Said`."""
    rows = np.bincount(labels, minlength=num_classes)

    def mean(values: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return np.bincount(labels, values.mean(0, dtype=np.float64), num_classes) / rows

    return ByClass(
        rows=rows, accuracy=mean((first == labels).astype(np.float64)), confidence=mean(confidence), own=mean(own)
    )


def mean_predictions(
    logits: Float[np.ndarray, "view row class"],
    groups: Int[np.ndarray, "view row"],
    wanted: Int[np.ndarray, " wanted"],
    temperature: float,
) -> Float[np.ndarray, "wanted class"]:
    """The mean probabilities at a temperature of the views of a group: the paper's class-average predictions.

    Args:
        logits: float32 [view, row, class].
        groups: a class id for each view of each row: its label, or what was said of it.
        wanted: class ids, none twice: of these groups.
        temperature: T > 0.

    Returns:
        float32 [wanted, class]; NaN where a group has no view.
    """
    num_classes = logits.shape[-1]
    sums = np.zeros((len(wanted), num_classes), np.float32)
    counts = np.zeros(len(wanted), np.int64)
    place = np.full(num_classes, -1)
    place[wanted] = np.arange(len(wanted))
    for view, of_view in enumerate(place[groups]):
        for part in row_blocks(logits):
            there = np.flatnonzero(of_view[part] >= 0)
            there = there[np.argsort(of_view[part][there], kind="stable")]
            if len(there):
                probabilities = softmax(logits[view, part][there], temperature)
                found, starts, number = np.unique(of_view[part][there], return_index=True, return_counts=True)
                sums[found] += np.add.reduceat(probabilities, starts, axis=0)
                counts[found] += number
    with np.errstate(invalid="ignore"):
        return sums / counts[:, None].astype(np.float32)


def without_top(predictions: Float[np.ndarray, "*any class"]) -> Float[np.ndarray, "*any class"]:
    """The same with the largest probability of each taken out, and the others scaled to a sum of one."""
    top = predictions.argmax(-1, keepdims=True)
    rest = predictions.copy()
    np.put_along_axis(rest, top, 0, -1)
    return rest / rest.sum(-1, keepdims=True)


def differing(predictions: Float[np.ndarray, "group class"], number: int) -> Int[np.ndarray, " chosen"]:
    """A few groups whose average predictions differ most in how their rest is spread.

    They stand evenly in the order of the largest probability of `without_top`, from the most concentrated to the most
    even; groups of no row are left out.

    Args:
        predictions: [group, class], as `mean_predictions` gives them.
        number: how many at most.

    Returns:
        int64 [chosen], positions in `predictions`.
    """
    known = np.flatnonzero(np.isfinite(predictions).all(-1))
    peaks = without_top(predictions[known]).max(-1)
    order = known[np.argsort(-peaks, kind="stable")]
    return order[np.unique(np.linspace(0, len(order) - 1, min(number, len(order))).round().astype(np.int64))]
