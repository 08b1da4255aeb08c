"""Select rows of a cache, by what its teacher said of them."""

from collections.abc import Sequence

from gdkd_cache.cache.cache import Cache
from gdkd_cache.data.view_numbers import chosen_views
from gdkd_cache.errors import MismatchError, NotServedError, UsageError
from gdkd_cache.progress import progress
from gdkd_cache.schema import short
from gdkd_cache.selection.base import Selection, Views, parse_selection
from gdkd_cache.store.cells import ONE_CELL


def select(
    cache: Cache,
    method: str | Selection,
    number: int,
    *,
    views: str | Sequence[int] | None = None,
    reference: Cache | None = None,
) -> list[str]:
    """The keys of the rows that a method takes, the first first.

    Args:
        cache: what the teacher said.
        method: a spec such as `pcoreset` or `entropy:temperature=4`, or a method.
        number: how many rows to keep, 1 to all.
        views: which views count; None is all.
        reference: the cache of another teacher with the same rows, for `miniplm`; its views are all that it has.

    Raises:
        UsageError: an unknown method, a number or views out of range, too few views, or a reference that is missing
            or not wanted.
        MismatchError: the reference has other rows, labels or classes.
        NotServedError: the cache's rows are of several cells.
        CacheError: a cache is damaged.
    """
    chosen = parse_selection(method) if isinstance(method, str) else method
    name = method.partition(":")[0] if isinstance(method, str) else type(method).__name__
    numbers = chosen_views(views, cache.view_numbers, cache.path)
    if not 1 <= number <= cache.num_rows:
        raise UsageError(f"keep is {number}; {cache.path} has {cache.num_rows} rows: it must be 1 to that")
    if len(numbers) < chosen.least_views:
        raise UsageError(f"method {name} compares at least {chosen.least_views} views, and there is {len(numbers)}")
    if (reference is not None) != chosen.needs_reference:
        wanted = "needs the cache of another teacher" if chosen.needs_reference else "takes no other cache"
        raise UsageError(f"method {name} {wanted}: {'give' if chosen.needs_reference else 'leave out'} --reference")
    for one in filter(None, (cache, reference)):
        if one.manifest.identity.cells != ONE_CELL:
            raise NotServedError(f"{one.path} holds several distributions a row; rows are selected by one each")
    if reference is not None:
        _require_same_rows(cache, reference)
    theirs = () if reference is None else tuple(reference.view_numbers)
    total = cache.num_rows * (len(numbers) + len(theirs))
    with progress("select", total, "rows") as advance:
        own = Views(cache, numbers, advance)
        other = None if reference is None else Views(reference, theirs, advance)
        rows = chosen.choose(own, other, number)
    return [cache.keys[row] for row in rows.tolist()]


def _require_same_rows(cache: Cache, reference: Cache) -> None:
    """Refuse a reference of other rows, whatever their order.

    Raises:
        MismatchError: it says what differs.
    """
    if tuple(cache.manifest.identity.classes) != tuple(reference.manifest.identity.classes):
        raise MismatchError(f"{reference.path} has other classes than {cache.path}, or in another order")
    labels = dict(zip(reference.keys, reference.labels.tolist(), strict=True))
    for key, label in zip(cache.keys, cache.labels.tolist(), strict=True):
        if labels.get(key) != label:
            what = "no row" if key not in labels else f"label {labels[key]} for row"
            raise MismatchError(f"{reference.path} has {what} {short(key)}, which has label {label} in {cache.path}")
