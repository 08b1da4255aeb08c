"""What is attacked: a small teacher, images, caches of them in both forms and a training, made by the commands."""

import io
import json
import os
import shutil
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from kill_builds import first_rows, save_teacher
from PIL import Image

from gdkd_cache.models.weights import load_card

NUM_TRAIN, NUM_TEST = 64, 16
STUDENT = ("--student", "cnn-s", "--epochs", 2, "--batch-size", 32, "--workers", 0, "--device", "cpu")
LOSS = "gdkd:k=3,w2=2"
_EVIL = """
import os
with open(os.environ["ATTACK_MARK"], "a") as mark:
    mark.write("imported")
def make(*given, **named):
    with open(os.environ["ATTACK_MARK"], "a") as mark:
        mark.write("called")
class Thing:
    __init__ = make
"""


@dataclass(frozen=True)
class Kit:
    """Files under one folder.

    Attributes:
        folder: of them all; what stands in `outside` is nobody's.
    """

    folder: Path

    @property
    def weights(self) -> Path:
        return self.folder / "teacher.safetensors"

    @property
    def card(self) -> dict[str, Any]:
        """What the weights' header says of them."""
        card = load_card(self.weights)
        assert card is not None
        return card.to_json()

    @property
    def images(self) -> Path:
        """A folder of PNG files, `train` and `val`, one folder a class."""
        return self.folder / "images"

    @property
    def shards(self) -> Path:
        """Two shards of the same images, and `classes.txt`."""
        return self.folder / "shards"

    @property
    def cache(self) -> Path:
        """Two views of the images."""
        return self.folder / "images.zarr"

    @property
    def shard_cache(self) -> Path:
        """Two views of the shards."""
        return self.folder / "shards.zarr"

    @property
    def sidecars(self) -> Path:
        """The same as sidecars, in a folder of their own."""
        return self.folder / "sidecars"

    @property
    def logits(self) -> Path:
        """A .npy of [view, row, class], as `pack` takes it."""
        return self.folder / "logits.npy"

    @property
    def trained(self) -> Path:
        """What a training from `cache` gives, to the bit."""
        return self.folder / "trained"

    @property
    def stopped(self) -> Path:
        """What a kill left of a longer training from `cache`, with a state to go on from."""
        return self.folder / "stopped"

    @property
    def ended(self) -> Path:
        """What that training gives where nothing stops it."""
        return self.folder / "ended"

    @property
    def outside(self) -> Path:
        return self.folder / "outside"

    def copy(self, path: Path, place: Path) -> Path:
        """A copy of a file or folder of the kit, to be damaged."""
        return Path((shutil.copytree if path.is_dir() else shutil.copy)(path, place / path.name))

    def torch_file(self, place: Path) -> Path:
        """A path for a torch file, with a card beside it."""
        path = place / "teacher.pt"
        path.with_suffix(".json").write_text(json.dumps(self.card))
        return path

    @staticmethod
    def data(images: Path) -> str:
        """What `--data` names a folder of images, or of shards, by."""
        return f"imagefolder:{images}" if (images / "train").exists() else f"wds:{images}/part-{{0..1}}.tar"

    def train(self, cache: Path, images: Path, out: Path) -> list[object]:
        """The command of a training from a cache."""
        evaluated = self.data(self.images)
        where = ("--data", self.data(images), "--cache", cache, "--eval-data", evaluated, "--out", out)
        return ["train", "--loss", LOSS, *where, *STUDENT]

    def long_training(self, out: Path) -> list[object]:
        """The command of the training that `stopped` is of."""
        return [*self.train(self.cache, self.images, out), "--epochs", 12, "--save-every", 3]

    def build(self, images: Path, weights: Path, out: Path) -> list[object]:
        """The command of a build."""
        how = ("--views", 2, "--batch-size", 32, "--workers", 0, "--codec", "transform:step=0.5", "--device", "cpu")
        return [
            "build",
            "--accept-teacher",
            "--data",
            self.data(images),
            "--teacher",
            "cnn-s",
            "--weights",
            weights,
            *how,
            "--out",
            out,
        ]

    def evaluate(self, images: Path | None = None, weights: Path | None = None) -> list[object]:
        """The command of an evaluation on images, with weights; of the kit where none are given."""
        where = ("--data", self.data(images or self.images), "--weights", weights or self.weights)
        return ["eval", *where, "--device", "cpu", "--workers", 0]

    def commands(self) -> Sequence[Sequence[object]]:
        """What makes the rest of the kit of its images and weights."""
        return (
            self.build(self.images, self.weights, self.cache),
            [*self.build(self.shards, self.weights, self.shard_cache), "--sidecars", self.sidecars],
            self.train(self.cache, self.images, self.trained),
            self.long_training(self.ended),
            self.evaluate(weights=self.trained / "best.safetensors"),
            ["pack", self.logits, self.folder / "packed.zarr", "--codec", "dense"],
        )


def begin_kit(folder: Path) -> Kit:
    """Images, weights, and what leaves a mark where it is executed; the rest is for the kit's own commands."""
    kit = Kit(folder)
    train = first_rows("digits", NUM_TRAIN + NUM_TEST)
    names = [str(name) for name in train.classes]
    save_teacher(kit.weights, train)
    pictures = [Image.fromarray(image.transpose(1, 2, 0)) for image in train.images]
    for row, (picture, label) in enumerate(zip(pictures, train.labels.tolist(), strict=True)):
        for split in ("train", "val"):
            (kit.images / split / names[label]).mkdir(parents=True, exist_ok=True)
        picture.save(kit.images / ("train" if row < NUM_TRAIN else "val") / names[label] / f"{row:03d}.png")
    kit.shards.mkdir()
    for part in range(2):
        with tarfile.open(kit.shards / f"part-{part}.tar", "w") as tar:
            for row in range(part, NUM_TRAIN, 2):
                png = io.BytesIO()
                pictures[row].save(png, "PNG")
                for kind, data in (("cls", b"%d" % train.labels[row]), ("png", png.getvalue())):
                    member = tarfile.TarInfo(f"{row:03d}.{kind}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    (kit.shards / "classes.txt").write_text("\n".join(names))
    np.save(kit.logits, np.random.default_rng(0).normal(size=(2, 40, 10)).astype(np.float16))
    kit.outside.mkdir()
    (kit.outside / "precious.txt").write_text("a thesis")
    (folder / "evil").mkdir()
    (folder / "evil" / "evil.py").write_text(_EVIL)
    (folder / "bin").mkdir()
    (folder / "bin" / "gs").write_text('#!/bin/sh\necho called > "$ATTACK_MARK"\n')
    (folder / "bin" / "gs").chmod(0o755)
    os.environ["PATH"] = f"{folder / 'bin'}:{os.environ['PATH']}"
    os.environ["ATTACK_MARK"] = str(folder / "mark")
    sys.path.insert(0, str(folder / "evil"))
    return kit
