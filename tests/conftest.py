"""Small real sources and teachers that the tests share, and an object store.

Imports stand in the fixtures, because the process that only hands tests out to others reads this file too.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

if TYPE_CHECKING:
    from faulty import FaultyProxy

    from gdkd_cache.data.source import ArraySource
    from gdkd_cache.models.network import Network


@pytest.fixture(scope="session")
def digits() -> ArraySource:
    """256 of scikit-learn's digits."""
    import numpy as np
    from small import take

    from gdkd_cache import open_source
    from gdkd_cache.data.source import ArraySource

    source = open_source("digits")
    assert isinstance(source, ArraySource)
    return take(source, np.arange(256))


@pytest.fixture(scope="session")
def digits_test() -> ArraySource:
    """64 digits of the test split."""
    import numpy as np
    from small import take

    from gdkd_cache import open_source

    source = open_source("digits", split="test")
    return take(source, np.arange(64))


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of an untrained cnn-s with logits of a trained one's spread, with their card."""
    import torch

    from gdkd_cache.models.build import build_model
    from gdkd_cache.models.card import ModelCard
    from gdkd_cache.models.weights import save_weights

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
def teacher(weights: Path, digits: ArraySource) -> Network:
    """A teacher on the CPU for the digits."""
    from gdkd_cache.models.opening import open_network

    return open_network("cnn-s", weights, 10, device="cpu")


@pytest.fixture(scope="session")
def digits_cache(tmp_path_factory: pytest.TempPathFactory, digits: ArraySource, teacher: Network) -> Path:
    """A finished dense cache of the digits, two crop-flip views; not to be changed."""
    from small import build_small

    path = tmp_path_factory.mktemp("cache") / "digits.zarr"
    build_small(path, digits, teacher, codec="dense")
    return path


@pytest.fixture(scope="session")
def few(digits: ArraySource) -> ArraySource:
    import numpy as np
    from small import take

    return take(digits, np.arange(40))


@pytest.fixture(scope="session")
def caches(tmp_path_factory: pytest.TempPathFactory, few: ArraySource, teacher: Network) -> dict[str, Path]:
    """One whole cache a codec: 40 digits, two views in three shards each."""
    from hostile import CODECS, outcome
    from small import build_small

    folder = tmp_path_factory.mktemp("caches")
    for codec in CODECS:
        build_small(folder / codec, few, teacher, codec=codec, shard_rows=16)
        assert outcome(folder / codec, few) == "read"
    return {codec: folder / codec for codec in CODECS}


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory, digits: ArraySource) -> Path:
    """The 256 digits in five shards, in another order than the cache's; not to be changed."""
    from small import write_shards

    folder = tmp_path_factory.mktemp("images")
    write_shards(folder, digits, (70, 1, 60, 83, 42))  # nothing is divisible by anything
    return folder


@pytest.fixture(scope="session")
def server() -> Iterator[int]:
    """The port of an S3 endpoint on this machine."""
    from moto.server import ThreadedMotoServer

    endpoint = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    endpoint.start()
    yield endpoint.get_host_and_port()[1]
    endpoint.stop()


@pytest.fixture
def proxy(server: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """A way to the endpoint that can go wrong, and the environment that leads there."""
    from faulty import SECRET, FaultyProxy

    from gdkd_cache.objects import connection

    proxy = FaultyProxy(server)
    settings = {"ACCESS_KEY_ID": "someone", "SECRET_ACCESS_KEY": SECRET, "SESSION_TOKEN": f"token-{SECRET}"}
    for name, value in (settings | {"ENDPOINT_URL": proxy.url, "ALLOW_HTTP": "true", "REGION": "us-east-1"}).items():
        monkeypatch.setenv(f"AWS_{name}", value)
    backoff = {"init_backoff": timedelta(milliseconds=10), "max_backoff": timedelta(milliseconds=20)}
    monkeypatch.setattr(connection, "_RETRY", {"max_retries": 8, "backoff": backoff})
    yield proxy
    proxy.close()


@pytest.fixture
def bucket(proxy: FaultyProxy) -> str:
    """The URL of a new bucket."""
    name = uuid4().hex
    assert proxy.forward("PUT", f"/{name}", b"", {}).status == 200
    return f"s3://{name}"
