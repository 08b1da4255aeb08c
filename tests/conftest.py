"""Small real sources and teachers that the tests share."""

from pathlib import Path

import numpy as np
import pytest
import torch
from small import build_small, take

from gdkd_cache import open_source
from gdkd_cache.data import ArraySource
from gdkd_cache.models import ModelCard, build_model, save_weights
from gdkd_cache.pipeline.teacher import Teacher, open_teacher


@pytest.fixture(scope="session")
def digits() -> ArraySource:
    """256 of scikit-learn's digits."""
    source = open_source("digits")
    assert isinstance(source, ArraySource)
    return take(source, np.arange(256))


@pytest.fixture(scope="session")
def digits_test() -> ArraySource:
    """64 digits of the test split."""
    source = open_source("digits", split="test")
    return take(source, np.arange(64))


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of an untrained cnn-s with logits of a trained one's spread, with their card."""
    path = tmp_path_factory.mktemp("teacher") / "best.safetensors"
    torch.manual_seed(1)
    model = build_model("cnn-s", 10)
    with torch.no_grad():
        for parameter in list(model.parameters())[-2:]:
            parameter.mul_(10)
    card = ModelCard(name="cnn-s", num_classes=10, size=(8, 8), mean=(0.3, 0.3, 0.3), std=(0.4, 0.4, 0.4), accuracy=0.1)
    save_weights(model, card, path)
    return path


@pytest.fixture(scope="session")
def teacher(weights: Path, digits: ArraySource) -> Teacher:
    """A teacher on the CPU for the digits."""
    return open_teacher("cnn-s", weights, digits, device="cpu")


@pytest.fixture(scope="session")
def digits_cache(tmp_path_factory: pytest.TempPathFactory, digits: ArraySource, teacher: Teacher) -> Path:
    """A finished dense cache of the digits, two crop-flip views; not to be changed."""
    path = tmp_path_factory.mktemp("cache") / "digits.zarr"
    build_small(path, digits, teacher, codec="dense")
    return path
