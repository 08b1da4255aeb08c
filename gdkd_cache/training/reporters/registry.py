"""The reporters by name: to add one, write its file here, name it in this list, and its library in pyproject.toml."""

from typing import TYPE_CHECKING

from gdkd_cache.registry import Entry, Registry

if TYPE_CHECKING:
    from gdkd_cache.training.reporters.base import Reporter

_HERE = "gdkd_cache.training.reporters"

REPORTERS: "Registry[type[Reporter]]" = Registry(
    "reporter",
    {
        "tensorboard": Entry(f"{_HERE}.tensorboard:TensorBoard", "event files in the training's folder"),
        "trackio": Entry(f"{_HERE}.trackio:Trackio", "a database on this machine, or a Hugging Face Space"),
        "wandb": Entry(f"{_HERE}.wandb:WeightsAndBiases", "Weights & Biases, or files of it in the training's folder"),
    },
    base="gdkd_cache.training.reporters.base:Reporter",
)
