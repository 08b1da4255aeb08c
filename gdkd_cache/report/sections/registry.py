"""The sections of a report in their order: to add one, write its file here and name its object in this list."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gdkd_cache.report.base import Section

_SECTIONS = (
    "card:CARD",
    "fidelity:FIDELITY",
    "teacher:TEACHER",
    "paper:PAPER",
    "runs:RUNS",
)
"""Module here, and the name of the section in it."""


def sections() -> "list[tuple[str, Section]]":
    """All sections with the names of their modules."""
    found = []
    for entry in _SECTIONS:
        module, _, name = entry.partition(":")
        found.append((module, getattr(import_module(f"gdkd_cache.report.sections.{module}"), name)))
    return found
