"""Which views are shown: chosen numbers, an epoch each, in turn."""

import re
from collections.abc import Sequence

from gdkd_cache.errors import UsageError
from gdkd_cache.limits import MOST_VIEWS

_PART = re.compile(r"([0-9]{1,7})(?:-([0-9]{1,7}))?")


def parse_views(text: str) -> tuple[int, ...]:
    """View numbers from a text such as `0-19` or `0-4,7`, in the order that they stand there.

    Raises:
        UsageError: it says something else, or names a view twice.
    """
    numbers: dict[int, None] = {}
    for part in text.split(","):
        match = _PART.fullmatch(part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < MOST_VIEWS:
            raise UsageError(
                f"views are {text!r}, and {part!r} is no view or range of views below {MOST_VIEWS}; write such as 0-19 "
                "or 0-4,7"
            )
        twice = next((number for number in range(first, last + 1) if number in numbers), None)
        if twice is not None:
            raise UsageError(f"views are {text!r}, which names view {twice} twice; each is shown once in a round")
        numbers |= dict.fromkeys(range(first, last + 1))
    return tuple(numbers)


def chosen_views(views: str | Sequence[int] | None, available: range, where: object) -> tuple[int, ...]:
    """The views to show, epoch e the e-th of them, in turn.

    Args:
        views: a text for `parse_views`, or numbers; None is all there are.
        available: those that there are.
        where: they are in, for messages.

    Raises:
        UsageError: none, or one that is not there.
    """
    if views is None:
        return tuple(available)
    numbers = parse_views(views) if isinstance(views, str) else tuple(views)
    if not numbers:
        raise UsageError("no view is asked for; give at least one")
    missing = [number for number in numbers if number not in available]
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UsageError(
            f"view {missing[0]}{others} of the {len(numbers)} asked for: not in {where}, which has views "
            f"{available[0]} to {available[-1]}"
        )
    return numbers
