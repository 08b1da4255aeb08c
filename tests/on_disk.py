"""Small datasets in the formats that the real ones have on disk."""

import hashlib
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100


def image(seed: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def encoded(seed: int, size: int = 32, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(image(seed, size)).save(file, kind)
    return file.getvalue()


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def cifar(kind: type[CIFAR10], root: Path, monkeypatch: pytest.MonkeyPatch, train: int = 4) -> Path:
    """Some train images and two test images in CIFAR's python format; torchvision's checksums are set to match.

    Args:
        kind: torchvision's class of the dataset; CIFAR-10's train images lie in two batches.
        train: how many; labels are their numbers, modulo the classes.
    """
    num_classes = 100 if kind is CIFAR100 else 10
    label_key, names_key = ("fine_labels", "fine_label_names") if kind is CIFAR100 else ("labels", "label_names")
    folder = root / kind.base_folder

    def dump(name: str, value: dict[str, object]) -> list[str]:
        _write(folder / name, pickle.dumps(value))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    def batch(seeds: range) -> dict[str, object]:
        pixels = np.stack([image(seed).transpose(2, 0, 1).ravel() for seed in seeds])
        return {"data": pixels, label_key: [seed % num_classes for seed in seeds]}

    meta = dump("meta" if kind is CIFAR100 else "batches.meta", {names_key: [f"class{i}" for i in range(num_classes)]})
    halves = [range(train)] if kind is CIFAR100 else [range(train // 2), range(train // 2, train)]
    parts = [
        dump("train" if kind is CIFAR100 else f"data_batch_{number}", batch(half))
        for number, half in enumerate(halves, 1)
    ]
    monkeypatch.setattr(kind, "train_list", parts)
    monkeypatch.setattr(kind, "test_list", [dump("test" if kind is CIFAR100 else "test_batch", batch(range(2)))])
    monkeypatch.setattr(kind, "meta", kind.meta | {"filename": meta[0], "md5": meta[1]})
    return root


def wnids(count: int) -> list[str]:
    return [f"n{number:08d}" for number in range(count)]


def imagenet(root: Path, count: int) -> Path:
    """A train and a val image of each of so many classes, in folders."""
    for seed, wnid in enumerate(wnids(count)):
        for split in ("train", "val"):
            _write(root / split / wnid / f"{wnid}_{split}.JPEG", encoded(seed, 40, "JPEG"))
    return root


def tiny_imagenet(root: Path, count: int) -> Path:
    """A train and a val image of each of so many classes, as in tiny-imagenet-200."""
    names = wnids(count)
    for seed, wnid in enumerate(names):
        _write(root / "train" / wnid / "images" / f"{wnid}_0.JPEG", encoded(seed, 64, "JPEG"))
        _write(root / "val" / "images" / f"val_{seed}.JPEG", encoded(seed, 64, "JPEG"))
    (root / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in names))
    (root / "words.txt").write_text("".join(f"{wnid}\tthing {wnid}\n" for wnid in names))
    lines = [f"val_{number}.JPEG\t{wnid}\t0\t0\t9\t9\n" for number, wnid in enumerate(names)]
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    return root


def cub200(root: Path, count: int) -> Path:
    """A train and a test image of each of so many classes, as in CUB_200_2011."""
    lists: dict[str, list[str]] = {name: [] for name in ("classes", "images", "image_class_labels", "train_test_split")}
    for label in range(1, count + 1):
        lists["classes"].append(f"{label} {label:03d}.Bird")
        for is_train in (0, 1):
            number, name = 2 * label - is_train, f"{label:03d}.Bird/{is_train}.jpg"
            _write(root / "images" / name, encoded(number, 40, "JPEG"))
            lists["images"].append(f"{number} {name}")
            lists["image_class_labels"].append(f"{number} {label}")
            lists["train_test_split"].append(f"{number} {is_train}")
    for name, lines in lists.items():
        (root / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))
    return root
