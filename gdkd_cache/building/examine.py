"""A teacher is examined before a cache is built with it: fidelity to a wrong one is worth nothing."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from gdkd_cache.building.feeding import CHOSEN_ROWS, feedings, find_feeding
from gdkd_cache.building.figures import P_VALUE, Tally, at_least, at_most, chance
from gdkd_cache.building.relabelling import find_order
from gdkd_cache.data.loader import ViewLoader, default_num_workers
from gdkd_cache.data.recipes.presets import open_recipe
from gdkd_cache.data.recipes.stated import stated_recipe
from gdkd_cache.data.source import FullSource
from gdkd_cache.data.views import ViewBatch, ViewRenderer, image_size, requests_for
from gdkd_cache.errors import MismatchError, ModelError
from gdkd_cache.models.classes import ClassLogits
from gdkd_cache.models.network import Network
from gdkd_cache.models.normalization import Normalization
from gdkd_cache.progress import progress
from gdkd_cache.store.facts import Examination, Examined

_FEWEST_ROWS = 32
_MODEST = 0.1  # what a teacher that learnt anything is right about at least, where chance is far below


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What a teacher has said of the calibration rows, and how it is shown some of them again.

    Attributes:
        logits, labels: float [row, class] and int64 [row], of the first view.
        unseen: bool [row]: not what a relabelling is made of, but what it is judged by.
        rows: int64 [row], rows of the source in random order, of which `views` gives the first view.
        views: the views of some of these, which are mixed images where `is_mixed`.
    """

    logits: Tensor
    labels: Tensor
    unseen: np.ndarray
    rows: np.ndarray
    views: Callable[[np.ndarray], Iterable[ViewBatch]]
    is_mixed: bool


def examine(
    teacher: Network, data: FullSource, sample: Sample, *, eval_source: FullSource | None, num_workers: int | None
) -> Examination:
    """The figures of a teacher on the calibration rows, and on other images.

    Args:
        teacher: what is examined.
        data: the images of the sample.
        sample: the calibration rows.
        eval_source: what it is evaluated on as well, with the recipe that its card or its library states.
        num_workers: processes that decode these.

    Raises:
        MismatchError: those have other classes.
        SourceError: some of their rows have no label.
        ModelError: a stated recipe that only the user may name.
    """
    tally = Tally()
    tally.add(sample.logits, sample.labels)
    found = Examination(views=tally.examined(), dropped=_dropped(teacher, sample))
    if eval_source is None:
        return found
    if list(eval_source.classes) != list(data.classes):
        raise MismatchError(f"{eval_source.name} has other classes than {data.name}, or in another order")
    eval_source.require_labels()
    recipe, tally = stated_recipe(teacher.eval_recipe, teacher.description.name), Tally()
    renderer = ViewRenderer(eval_source, open_recipe(recipe, *image_size(eval_source)), seed=0, device=teacher.device)
    workers = default_num_workers(eval_source) if num_workers is None else num_workers
    requests = requests_for(0, np.arange(len(eval_source)), 256)
    with progress("evaluate", len(eval_source), "images") as advance:
        for batch in ViewLoader(renderer, num_workers=workers).stream(requests):
            tally.add(teacher.logits(batch.pixels), batch.targets.labels)
            advance(len(batch.rows))
    return replace(found, data=eval_source.name, recipe=recipe, evaluated=tally.examined())


def check_teacher(teacher: Network, data: FullSource, sample: Sample, examination: Examination) -> None:
    """Refuse a teacher that is wrong: as often right as chance, far below its card, or much better in another way.

    What may be at fault is tried: another order of its classes, other normalisations, BGR, another size.

    Raises:
        ModelError: it says what is wrong, what is at fault as far as was found, and what to do.
    """
    predicted, labels = sample.logits.argmax(-1).cpu().numpy(), sample.labels.cpu().numpy()
    if len(labels) < _FEWEST_ROWS or (labels == labels[0]).all():  # too few, or labels that say nothing
        return
    independent = chance(predicted, labels)
    wrong = _wrong(teacher, examination, independent, is_mixed=sample.is_mixed)
    faults = [find_order(predicted, labels, sample.unseen, data.class_names)]
    if examination.views.top1 < 1 / 1.1:  # else nothing could do much better
        size = next(iter(sample.views(sample.rows[:1]))).pixels.shape
        ways = feedings(teacher, Normalization(data.mean, data.std), (size[2], size[3]), thorough=wrong is not None)
        with progress("examine", CHOSEN_ROWS * len(ways), "images") as advance:
            faults.append(find_feeding(teacher, ways, sample.views, sample.rows, advance))
    # Images that are shown otherwise can look like other classes, and then the one that explains more is at fault.
    fault = max(filter(None, faults), key=lambda fault: fault.share, default=None)
    if wrong or fault:
        wrong = wrong or f"the teacher is right on {examination.views.top1:.1%} of {len(labels)} augmented views"
        cause = (
            fault.said
            if fault
            else (
                "no other order of its classes, normalisation, channel order or size that was tried does much better: "
                "are its weights those of this data's classes?"
            )
        )
        raise ModelError(f"{wrong}: {cause}; or build all the same with --accept-teacher")


def _wrong(teacher: Network, examination: Examination, independent: float, *, is_mixed: bool) -> str | None:
    """What is wrong with the figures of a teacher, in words; None where nothing is."""
    views, evaluated, card = examination.views, examination.evaluated, teacher.description.accuracy
    if _is_chance(views, independent):
        return (
            f"the teacher is right on {views.top1:.1%} of {views.rows} augmented views, and by chance it would be on "
            f"{independent:.1%}"
        )
    if isinstance(card, int | float) and not is_mixed:
        # Views are augmented, and the card's images were not.
        for of, figures, slack in (("augmented views", views, 0.5), ("images to evaluate on", evaluated, 0.2)):
            least = card - slack * (card - independent)
            if figures and at_most(_hits(figures), figures.rows, least) < P_VALUE:
                return (
                    f"the teacher is right on {figures.top1:.1%} of {figures.rows} {of}, far below the {card:.1%} that "
                    "its card states"
                )
    return None


def _is_chance(figures: Examined, independent: float) -> bool:
    """Whether chance explains the hits, and a modest teacher's being unlucky does not."""
    hits, modest = _hits(figures), max(2 * independent, _MODEST)
    return (
        at_least(hits, figures.rows, independent) >= P_VALUE and at_most(hits, figures.rows, min(modest, 1)) < P_VALUE
    )


def _hits(figures: Examined) -> int:
    return round(figures.top1 * figures.rows)


def _dropped(teacher: Network, sample: Sample) -> float | None:
    """The mean share of the teacher's probability that outputs of no class have; None where all are classes."""
    mapped = teacher.model
    if not isinstance(mapped, ClassLogits) or not mapped.drops:
        return None
    plain = replace(teacher, model=mapped.model)
    parts = [mapped.dropped(plain.logits(batch.pixels)).cpu() for batch in sample.views(sample.rows[:CHOSEN_ROWS])]
    return round(float(np.concatenate([part.double().numpy() for part in parts]).mean()), 6)
