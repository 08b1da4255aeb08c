"""Caches and trainings that reports are made of in tests."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hostile_names import HOSTILE_NAMES
from small import build_small

from gdkd_cache import open_cache
from gdkd_cache.data.source import ArraySource
from gdkd_cache.models.build import build_model
from gdkd_cache.models.card import ModelCard
from gdkd_cache.models.opening import open_network
from gdkd_cache.models.weights import save_weights


def run_folder(path: Path, accuracies: list[float], *, digest: str | None = None, **options: Any) -> Path:
    """A training's folder as `train` leaves it."""
    path.mkdir(parents=True)
    train = {"loss": "gdkd", "student": "cnn-s", "seed": 0, "epochs": len(accuracies), "lr": 0.05} | options
    lines = ["[train]", *(f"{name} = {json.dumps(value)}" for name, value in train.items())]
    if digest is not None:
        lines += ["[[cache]]", 'path = "c.zarr"', f"digest = {json.dumps(digest)}", "bytes_per_view = 8.125"]
    (path / "run.toml").write_text("\n".join([*lines, ""]))
    with (path / "metrics.jsonl").open("w") as file:
        for epoch, accuracy in enumerate(accuracies, 1):
            line = {"epoch": epoch, "loss": 3 / epoch, "accuracy": accuracy, "eval_loss": 2 / epoch, "lr": 0.05}
            line |= {"calibration_error": 0.2 / epoch, "agreement": accuracy, "images_per_second": 1000.0}
            file.write(json.dumps(line | {"memory_bytes": 2**28}) + "\n")
    return path


def hostile_cache(folder: Path, digits: ArraySource) -> tuple[Path, ArraySource]:
    """A cache, and its source, whose classes and keys have hostile names."""
    names = [name.replace("\n", " ") for name in HOSTILE_NAMES]
    keys = [f"{row:03d}{names[row % (len(names) - 1)].splitlines()[0]}" for row in range(128)]
    source = ArraySource(
        name="digits<script>",
        images=digits.images[:128],
        labels=np.arange(128) % len(names),
        keys=[key.replace("\x1b", "") for key in keys],
        classes=names,
        mean=digits.mean,
        std=digits.std,
    )
    torch.manual_seed(0)
    model = build_model("cnn-s", len(names))
    with torch.no_grad():
        for parameter in list(model.parameters())[-2:]:
            parameter.mul_(10)
    card = ModelCard(name="cnn-s", num_classes=len(names), size=(8, 8), mean=(0.3,) * 3, std=(0.4,) * 3, accuracy=0.1)
    save_weights(model, card, folder / "teacher.safetensors")
    teacher = open_network("cnn-s", folder / "teacher.safetensors", len(names), device="cpu")
    build_small(folder / "hostile.zarr", source, teacher, codec="dense", contact="=x <b> {{7*7}}")
    assert open_cache(folder / "hostile.zarr").num_classes == len(names)
    return folder / "hostile.zarr", source
