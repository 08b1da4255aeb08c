"""The loss of images with masks: pixels and cells, against loops over them."""

import pytest
import torch
from torch.nn import functional as F

from gdkd_cache.cache.batch import TeacherBatch
from gdkd_cache.data.masks import IGNORE, cell_labels
from gdkd_cache.losses.base import parse_loss
from gdkd_cache.training.mask_task import MaskTask

CLASSES, OUTPUTS = 4, ("main", "aux")


def inputs(ignored: float = 0.3) -> tuple[dict[str, torch.Tensor], torch.Tensor, TeacherBatch]:
    """A student's outputs on a 3x4 grid, masks of 12x16 pixels, and a teacher's on a 6x8 grid."""
    generator = torch.Generator().manual_seed(1)
    student = {name: torch.randn(2, CLASSES, 3, 4, generator=generator).requires_grad_() for name in OUTPUTS}
    masks = torch.randint(0, CLASSES, (2, 12, 16), generator=generator)
    masks[torch.rand(2, 12, 16, generator=generator) < ignored] = IGNORE
    logits = torch.randn(2, 2, 6, 8, CLASSES, generator=generator)
    top = logits.topk(2, dim=-1).indices
    return student, masks, TeacherBatch(logits, top, torch.arange(2), 0)


def task(loss: str, **fields: object) -> MaskTask:
    given = {"distillation": parse_loss(loss), "ce_weight": 1.0, "distillation_weight": 1.0, "warmup": 0}
    return MaskTask(**{**given, "outputs": OUTPUTS, **fields})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("loss", ["gdkd:k=2,temperature=1", "kd:temperature=4", "dkd:beta=2,temperature=2"])
def test_terms_are_means_over_pixels_and_cells(loss: str) -> None:
    student, masks, said = inputs()
    terms = task(loss, aux_weight=0.3).terms(student, masks, said, 0)
    ce, distillation, agreeing = torch.zeros(()), torch.zeros(()), []
    for number, (name, weight) in enumerate({"main": 1.0, "aux": 0.3}.items()):
        full = F.interpolate(student[name], (12, 16), mode="bilinear", align_corners=True)
        pixels = [F.cross_entropy(full[b, :, y, x], masks[b, y, x]) for b, y, x in (masks != IGNORE).nonzero().tolist()]
        ce = ce + weight * torch.stack(pixels).mean()
        own = F.interpolate(student[name], (6, 8), mode="bilinear", align_corners=True)
        cells = []
        for b in range(2):
            for y in range(6):
                for x in range(8):
                    label = masks[b, 2 * y + 1, 2 * x + 1]  # the pixel behind the centre of the 2x2
                    if label != IGNORE:
                        at = (b, number, y, x)
                        one = (own[b, :, y, x], said.logits[at], label, said.top[at])
                        cells.append(parse_loss(loss)(*(part[None] for part in one)))
                        if name == "main":
                            agreeing.append(float(own[b, :, y, x].argmax() == said.top[at][0]))
        distillation = distillation + weight * torch.stack(cells).mean()
    torch.testing.assert_close(terms["ce"], ce)
    torch.testing.assert_close(terms["distillation"], distillation)
    torch.testing.assert_close(terms["loss"], ce + distillation)
    assert float(terms["agreement"]) == pytest.approx(sum(agreeing) / len(agreeing))


def test_only_outputs_of_both_are_distilled() -> None:
    student, masks, said = inputs()
    both = task("kd:temperature=1").terms(student, masks, said, 0)["distillation"]
    main = task("kd:temperature=1").terms({"main": student["main"]}, masks, said, 0)["distillation"]
    alone = task("kd:temperature=1", outputs=()).terms(
        student["main"], masks, TeacherBatch(said.logits[:, 0], said.top[:, 0], said.rows, 0), 0
    )
    assert float(main.detach()) < float(both.detach())
    torch.testing.assert_close(main, alone["distillation"])


def test_masks_that_ignore_all_give_nothing_and_no_nan() -> None:
    student, masks, said = inputs(ignored=1.0)
    terms = task("gdkd:k=2").terms(student, masks, said, 0)
    terms["loss"].backward()
    assert float(terms["loss"].detach()) == 0
    assert all(bool((one.grad == 0).all()) for one in student.values())


def test_a_look_at_gradients_counts_cells() -> None:
    student, _, said = inputs()
    seen = task("gdkd:k=2,temperature=1").look(student, said, 0)
    assert seen is not None
    assert float(seen[0]) == 1
    assert bool(seen.isfinite().all())


def test_cell_labels_are_at_the_centres() -> None:
    masks = torch.arange(35).reshape(1, 5, 7)
    # Centres of 2 cells over 5 pixels: 1.25, 3.75; of 3 over 7: 1.17, 3.5, 5.83.
    assert cell_labels(masks, (2, 3)).tolist() == [[[8, 10, 12], [22, 24, 26]]]
    assert torch.equal(cell_labels(masks, (5, 7)), masks)
