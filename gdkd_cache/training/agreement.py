"""How far a student says what its teacher said of the same views: from a cache, without the teacher."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from gdkd_cache.cache.dataset import CachedDataset
from gdkd_cache.data.masks import cell_labels
from gdkd_cache.errors import ModelError
from gdkd_cache.models.cells import MAIN, named_outputs, upsampled
from gdkd_cache.models.trial import check_logits, running
from gdkd_cache.training.distributed import sum_over_ranks


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """What a student and its teacher say of one view of every image, or of each cell of its grid (main output).

    Attributes:
        agreement: how often the student's first class is the teacher's, in [0, 1]; the cache keeps that one exactly.
        divergence: the mean of KL(teacher || student) = sum p_t (log p_t - log p_s) over images or cells, at
            temperature 1, in nats, of the teacher's logits as the cache gives them: within its error of those of the
            teacher.
        accuracy: top-1 against the labels, on these views, of cells those of the pixels at their centres; None where
            the recipe mixes images, or nothing has a label.
        view: which one.
        num_rows: images seen.
    """

    agreement: float
    divergence: float
    accuracy: float | None
    view: int
    num_rows: int


@torch.inference_mode()
def agree(
    model: nn.Module,
    dataset: CachedDataset,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device,
    batch_size: int = 512,
    num_workers: int = 0,
) -> Agreement:
    """Compare a student with the teacher of a cache, on its first view; ranks see a part of it each.

    Args:
        model: float images [batch, 3, height, width] -> logits [batch, class], or a dense one, whose cells are
            resized to the teacher's grid; it is left in the mode that it was in.
        dataset: the cache, joined with its images.
        mean, std: channel statistics that the student's inputs are normalised with.
        device: where to compute; the student's.
        batch_size: images a batch.
        num_workers: processes that render.

    Raises:
        ModelError: the student fails, or its outputs are not finite.
        CacheError, MismatchError, SourceError: as `CachedDataset.loader`.
    """
    was_training, view = model.training, dataset.view_numbers[0]
    model.eval()
    sums = torch.zeros(6, dtype=torch.float64)
    batches = dataset.loader(
        0, batch_size=batch_size, normalize=(tuple(mean), tuple(std)), num_workers=num_workers, device=device
    )
    for images, labels, teacher in batches:
        with running("the network"):
            outputs = model(images)
        said, top = teacher.logits, teacher.top
        if dataset.cells.outputs:
            said, top = said[:, 0], top[:, 0]
        if labels.ndim == 3:
            grid = (said.shape[1], said.shape[2])
            logits = upsampled(named_outputs(outputs)[MAIN].float(), grid).movedim(1, -1)
            labels = cell_labels(labels, grid)
        else:
            check_logits("the network", outputs)
            logits = outputs.float()
        first = logits.argmax(-1)
        apart = F.kl_div(logits.log_softmax(-1), said.log_softmax(-1), reduction="sum", log_target=True)
        same = (first == top[..., 0]).sum()
        mixed = labels.is_floating_point()
        # IGNORE and NO_LABEL are below 0.
        right = (0, 0) if mixed else (int((first == labels).sum()), int((labels >= 0).sum()))
        sums += torch.tensor([int(same), float(apart), first.numel(), len(images), *right], dtype=torch.float64)
    model.train(was_training)
    same, apart, number, num_rows, hits, labelled = sum_over_ranks(sums.to(device)).tolist()
    if not math.isfinite(apart):
        raise ModelError(f"on view {view} the network's outputs, or what the teacher said, are not finite")
    return Agreement(
        agreement=same / number,
        divergence=apart / number,
        accuracy=hits / labelled if labelled else None,
        view=view,
        num_rows=int(num_rows),
    )
