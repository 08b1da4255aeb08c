"""Teacher hacking: found where agreement rises and accuracy falls, and nowhere else; told once by a training."""

import logging
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gdkd_cache.data.source import ArraySource
from gdkd_cache.training.hacking import hacking_since
from gdkd_cache.training.train import TrainOptions, train


def lines(agreement: list[float], accuracy: list[float]) -> list[dict[str, float]]:
    return [{"agreement": a, "accuracy": b} for a, b in zip(agreement, accuracy, strict=True)]


RISING = [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9]
HUMP = [0.3, 0.4, 0.5, 0.55, 0.5, 0.45, 0.4, 0.35]


def test_found_after_the_best_three_epochs() -> None:
    # Means of three: .40 .483 .517 .50 .45 .40; the highest ends with epoch 5.
    assert hacking_since(lines(RISING, HUMP), 10_000) == 5


def test_a_fall_within_the_error_of_few_images_is_none() -> None:
    # .517 - .40 = .117; two errors of 100 images are 2 sqrt(2 .517 .483 / 100) = .141, of 1000 images .045.
    assert hacking_since(lines(RISING, HUMP), 100) is None
    assert hacking_since(lines(RISING, HUMP), 1000) == 5


@pytest.mark.parametrize(
    ("agreement", "accuracy"),
    [(RISING, RISING), (HUMP, HUMP), (RISING[:4], HUMP[:4]), (RISING[:2], HUMP[:2]), ([], [])],
)
def test_nothing_where_both_go_one_way_or_too_few(agreement: list[float], accuracy: list[float]) -> None:
    assert hacking_since(lines(agreement, accuracy), 10_000) is None


def test_nothing_without_a_teacher() -> None:
    assert hacking_since([{"accuracy": value} for value in HUMP], 10_000) is None


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=12), st.integers(1, 10**6))
def test_only_ever_an_epoch_before_the_last(values: list[tuple[float, float]], images: int) -> None:
    found = hacking_since(lines([a for a, _ in values], [b for _, b in values]), images)
    assert found is None or 3 <= found < len(values)


def test_a_training_tells_it_once(
    tmp_path: Path, digits: ArraySource, digits_test: ArraySource, caplog: pytest.LogCaptureFixture
) -> None:
    """A student that knows digits, and a teacher that takes all for ones: it learns that, a little more each epoch."""
    first = TrainOptions(student="small:linear_student", epochs=10, out=tmp_path / "first")
    assert train(first, digits, digits_test).last_accuracy > 0.5

    def ones(pixels: torch.Tensor) -> torch.Tensor:
        return torch.tensor([0.0, 3.0, *[0.0] * 8]).expand(len(pixels), 10)

    options = TrainOptions(
        student="small:linear_student",
        init=str(tmp_path / "first/last.safetensors"),
        loss="kd:temperature=1",
        ce_weight=0.0,
        lr=0.003,
        epochs=8,
        schedule="multistep:at=100",
        out=tmp_path / "second",
    )
    with caplog.at_level(logging.WARNING):
        train(options, digits, digits_test, teacher=ones)
    told = [record.getMessage() for record in caplog.records if "teacher hacking" in record.getMessage()]
    assert len(told) == 1, told
    assert told[0].startswith("since epoch 3 the student agrees more and more with the teacher")
