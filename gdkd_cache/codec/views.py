"""Several views of the same calibration rows: what codecs that predict a view from others are fitted to."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gdkd_cache.codec.base import Codec, References
from gdkd_cache.codec.fidelity import encode_rows


@dataclass(frozen=True, kw_only=True, eq=False)
class SampledViews:
    """The first views of some rows.

    Attributes:
        logits: float32 [view, row, class], of views 0, 1, ...
        labels: int64 [row].
        weights: int16 [view, other, row] in 1..256: how near the views are.
        num_views: how many the cache will have.
    """

    logits: Tensor
    labels: Tensor
    weights: Tensor
    num_views: int

    def __len__(self) -> int:
        return len(self.logits)

    def of(self, rows: Tensor) -> "SampledViews":
        """The same of some of the rows, bool or int64 [row]."""
        return SampledViews(
            logits=self.logits[:, rows],
            labels=self.labels[rows],
            weights=self.weights[:, :, rows],
            num_views=self.num_views,
        )

    def near(self, view: int, deviations: list[Tensor]) -> References | None:
        """What a view is predicted from, by what the first views say, int8 [row, predicted] each; None of nothing."""
        if not deviations:
            return None
        return References(torch.stack(deviations, 1), self.weights[view, : len(deviations)].T)

    def encoded(self, codec: Codec) -> Iterator[tuple[dict[str, Tensor], References | None]]:
        """The columns of each view that predicts others and of the one after, and what each is predicted from."""
        deviations: list[Tensor] = []
        for view in range(codec.num_references + 1):
            references = self.near(view, deviations)
            columns = encode_rows(codec, self.logits[view], self.labels, references)
            yield columns, references
            if view < codec.num_references:
                deviations.append(codec.deviations(columns, self.labels, references))
