"""Which views of which rows codecs are calibrated on, and the calibration of what a teacher said of them."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gdkd_cache.codec.base import coded
from gdkd_cache.codec.calibration import Calibration, calibration_rows, calibration_views, sampled_rows, sampled_views
from gdkd_cache.codec.request import CodecRequest
from gdkd_cache.codec.views import SampledViews
from gdkd_cache.data.nearness import Nearness
from gdkd_cache.data.views import ViewBatch, ViewRequest, requests_for
from gdkd_cache.store.cells import ONE_CELL, Cells


@dataclass(frozen=True, kw_only=True, eq=False)
class Sampling:
    """What calibration needs: the rows of the smallest key hashes in the first view.

    Where they are few for so many classes, also in the next views; where views may be predicted from others, the next
    views of some of them.

    Attributes:
        request: what is asked of a codec.
        num_rows, num_views: of the cache.
        rows: int64 [row], rising.
        some: int64 [n], positions in `rows`.
        num_whole: views of all those rows, at least 1.
        num_sampled: views of some of them; 0 where views are not predicted.
        cells: of a row.
    """

    request: CodecRequest
    num_rows: int
    num_views: int
    rows: np.ndarray
    some: np.ndarray
    num_whole: int
    num_sampled: int
    cells: Cells = ONE_CELL

    @classmethod
    def of(
        cls,
        request: CodecRequest,
        hashes: np.ndarray,
        num_classes: int,
        num_views: int,
        unpredictable: str | None = None,
        cells: Cells = ONE_CELL,
    ) -> "Sampling":
        """Choose them.

        Args:
            request: what is asked of a codec.
            hashes: uint64 [row], of all keys.
            num_classes: of the logits.
            num_views: of the cache.
            unpredictable: why no view can be predicted from others; None where they can.
            cells: of a row.

        Raises:
            UsageError: references are asked for that the views cannot have.
        """
        if cells != ONE_CELL:
            unpredictable = "a view's cells lie elsewhere in the image than another's"
        rows = np.sort(np.argsort(hashes, kind="stable")[: calibration_rows(len(hashes), num_classes, cells.number)])
        num_sampled, wanted = sampled_views(request, len(rows), num_views, unpredictable)
        return cls(
            request=request,
            num_rows=len(hashes),
            num_views=num_views,
            rows=rows,
            some=sampled_rows(len(rows), wanted),
            num_whole=calibration_views(len(rows), num_classes, num_views, cells.number),
            cells=cells,
            num_sampled=num_sampled,
        )

    def is_whole(self, view: int) -> bool:
        """Whether all rows of the cache are in it, in a view."""
        return view < self.num_whole and len(self.rows) == self.num_rows

    def requests(self, batch_size: int) -> list[ViewRequest]:
        """What to render, view by view."""
        return [
            request
            for view in range(max(self.num_whole, self.num_sampled))
            for request in requests_for(view, self.rows if view < self.num_whole else self.rows[self.some], batch_size)
        ]

    def calibration(self, said: Iterable[tuple[ViewBatch, Tensor]], nearness: Nearness) -> Calibration:
        """The calibration of what a teacher said of the requests' batches, of each float logits [n, *grid, class]."""
        logits: defaultdict[int, list[Tensor]] = defaultdict(list)
        labels, sizes = [], []
        for batch, own in said:
            logits[batch.view].append(own)
            if batch.view == 0:
                labels.append(batch.targets.labels)
                sizes.append(batch.sizes)
        joined = [torch.cat(logits[view]) for view in range(len(logits))]
        some, weights = torch.from_numpy(self.some), None
        if self.num_sampled:
            views, rows, their_sizes = range(self.num_sampled), self.rows[self.some], np.concatenate(sizes)[self.some]
            near = [nearness.weights(view, views, rows, their_sizes) for view in views]
            weights = torch.from_numpy(np.stack(near)).transpose(1, 2)
        whole = torch.stack(joined[: self.num_whole])
        sampled = [own[some] if view < self.num_whole else own for view, own in enumerate(joined)][: self.num_sampled]
        return self.calibrated(whole, torch.cat(labels), sampled, weights)

    def calibrated(self, whole: Tensor, labels: Tensor, sampled: list[Tensor], weights: Tensor | None) -> Calibration:
        """The calibration of logits.

        Args:
            whole: float [whole view, row, *grid, class], of all the rows.
            labels: int64 [row], or [row, height, width], of them, class ids or `NO_LABEL`.
            sampled: float [n, class] of each sampled view, of some of the rows.
            weights: int16 [view, other, n], how near these are; None where there are none.
        """
        views = None
        if weights is not None:
            views = SampledViews(
                logits=torch.stack(sampled).float(),
                labels=coded(labels[torch.from_numpy(self.some)]),
                weights=weights,
                num_views=self.num_views,
            )
        return Calibration(
            self.request,
            whole,
            labels,
            stored_rows=self.num_rows * self.num_views,
            views=views,
            outputs=self.cells.outputs,
        )
