"""The methods by name: to add one, write its file in `methods/` and name it here."""

from typing import TYPE_CHECKING

from gdkd_cache.registry import Entry, Registry

if TYPE_CHECKING:
    from gdkd_cache.selection.base import Selection

_METHODS = "gdkd_cache.selection.methods"

SELECTIONS: "Registry[type[Selection]]" = Registry(
    "method",
    {
        "pcoreset": Entry(f"{_METHODS}.pcoreset:PCoreSet", "rows that cover the space of the teacher's probabilities"),
        "entropy": Entry(f"{_METHODS}.entropy:Entropy", "rows that the teacher is least sure of"),
        "disagreement": Entry(f"{_METHODS}.disagreement:Disagreement", "rows whose views are said to be different"),
        "miniplm": Entry(f"{_METHODS}.miniplm:MiniPLM", "rows that a large teacher knows better than a small one"),
    },
    base="gdkd_cache.selection.base:Selection",
)
