"""Numbers of a report against slow, obvious ways to count the same."""

import math

import numpy as np
import pytest
import torch

from gdkd_cache import loss
from gdkd_cache.codec.base import exact_top
from gdkd_cache.codec.expected import expected_noise
from gdkd_cache.codec.fidelity import gradient, gradient_error
from gdkd_cache.report.numbers.errors import bin_of, confidence, error_by_group, kept_probabilities
from gdkd_cache.report.numbers.series import band, metric, spread_evenly
from gdkd_cache.report.numbers.sizes import bytes_by_array


def test_error_by_group() -> None:
    generator = torch.Generator().manual_seed(0)
    full, cached = torch.randn(2, 40, 7, generator=generator)
    full[:5], cached[:5] = 0, 0
    groups = np.array([3] * 5 + [0] * 10 + [1] * 25)
    errors, counts = error_by_group(full, cached, groups, 5)
    assert counts.tolist() == [10, 25, 0, 5, 0]
    for group in (0, 1):
        one, other = (part[torch.from_numpy(groups == group)].double() for part in (full, cached))
        wanted = math.sqrt(
            sum((a - b) ** 2 for a, b in zip(one.flatten().tolist(), other.flatten().tolist(), strict=True))
        )
        size = math.sqrt(sum(a**2 for a in one.flatten().tolist()))
        assert errors[group] == pytest.approx(wanted / size)
    assert np.isnan(errors[2:]).all()


def test_kept_probabilities() -> None:
    """The kept classes have their float16 probabilities, the others the rest in equal parts."""
    logits = torch.tensor([[4.0, 3.0, 0.0, -1.0, 2.0], [100.0, 0.0, 0.0, 0.0, 0.0]])
    found = kept_probabilities(logits, 2).exp()
    whole = [math.exp(value) for value in (4, 3, 0, -1, 2)]
    first, second = (float(np.float16(math.exp(value) / sum(whole))) for value in (4, 3))
    rest = (1 - first - second) / 3
    assert found[0].tolist() == pytest.approx([first, second, rest, rest, rest])
    assert found[1, 0] == 1
    assert found[1, 1:].max() <= 2.0**-24 * 1.01
    assert found.log().isfinite().all()


def test_bins() -> None:
    edges = np.linspace(0, 1, 5)
    values = np.array([0.0, 0.24, 0.25, 0.5, 0.99, 1.0])
    assert bin_of(values, edges).tolist() == [0, 0, 1, 2, 3, 3]
    assert confidence(torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]])).tolist() == pytest.approx([0.5, 0.75])


def test_bytes_by_array() -> None:
    sizes = {"packed/c/0/0/0": 100, "packed/zarr.json": 5, "zarr.json": 7, "README.md": 3, "keys/c/0": 40}
    assert bytes_by_array(sizes) == {"packed": 105, "keys": 40, "": 10}
    assert list(bytes_by_array(sizes)) == ["packed", "keys", ""]


def test_metric() -> None:
    lines = [{"a": 1}, {}, {"a": "text"}, {"a": True}, {"a": 2.5}, {"a": float("inf")}, {"a": 10**400}, {"a": [1]}]
    assert metric(lines, "a").tolist()[0::4] == [1.0, 2.5]
    assert np.isnan(metric(lines, "a")).tolist() == [False, True, True, True, False, True, True, True]


def test_band() -> None:
    nan = float("nan")
    mean, spread = band([np.array([1.0, 2.0, nan, nan]), np.array([3.0, nan, nan]), np.array([5.0])])
    assert mean[:2].tolist() == [3.0, 2.0]
    assert spread[0] == 2.0  # n - 1; of n it is 1.63
    assert np.isnan(mean[2:]).all()
    assert np.isnan(spread[1:]).all()
    assert [len(part) for part in band([])] == [0, 0]


def test_spread_evenly() -> None:
    assert spread_evenly(5, 10).tolist() == [0, 1, 2, 3, 4]
    assert spread_evenly(101, 5).tolist() == [0, 25, 50, 75, 100]
    assert spread_evenly(3, 1).tolist() == [0]


def test_estimates_by_confidence_are_near_the_truth() -> None:
    """Of logits that are all known: what a coarse step loses, by the teacher's confidence, against the estimate."""
    generator = torch.Generator().manual_seed(0)
    wanted = loss("gdkd:k=5,temperature=2")
    scale = torch.rand(4000, 1, generator=generator) * 6 + 1
    logits = scale * torch.randn(4000, 20, generator=generator)
    labels, top = logits.argmax(1), exact_top(logits, 8).classes
    decoded = (logits / 1.5).round() * 1.5
    decoded.scatter_(1, top, logits.gather(1, top))
    error = gradient_error(wanted, logits, decoded, labels, top)
    noise = expected_noise(wanted, error, decoded, labels, top, exact_values=True)
    groups = bin_of(confidence(decoded), np.linspace(0, 1, 6))
    full, true, guessed = (gradient(wanted, z, labels, top) for z in (logits, decoded, decoded + noise))
    real, counts = error_by_group(full, true, groups, 5)
    estimated, _ = error_by_group(true, guessed, groups, 5)
    assert (counts > 100).all()
    assert np.abs(np.log2(estimated / real)).max() < 1
