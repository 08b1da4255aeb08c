"""Does this teacher still say what the cache holds? It is run again on some rows, and its logits are compared."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gdkd_cache.cache.cache import Cache
from gdkd_cache.cache.replay import recipe_of
from gdkd_cache.codec.base import exact_top
from gdkd_cache.codec.fidelity import error_name, gradient
from gdkd_cache.data.loader import ViewLoader
from gdkd_cache.data.recipes.recipe import Recipe
from gdkd_cache.data.source import FullSource
from gdkd_cache.data.views import ViewRenderer, requests_for
from gdkd_cache.errors import UsageError
from gdkd_cache.losses.base import Loss, loss_from_json
from gdkd_cache.models.network import Network
from gdkd_cache.seeding import permutation

_LEAST_ROWS = 16
_BATCH_SIZE = 256  # of a view whose manifest does not say
_MOST_VIEWS = 8
# The stated error is itself measured on a sample, other machines round otherwise, and these rows are a sample too.
_FACTOR, _OFFSET, _STANDARD_ERRORS = 1.25, 0.01, 4.0
# Logits this close, in deviations of the row's logits, may swap ranks between runs.
_TIE = {"bfloat16": 0.05, "float16": 0.02}
_FLOAT32_TIE = 0.01


@dataclass(frozen=True, kw_only=True)
class Rerun:
    """What running the teacher again said.

    Attributes:
        rows: how many (view, row) it was shown.
        gradient_error: of each declared loss that the cache serves: [measured on these rows, stated in the manifest].
        top_agreement: the part of the stored top classes that are the same now, in [0, 1].
        problems: one line each; empty when this is the cache's teacher.
    """

    rows: int
    gradient_error: dict[str, list[float]]
    top_agreement: float
    problems: tuple[str, ...]

    def __str__(self) -> str:
        errors = "; ".join(
            f"{ours:.3f} (stated {stated:.3f}) for {loss}" for loss, (ours, stated) in self.gradient_error.items()
        )
        return (
            f"teacher run again on {self.rows} views: gradient error {errors}; "
            f"{self.top_agreement:.2%} of the stored top classes are the same"
        )


def rerun(
    cache: Cache,
    source: FullSource,
    cache_rows: np.ndarray,
    teacher: Network,
    *,
    num_rows: int,
    recipe: Recipe | None = None,
) -> Rerun:
    """Run the teacher on seeded rows of up to 8 views, and compare.

    The logits agree when the gradient error of each declared loss is not above 1.25 times the manifest's plus 0.01, by
    more than four standard errors of its estimate from these rows; and when each stored top class has the logit of its
    rank within 0.01 (float16: 0.02, bfloat16: 0.05) of the deviation of the row's logits.

    Args:
        cache: with views that can be replayed.
        source: the images.
        cache_rows: int64 [source row], the cache row of each of the source's rows.
        teacher: what is run, on each view in the batches, precision and memory format that the view was built with.
        num_rows: how many (view, row) to compare, at least 16.
        recipe: as for `recipe_of`.

    Raises:
        UsageError: too few rows.
        CacheError: a view is damaged.
    """
    if num_rows < _LEAST_ROWS:
        raise UsageError(f"rows is {num_rows}; at least {_LEAST_ROWS} rows are needed to compare a teacher")
    identity = cache.manifest.identity
    assert identity.views is not None
    problems = [
        f"the teacher's {name} is {getattr(teacher.description, name)} here and "
        f"{getattr(identity.teacher, name)} in the manifest"
        for name in ("name", "weights", "mean", "std")
        if getattr(teacher.description, name) != getattr(identity.teacher, name)
    ]
    if teacher.description.classes != identity.teacher.classes:
        problems.append("the teacher's outputs are other classes here than in the manifest; leave --classes out")
    losses = [loss_from_json(stored) for stored in identity.request.losses]
    served = [settings for settings in losses if cache.codec.refusal(settings) is None]
    loader = ViewLoader(ViewRenderer(source, recipe_of(cache, recipe), identity.views.seed))
    first = cache.view_numbers.start
    views = (first + np.sort(permutation(0, "verify", 0, cache.num_views)[:_MOST_VIEWS])).tolist()
    squares: dict[str, list[Tensor]] = {}
    outputs = identity.cells.outputs
    agreeing, odd, seen = [], [], 0
    for view, share in zip(views, _shares(num_rows, len(views)), strict=True):
        rows = np.sort(permutation(0, "verify", 1 + view, len(source))[:share])
        stored, built = cache.view(view), identity.built(view)
        network = teacher.as_in(built)
        for batch in loader.stream(requests_for(view, rows, built.batch_size or _BATCH_SIZE)):
            logits = network.logits(batch.pixels).cpu()
            seen += len(logits)
            top = stored.topk(cache_rows[batch.rows]).classes
            exact = exact_top(logits, top.shape[-1])
            agreeing.append(_of_rows(top == exact.classes).double().mean(-1))
            distance = (logits.gather(-1, top) - exact.values).abs().amax(-1)
            far = distance > _TIE.get(network.precision, _FLOAT32_TIE) * logits.std(-1)
            odd += [(view, source.keys[row]) for row in batch.rows[_of_rows(far).any(-1).numpy()].tolist()]
            # Of rows of several cells each is given its first class, as when the error was measured.
            labels = exact.classes[..., 0] if identity.cells.grid else batch.targets.labels
            for settings in served:
                cached = stored.logits(cache_rows[batch.rows], temperature=settings.temperature)
                full, ours = (_gradient(settings, z, labels, exact.classes) for z in (logits, cached))
                parts = [(ours - full).square().sum(-1), full.square().sum(-1)]
                for number, output in enumerate(outputs or ("",)):
                    own = [_of_rows(part[:, number] if outputs else part).sum(-1) for part in parts]
                    squares.setdefault(error_name(settings, output if number else ""), []).append(torch.stack(own))
    if odd:
        view, key = odd[0]
        problems.append(
            f"the teacher ranks other classes at the top than the cache holds, in {len(odd)} of {seen} views that were "
            f"compared; the first is view {view} of {key!r}"
        )
    errors = {}
    for name, parts in squares.items():
        lost, full = torch.cat(parts, -1)
        ratio = float(lost.sum() / full.sum().clamp(min=1e-12))
        standard_error = float((lost - ratio * full).square().sum().sqrt() / full.sum().clamp(min=1e-12))
        stated = identity.fidelity.gradient_error.get(name, 0.0)
        errors[name] = [ratio**0.5, stated]
        if max(ratio - _STANDARD_ERRORS * standard_error, 0) ** 0.5 > _FACTOR * stated + _OFFSET:
            problems.append(
                f"the cache's gradient error against this teacher is {ratio**0.5:.3f} for {name}, on {seen} views; the "
                f"manifest states {stated:.3f}: it is another teacher, or the logits are damaged"
            )
    return Rerun(
        rows=seen, gradient_error=errors, top_agreement=float(torch.cat(agreeing).mean()), problems=tuple(problems)
    )


def _gradient(loss: Loss, logits: Tensor, labels: Tensor, top: Tensor) -> Tensor:
    """`gradient` of rows or of their cells, float64 [row, *grid, class]."""
    teacher, classes = (part.flatten(0, -2) for part in (logits, top))
    return gradient(loss, teacher, labels.flatten(), classes).double().view(logits.shape)


def _of_rows(values: Tensor) -> Tensor:
    """What is said of each row, or of each of its cells: [row, n]."""
    return values.reshape(len(values), -1)


def _shares(total: int, parts: int) -> list[int]:
    return [total // parts + (i < total % parts) for i in range(parts)]
