"""build --noise: the mechanism against its equations, and a secret that goes with the build in progress."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import build_small, counting

from gdkd_cache import open_cache
from gdkd_cache.building.noise import Noise, projected
from gdkd_cache.building.repair import repair
from gdkd_cache.checking.verify import verify
from gdkd_cache.data.source import ArraySource
from gdkd_cache.data.views import ViewRenderer, ViewRequest
from gdkd_cache.errors import CacheError, MismatchError, UsageError
from gdkd_cache.models.network import Network
from gdkd_cache.store.card import card_facts, readme

_EPSILON = 30.0
_NOISE = Noise(epsilon=_EPSILON, secret=bytes(range(32)))


def _slow(point: list[float]) -> list[float]:
    """The projection to the simplex by bisection: max(x - t, 0) with the t at which they sum up to 1."""
    low, high = min(point) - 1, max(point)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(max(x - middle, 0) for x in point) > 1 else (low, middle)
    return [max(x - low, 0) for x in point]


def test_the_projection_is_that_of_a_slow_reference() -> None:
    values = torch.randn(20, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.5
    wanted = torch.tensor([_slow(row.tolist()) for row in values], dtype=torch.float64)
    torch.testing.assert_close(projected(values), wanted, rtol=0, atol=1e-12)


def test_what_is_kept_follows_its_equation() -> None:
    logits, keys = torch.randn(3, 6, generator=torch.Generator().manual_seed(0)), ["a", "b", "c"]
    kept = _NOISE.added(logits, 2, keys)
    for row, key in enumerate(keys):
        released = logits[row].double().softmax(-1).numpy() + _NOISE._draws(2, key, 6)
        wanted = [math.log(0.99 * x + 0.01 / 6) for x in _slow(released.tolist())]
        assert kept[row].tolist() == pytest.approx(wanted, abs=1e-5)


def test_noise_is_of_the_stated_distribution() -> None:
    """Laplace of scale 2 / epsilon, each draw of its own: what the guarantee follows from."""
    scale, count = 2 / _EPSILON, 20_000
    draws = np.concatenate([_NOISE._draws(view, "key", 100) for view in range(count // 100)])
    cumulated = np.where(draws < 0, np.exp(draws / scale) / 2, 1 - np.exp(-draws / scale) / 2)
    distance = np.abs(np.sort(cumulated) - (np.arange(count) + 0.5) / count).max()
    assert distance < 1.95 / math.sqrt(count)  # Kolmogorov and Smirnov's, at 0.1%
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 4 / math.sqrt(count)
    assert len(set(draws)) == count


def test_the_density_of_two_distributions_differs_by_epsilon_at_most() -> None:
    """Also of those that are as far apart as any two are."""
    one, other = np.eye(2)
    released = np.random.default_rng(0).uniform(-3, 4, (1000, 2))
    ratio = (np.abs(released - other).sum(1) - np.abs(released - one).sum(1)) * _EPSILON / _NOISE.facts.sensitivity
    assert ratio.max() <= _EPSILON * (1 + 1e-12)
    assert ratio.max() == pytest.approx(_EPSILON)


def test_noise_is_that_of_its_address_alone() -> None:
    draws = _NOISE._draws(1, "key", 5)
    assert np.array_equal(draws, _NOISE._draws(1, "key", 5))
    assert np.array_equal(draws[:3], _NOISE._draws(1, "key", 3))
    others = [(_NOISE, 2, "key"), (_NOISE, 1, "kez"), (Noise(epsilon=_EPSILON, secret=bytes(32)), 1, "key")]
    for noise, view, key in others:
        assert not np.isin(noise._draws(view, key, 5), draws).any()


def _build(out: Path, source: ArraySource, teacher: Network, **options: Any) -> None:
    build_small(out, source, teacher, codec="dense:dtype=float32", noise=_EPSILON, shard_rows=16, **options)


def test_a_build_goes_on_with_its_secret_and_keeps_none(tmp_path: Path, few: ArraySource, teacher: Network) -> None:
    """Killed after some shards; all that is kept is that of the one secret, which no file has in the end."""
    out = tmp_path / "c.zarr"
    interrupted, _ = counting(teacher, fail_after=100)
    with pytest.raises(KeyboardInterrupt):
        _build(out, few, interrupted)
    (place,) = out.glob("claims/*/noise/0.json")
    secret = place.read_bytes()
    assert len(secret) == 32
    assert [*out.glob("ledger/*/*.json")]
    _build(out, few, teacher)
    files = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert not [path for path, data in files.items() if secret in data or secret.hex().encode() in data]
    assert not (out / "claims").exists() or not [*(out / "claims").rglob("*.json")]

    cache, noise = open_cache(out), Noise(epsilon=_EPSILON, secret=secret)
    renderer = ViewRenderer(few, cache.dataset(few).recipe, 0)
    for number in cache.view_numbers:
        (batch,) = renderer[ViewRequest((number,), np.arange(len(few)))]
        clean = teacher.logits(batch.pixels)
        kept, wanted = cache.view(number).logits(range(len(few))), noise.added(clean, number, few.keys)
        assert (kept - kept.mean(-1, keepdim=True) - wanted + wanted.mean(-1, keepdim=True)).abs().max() < 1e-3
        assert (kept.softmax(-1) - clean.softmax(-1)).abs().mean() > 0.01


def test_two_builds_differ_and_say_what_they_hide(tmp_path: Path, few: ArraySource, teacher: Network) -> None:
    for name in ("one", "other"):
        _build(tmp_path / name, few, teacher)
    one, other = open_cache(tmp_path / "one"), open_cache(tmp_path / "other")
    assert one.manifest.identity == other.manifest.identity
    assert one.manifest.digest != other.manifest.digest
    assert one.manifest.identity.examination is None
    said = card_facts(one.manifest.identity)["noise"]
    assert "a view is 30-differentially private, of the 2 views of an image 60" in said
    assert "labels and the teacher's training data are not protected" in said
    assert said.encode() in readme(one.manifest.identity)


def test_what_needs_the_exact_logits_is_refused(tmp_path: Path, few: ArraySource, teacher: Network) -> None:
    out = tmp_path / "c.zarr"
    _build(out, few, teacher)
    assert not verify(out, deep=True, source=few).problems
    with pytest.raises(UsageError, match=r"has noise \(epsilon 30\) whose secret is deleted.*leave the teacher out"):
        verify(out, source=few, teacher=teacher)
    with pytest.raises(CacheError, match="has noise whose secret is deleted, so that no view can be built again"):
        repair(out, source=few, teacher=teacher)
    with pytest.raises(MismatchError, match=r"noise is .* there, null asked|noise is .* there, None asked"):
        build_small(out, few, teacher, codec="dense:dtype=float32", shard_rows=16)
