"""The methods by name: to add one, write its file here and name it below."""

from typing import TYPE_CHECKING

from gdkd_cache.registry import Entry, Registry

if TYPE_CHECKING:
    from gdkd_cache.training.task import Task

_HERE = "gdkd_cache.training.methods"

METHODS: "Registry[type[Task]]" = Registry(
    "method",
    {
        "dho": Entry(f"{_HERE}.dho:DHO", "two heads: one learns from labels, one from the teacher"),
        "nd": Entry(f"{_HERE}.nd:ND", "the norm and direction of features, against the teacher's class means"),
    },
    base="gdkd_cache.training.task:Task",
)
