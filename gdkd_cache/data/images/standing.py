"""A source that stands for another whose images were decoded before: all but their pixels is the other's own."""

from dataclasses import dataclass, fields
from typing import Any

from gdkd_cache.data.source import FullSource


@dataclass(frozen=True, kw_only=True, eq=False)
class StandingSource(FullSource):
    """Attributes: source: what it stands for."""

    source: FullSource

    @property
    def digest(self) -> str:
        return self.source.digest

    @property
    def scales(self) -> bool:
        return self.source.scales


def standing_for(source: FullSource) -> dict[str, Any]:
    """What a `StandingSource` is made of: the source, and what it says."""
    return {"source": source, **{field.name: getattr(source, field.name) for field in fields(FullSource)}}
