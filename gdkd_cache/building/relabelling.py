"""Are a teacher's outputs the classes in another order? Then a one-to-one relabelling is right on rows it never saw."""

from collections.abc import Iterator, Sequence

import numpy as np

from gdkd_cache.building.figures import Fault, chance, much_better


def find_order(
    predicted: np.ndarray, labels: np.ndarray, unseen: np.ndarray, names: Sequence[Sequence[str]]
) -> Fault | None:
    """What is wrong with the order of a teacher's outputs; None where nothing is.

    Args:
        predicted: int64 [row], its top classes.
        labels: int64 [row].
        unseen: bool [row], the rows that a relabelling is not made of, but judged by.
        names: lists of what the classes are called, in the order of class ids.
    """
    others = relabelling(predicted[~unseen], labels[~unseen], len(names[0]))
    predicted, labels = predicted[unseen], labels[unseen]
    right, relabelled = predicted == labels, others[predicted] == labels
    independent = chance(others[predicted], labels)
    # What an untrained network says, relabelled, is right a little more often than chance too.
    least = independent + (1 - independent) * min(0.4, 9 * independent)
    if not much_better(right, relabelled) or relabelled.mean() < least:
        return None
    known = next((said for said, order in _orders(names) if (order[predicted] == labels).mean() > least), None)
    order = f"they are in the order of {known}" if known else "they are in none of the usual orders"
    return Fault(
        float(relabelled.mean()),
        f"the order of its classes is at fault: with its outputs relabelled one to one, {relabelled.mean():.1%} of "
        f"{len(labels)} rows that the relabelling did not see are right, and {right.mean():.1%} without; {order}: type "
        "--classes FILE, of one class a line in the order of its outputs, as in a wnids.txt",
    )


def _orders(names: Sequence[Sequence[str]]) -> Iterator[tuple[str, np.ndarray]]:
    """Orders that outputs often have: in words, and the class of each output."""
    numbers = range(len(names[0]))
    for one in names:
        yield "the sorted names", np.array(sorted(numbers, key=one.__getitem__))
    yield "the class ids sorted as texts", np.array(sorted(numbers, key=str))


def relabelling(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """The class that each output most probably is, no class being two outputs: int64 [output], `num_classes`
    where none is left.

    The pairs of output and class that are most often together, for how often each is there, come first.
    """
    pairs, counts = np.unique(predicted * num_classes + labels, return_counts=True)
    outputs, classes = np.divmod(pairs, num_classes)
    often = np.bincount(predicted, minlength=num_classes)[outputs] * np.bincount(labels, minlength=num_classes)[classes]
    found = np.full(num_classes, num_classes)
    taken = np.zeros(num_classes, bool)
    for pair in np.argsort(-counts / np.sqrt(often), kind="stable").tolist():
        if found[outputs[pair]] == num_classes and not taken[classes[pair]]:
            found[outputs[pair]], taken[classes[pair]] = classes[pair], True
    return found
