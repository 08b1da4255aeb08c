"""The schedules by name: to add one, write its class in `decays.py` and name it here."""

from typing import TYPE_CHECKING

from gdkd_cache.registry import Entry, Registry

if TYPE_CHECKING:
    from gdkd_cache.training.optimization.schedules import Schedule

_DECAYS = "gdkd_cache.training.optimization.decays"

SCHEDULES: "Registry[type[Schedule]]" = Registry(
    "schedule",
    {
        "cosine": Entry(f"{_DECAYS}:Cosine", "half a cosine, to 0 or the least at the end"),
        "step": Entry(f"{_DECAYS}:Step", "a part of it after each so many epochs"),
        "multistep": Entry(f"{_DECAYS}:MultiStep", "a part of it after each of some epochs", "multistep:at=E/E/..."),
        "linear": Entry(f"{_DECAYS}:Linear", "a line, to 0 or the least at the end"),
        "polynomial": Entry(f"{_DECAYS}:Polynomial", "(1 - done) to a power, to 0 or the least at the end"),
        "one-cycle": Entry(f"{_DECAYS}:OneCycle", "a rise, then a long fall; momentum runs the other way"),
    },
    base="gdkd_cache.training.optimization.schedules:Schedule",
)
