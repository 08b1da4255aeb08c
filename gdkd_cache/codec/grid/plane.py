"""What is stored of one output's grids of cells, and what that says: whole numbers both."""

from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gdkd_cache.codec.base import exact_top
from gdkd_cache.codec.grid.blocks import CELLS, COSINES, COSINES_SCALE, inside, joined, num_blocks, split
from gdkd_cache.codec.grid.order import Segments, by_doubt
from gdkd_cache.codec.grid.quantise import quantise
from gdkd_cache.codec.grid.tables import BASIS_SCALE, DIGIT, MOST_NARROW, MOST_WIDE, GridTables
from gdkd_cache.codec.transform.head import decode_ranks, encode_ranks
from gdkd_cache.codec.transform.patterns import Patterns
from gdkd_cache.codec.transform.quantise import POWER, sensitivity
from gdkd_cache.losses.base import Loss
from gdkd_cache.threads import mapped, one_thread

MEAN_UNITS = 512
_KEPT_WEIGHT = 20.0
_LARGEST_SCORE = 2.0**44


@dataclass(frozen=True, kw_only=True, eq=False)
class Plane:
    """The coding of one output: grids float32 [row, height, width, class] to symbols and back.

    Attributes:
        height, width: of the grids.
        num_top: k, how many classes of each cell are kept in exact rank order.
        step: quantisation step, in logits.
        penalty: squared logits a bit, of the quantiser; 0 rounds.
        weight_scale: mean sensitivity of the calibration cells, which the quantiser's weights are divided by.
        losses: the losses that it was fitted for.
        tables: the fitted arrays.
    """

    height: int
    width: int
    num_top: int
    step: float
    penalty: float
    weight_scale: float
    losses: tuple[Loss, ...]
    tables: GridTables
    patterns: Patterns = field(init=False)
    segments: Segments = field(init=False)
    _resident: dict[tuple[str, torch.device, torch.dtype], Tensor] = field(init=False)

    def __post_init__(self) -> None:
        tables = self.tables
        object.__setattr__(self, "patterns", Patterns(tables.costs, tables.groups))
        object.__setattr__(self, "segments", Segments(tables.rank_costs, tables.rank_widths, self.num_cells))
        object.__setattr__(self, "_resident", {})

    @property
    def num_cells(self) -> int:
        return self.height * self.width

    @property
    def num_blocks(self) -> int:
        return num_blocks(self.height, self.width)

    @property
    def num_wide(self) -> int:
        return len(self.tables.costs) - len(self.tables.coded)

    @property
    def num_escapes(self) -> int:
        """Values a row of its part of the escape column."""
        return self.num_blocks * len(self.tables.costs) + self.num_cells * self.num_top

    @property
    def unit(self) -> float:
        """What the exact integers count, in logits."""
        return self.step / (COSINES_SCALE * BASIS_SCALE)

    def _tensor(self, name: str, device: torch.device, dtype: torch.dtype) -> Tensor:
        """A table on a device, where it stays."""
        key = (name, device, dtype)
        if key not in self._resident:
            table = COSINES if name == "cosines" else getattr(self.tables, name)
            self._resident[key] = torch.from_numpy(table.astype(np.float64)).to(device, dtype)
        return self._resident[key]

    def _scattered(self, numbers: Tensor) -> Tensor:
        """Coded numbers [..., number] to all of a block, [..., frequency, component], zeros where none is coded."""
        num_components = self.tables.basis.shape[1]
        whole = numbers.new_zeros((*numbers.shape[:-1], CELLS * num_components))
        whole[..., self._tensor("coded", numbers.device, torch.int64)] = numbers
        return whole.view(*numbers.shape[:-1], CELLS, num_components)

    def scores(self, numbers: Tensor) -> Tensor:
        """Reconstructed logits in units, of coded numbers [block, number]: whole float64 [row, cell, class]."""
        # Products and sums of small integers in float64 are exact in any order, on any device.
        cosines, basis, mean = (
            self._tensor(name, numbers.device, torch.float64) for name in ("cosines", "basis", "mean")
        )
        blocks = cosines @ (self._scattered(numbers.double()) @ basis.T)
        blocks = (blocks + mean * MEAN_UNITS).clamp_(-_LARGEST_SCORE, _LARGEST_SCORE)
        return joined(blocks, self.height, self.width).flatten(1, 2)

    def quantised(self, logits: Float[Tensor, "row height width class"], labels: Tensor | None = None) -> Tensor:
        """The numbers that are stored: float32 [block, number].

        On a CPU each row is quantised alone, in as many threads as this one has for its work.

        Args:
            logits: of the rows.
            labels: int64 [row, height, width]; None takes each cell's first class.
        """
        number = torch.get_num_threads()
        with one_thread():
            if logits.device.type != "cpu":
                return self._quantised(logits, labels)
            rows = logits.split(1)
            theirs = [None] * len(rows) if labels is None else labels.split(1)
            calls = (partial(self._quantised, *part) for part in zip(rows, theirs, strict=True))
            # A new thread takes over the main one's number of threads: where this one works alone, so do its rows.
            done = mapped(lambda call: call(), calls, number) if number > 1 else (call() for call in calls)
            return torch.cat(list(done))

    def _quantised(self, logits: Tensor, labels: Tensor | None) -> Tensor:
        device = logits.device
        cells = logits.flatten(0, 2)
        top = exact_top(cells, self.num_top).classes
        weights = sensitivity(self.losses, cells, top[:, 0] if labels is None else labels.flatten(), top, POWER)
        weights /= self.weight_scale
        # Ids cost bits where the reconstruction misranks them.
        weights.scatter_(-1, top, weights.gather(-1, top).clamp(min=_KEPT_WEIGHT * self.penalty))
        scale = self.unit * COSINES_SCALE
        costs = self._scattered(self._number_costs(device).T.contiguous())
        missing = self._scattered(torch.ones(len(self.tables.coded), device=device)) == 0
        mean = self._tensor("mean", device, torch.float64) * (MEAN_UNITS * self.unit)
        numbers = quantise(
            split(logits - logits.mean(-1, keepdim=True) - mean.float()),
            split(weights.view(logits.shape)) * inside(self.height, self.width).to(device).repeat(len(logits), 1, 1),
            self._tensor("cosines", device, torch.float32) / COSINES_SCALE,
            self._tensor("basis", device, torch.float32) * scale,
            torch.stack([costs[0].masked_fill(missing, torch.inf), costs[1].masked_fill(missing, 1.0)], -1),
            self._scattered(self._tensor("variances", device, torch.float32)).masked_fill(missing, 1.0),
            self.penalty,
        ).flatten(1)[:, self._tensor("coded", device, torch.int64)]
        wide, narrow = numbers.split([self.num_wide, numbers.shape[1] - self.num_wide], -1)
        return torch.cat([wide.clamp(-MOST_WIDE, MOST_WIDE), narrow.clamp(-MOST_NARROW, MOST_NARROW)], -1)

    def _number_costs(self, device: torch.device) -> Tensor:
        """What values +-1 and each further one cost, of coded numbers: float32 [number, 2], in bits."""
        costs = self._tensor("costs", device, torch.float32)[:, 1:] / 16
        wide = torch.tensor([0.5, 1 / DIGIT], device=device).expand(self.num_wide, 2)
        return torch.cat([wide, costs[2 * self.num_wide :]])

    def digits(self, numbers: Tensor) -> Tensor:
        """Numbers [block, number] as columns: int64 [block, column]."""
        whole = numbers.long()
        wide, narrow = whole.split([self.num_wide, whole.shape[1] - self.num_wide], -1)
        high = (wide + DIGIT // 2).div(DIGIT, rounding_mode="floor")
        return torch.cat([high, wide - DIGIT * high, narrow], -1)

    def ranks(self, numbers: Tensor, logits: Tensor) -> Tensor:
        """The ranks of the top classes of rows, by doubt: int64 [row, cell, rank]."""
        scores = self.scores(numbers)
        top = exact_top(logits.flatten(0, 2), self.num_top).classes
        ranks = encode_ranks(scores.flatten(0, 1), top).view(*scores.shape[:2], self.num_top)
        order = by_doubt(scores, self.num_top)
        return ranks.gather(1, order[..., None].expand_as(ranks))

    def encode(self, logits: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Bytes uint8 [row, group, block] and [row, byte], and escapes int16 [row, escape]."""
        numbers = self.quantised(logits, labels)
        packed, escape = self.patterns.pack(self.digits(numbers))
        names, rank_escape = self.segments.pack(self.ranks(numbers, logits))
        rows = len(logits)
        escapes = torch.cat([escape.view(rows, -1), rank_escape.view(rows, -1).short()], 1)
        return packed.view(rows, self.num_blocks, -1).transpose(1, 2), names, escapes

    def decode(self, packed: Tensor, names: Tensor, escapes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The inverse of `encode`, of what `check` lets through: logits [row, cell, class], top values and classes."""
        rows, first = len(packed), self.num_escapes - self.num_cells * self.num_top
        escape = escapes[:, :first].reshape(rows * self.num_blocks, -1)
        columns = self.patterns.unpack(packed.transpose(1, 2).reshape(rows * self.num_blocks, -1), escape)
        high, low, narrow = columns.split([self.num_wide, self.num_wide, columns.shape[1] - 2 * self.num_wide], -1)
        scores = self.scores(torch.cat([high.int() * DIGIT + low, narrow.int()], -1))
        by_rank = self.segments.unpack(names, escapes[:, first:].reshape(rows, self.num_cells, self.num_top).long())
        order = by_doubt(scores, self.num_top)[..., None].expand_as(by_rank)
        ranks = torch.empty_like(by_rank).scatter_(1, order, by_rank)
        return self._said(scores, ranks)

    def decoded(self, numbers: Tensor, logits: Tensor) -> Tensor:
        """What `decode` gives of numbers that were chosen for logits: float32 [row, cell, class]."""
        scores = self.scores(numbers)
        ranks = encode_ranks(scores.flatten(0, 1), exact_top(logits.flatten(0, 2), self.num_top).classes)
        return self._said(scores, ranks.view(*scores.shape[:2], self.num_top))[0]

    def _said(self, scores: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, and the top classes' values and ids, of the reconstruction and each cell's ranks in it."""
        classes, values = decode_ranks(scores.flatten(0, 1), ranks.flatten(0, 1))
        classes, values = (part.view(ranks.shape) for part in (classes, (values.double() * self.unit).float()))
        # No class outside the top may come above the last of it.
        logits = scores.float().mul_(self.unit)
        return torch.minimum(logits, values[..., -1:]).scatter_(-1, classes, values), values, classes

    def check(self, packed: np.ndarray, names: np.ndarray, escapes: np.ndarray) -> None:
        """Refuse what no encoder writes, of a whole view.

        Raises:
            CacheError: it names the row.
        """
        first, num_columns = self.num_escapes - self.num_cells * self.num_top, len(self.tables.costs)
        escape = escapes[:, :first].reshape(len(escapes), self.num_blocks, num_columns)
        most = np.full(num_columns, MOST_NARROW)
        least, lows = -most, slice(self.num_wide, 2 * self.num_wide)
        least[lows], most[lows] = -DIGIT // 2, DIGIT // 2 - 1
        for block in range(self.num_blocks):
            self.patterns.check(packed[:, :, block], escape[:, block], least, most)
        ranks = escapes[:, first:].reshape(len(escapes), self.num_cells, self.num_top)
        self.segments.check(names, ranks, len(self.tables.mean))
