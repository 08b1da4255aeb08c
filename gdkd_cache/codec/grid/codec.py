"""`grid`: whole rows of cells, transform-coded over classes and over blocks of cells, the top classes exact."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gdkd_cache.codec.base import (
    Codec,
    CodecOptions,
    Column,
    Decoded,
    References,
    TopK,
    check_num_top,
    check_step,
)
from gdkd_cache.codec.grid.plane import Plane
from gdkd_cache.codec.grid.tables import GridSizes, tables_from_bytes
from gdkd_cache.errors import CacheError
from gdkd_cache.fields import option
from gdkd_cache.limits import MOST_CELLS
from gdkd_cache.losses.base import loss_from_json

if TYPE_CHECKING:
    from gdkd_cache.codec.calibration import Calibration

_MOST_OUTPUTS = 16
_PARTS = ("packed", "ranks", "escape")
_SIZES = ("num_components", "num_coded", "num_wide", "num_groups")
_SCALES = ("step", "penalty", "weight_scale")


@dataclass(frozen=True, kw_only=True)
class GridOptions(CodecOptions):
    """Options of `grid`."""

    k: int | None = option(None, "classes kept in exact rank order", least=1, unset="what the losses need")
    step: float | None = option(
        None,
        "quantisation step of every output, in logits",
        above=0,
        most=2**64,
        unset="the coarsest of each that meets the fidelity",
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class GridCodec(Codec):
    """Grid codec.

    Each output's centred logits are transformed over the classes (a fitted basis) and over blocks of 8x8 cells
    (cosines), and kept as whole steps, chosen for the declared losses' gradient (quantise.py); the top classes of each
    cell as ranks in the reconstruction, those of doubtful cells first (order.py). Reconstruction is exact integer
    arithmetic, so ids are the same on every machine.

    Attributes:
        num_classes: C.
        num_top: how many classes are kept in exact rank order, 1 <= num_top < C.
        num_outputs: 1 for one without an axis of its own.
        planes: the coding of each output.
    """

    Options = GridOptions
    searches = True
    exact_values = False
    whole_rows = True

    num_outputs: int
    planes: tuple[Plane, ...]

    def __post_init__(self) -> None:
        check_num_top(self.num_top, self.num_classes)
        for plane in self.planes:
            check_step(plane.step)

    @classmethod
    def fit(cls, calibration: "Calibration", options: GridOptions, fidelity: float) -> Codec:
        from gdkd_cache.codec.grid.search import fit_to  # it makes instances of this class

        return fit_to(calibration, options, fidelity)

    @property
    def grid(self) -> tuple[int, ...]:
        outputs = (self.num_outputs,) if self.num_outputs > 1 else ()
        return (*outputs, self.planes[0].height, self.planes[0].width)

    def _sizes(self) -> dict[str, list[int]]:
        """How much each plane takes of each column."""
        return {
            "packed": [len(plane.patterns) for plane in self.planes],
            "ranks": [len(plane.segments) for plane in self.planes],
            "escape": [plane.num_escapes for plane in self.planes],
        }

    def columns(self) -> dict[str, Column]:
        packed, ranks, escape = map(sum, self._sizes().values())
        return {
            "packed": Column(dtype="uint8", shape=(packed, self.planes[0].num_blocks), fill=255, separate=True),
            "ranks": Column(dtype="uint8", shape=(ranks,), fill=255),
            "escape": Column(dtype="int16", shape=(escape,), fill=-(2**15), sparse=True),
        }

    def encode(self, logits: Tensor, labels: Tensor, references: References | None = None) -> dict[str, Tensor]:
        outputs = logits.float().unbind(1) if self.num_outputs > 1 else [logits.float()]
        theirs = labels if labels.ndim > 1 else None
        parts = [plane.encode(own, theirs) for plane, own in zip(self.planes, outputs, strict=True)]
        return {name: torch.cat(own, 1) for name, own in zip(_PARTS, zip(*parts, strict=True), strict=True)}

    def check(self, columns: Mapping[str, np.ndarray], labels: np.ndarray, num_references: int = 0) -> None:
        split = [np.split(columns[name], np.cumsum(sizes)[:-1], axis=1) for name, sizes in self._sizes().items()]
        for plane, *parts in zip(self.planes, *split, strict=True):
            plane.check(*parts)

    def decode(
        self,
        columns: Mapping[str, Tensor],
        labels: Tensor,
        temperature: float | None = None,
        references: References | None = None,
    ) -> Decoded:
        split = [columns[name].split(sizes, 1) for name, sizes in self._sizes().items()]
        parts = [plane.decode(*own) for plane, *own in zip(self.planes, *split, strict=True)]
        # One output after the other, then the cells as they lie.
        logits, values, classes = (
            torch.stack(own, 1).view(len(labels), *self.grid, own[0].shape[-1]) for own in zip(*parts, strict=True)
        )
        return Decoded(logits, TopK(values, classes))

    def to_json(self) -> dict[str, Any]:
        first = self.planes[0]
        sizes = {
            "num_components": [plane.tables.basis.shape[1] for plane in self.planes],
            "num_coded": [len(plane.tables.coded) for plane in self.planes],
            "num_wide": [plane.num_wide for plane in self.planes],
            "num_groups": [len(plane.tables.groups) for plane in self.planes],
        }
        return {
            "name": self.name,
            "num_classes": self.num_classes,
            "num_top": self.num_top,
            "num_outputs": self.num_outputs,
            "height": first.height,
            "width": first.width,
            **{name: [getattr(plane, name) for plane in self.planes] for name in _SCALES},
            "losses": [loss.to_json() for loss in first.losses],
            **sizes,
            "tables_bytes": self.tables_bytes().size,
        }

    @classmethod
    def json_kinds(cls) -> dict[str, Any]:
        numbers = ("num_classes", "num_top", "num_outputs", "height", "width", "tables_bytes")
        lists: dict[str, Any] = {name: [int] for name in _SIZES} | {name: [float] for name in _SCALES}
        return {**dict.fromkeys(numbers, int), **lists, "losses": [object]}

    @classmethod
    def from_json(cls, stored: dict[str, Any], tables: np.ndarray) -> "GridCodec":
        num_classes, num_top, number = stored["num_classes"], stored["num_top"], stored["num_outputs"]
        if not (1 <= number <= _MOST_OUTPUTS and all(len(stored[name]) == number for name in (*_SIZES, *_SCALES))):
            raise CacheError(f"codec grid has {number} outputs; 1 to {_MOST_OUTPUTS}, each described, are possible")
        if not all(1 <= stored[name] <= MOST_CELLS for name in ("height", "width")):
            raise CacheError(
                f"codec grid is of {stored['height']}x{stored['width']} cells; at most {MOST_CELLS} each way"
            )
        check_num_top(num_top, num_classes)
        sizes = [
            GridSizes(num_classes=num_classes, num_top=num_top, **{name: stored[name][i] for name in _SIZES})
            for i in range(number)
        ]
        losses = tuple(map(loss_from_json, stored["losses"]))
        planes = [
            Plane(
                height=stored["height"],
                width=stored["width"],
                num_top=num_top,
                losses=losses,
                tables=own,
                **{name: stored[name][i] for name in _SCALES},
            )
            for i, own in enumerate(tables_from_bytes(tables, sizes))
        ]
        return cls(num_classes=num_classes, num_top=num_top, num_outputs=number, planes=tuple(planes))

    def tables_bytes(self) -> np.ndarray:
        return np.concatenate([plane.tables.to_bytes() for plane in self.planes])
