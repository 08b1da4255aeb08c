"""Images for the rows that render: in memory, as files, in folders and in shards."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from gdkd_cache.data.source import ArraySource, EncodedSource, FullSource

_SUFFIXES = (".jpg", ".jpeg")
_HEIGHT, _WIDTH = 375, 500


def small_images(count: int, num_classes: int = 2, side: int = 32) -> ArraySource:
    """Synthetic square images in memory, as compressible as photographs are; 2048 different ones."""
    rng = np.random.default_rng(0)
    walk = rng.normal(size=(min(count, 2048), 3, side, side)).cumsum(2).cumsum(3)
    low, high = walk.min((1, 2, 3), keepdims=True), walk.max((1, 2, 3), keepdims=True)
    images = np.resize(((walk - low) / (high - low) * 255).astype(np.uint8), (count, 3, side, side))
    return ArraySource(
        name="small",
        images=images,
        labels=np.arange(count) % num_classes,
        keys=[f"{row % num_classes}/{row:07d}" for row in range(count)],
        classes=[str(number) for number in range(num_classes)],
    )


def photographs(given: Path | None, count: int) -> EncodedSource:
    """JPEG files in memory: those of a folder or tar file, or so many of 500x375 cut from scikit-learn's two."""
    try:
        files = dict(_cut(count) if given is None else _found(given))
    except (OSError, tarfile.TarError):
        raise SystemExit(f"--jpegs {given} is no folder or tar file that can be read") from None
    if not files:
        raise SystemExit(f"--jpegs {given} holds no files that end in {' or '.join(_SUFFIXES)}")
    return _encoded("jpeg", files)


def png_files(source: FullSource) -> EncodedSource:
    """A source's images as PNG files in memory."""
    return _encoded("png", {key: _file(source[row][0], "PNG") for row, key in enumerate(source.keys)})


def write_folders(folder: Path, source: FullSource) -> None:
    """Write a source's images as PNG files, as `imagefolder:` takes them; its keys begin with the class."""
    for row, key in enumerate(source.keys):
        path = folder / "train" / f"{key}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_file(source[row][0], "PNG"))


def write_shards(folder: Path, source: FullSource, count: int) -> str:
    """Write a source's images as so many shards of PNG files, and give their pattern."""
    folder.mkdir()
    for number, rows in enumerate(np.array_split(np.arange(len(source)), count)):
        with tarfile.open(folder / f"train-{number:02d}.tar", "w") as tar:
            for row in rows.tolist():
                image, label = source[row]
                for kind, data in (("png", _file(image, "PNG")), ("cls", str(label).encode())):
                    member = tarfile.TarInfo(f"{source.keys[row]}.{kind}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return f"{folder}/train-{{00..{count - 1:02d}}}.tar"


def _encoded(name: str, files: dict[str, bytes]) -> EncodedSource:
    labels, classes = np.arange(len(files)) % 10, [str(number) for number in range(10)]
    return EncodedSource(name=name, files=list(files.values()), labels=labels, keys=list(files), classes=classes)


def _cut(count: int) -> Iterator[tuple[str, bytes]]:
    from sklearn.datasets import load_sample_images

    rng, whole = np.random.default_rng(0), load_sample_images().images
    for row in range(count):
        height, width, _ = whole[row % 2].shape
        top, left = rng.integers(0, height - _HEIGHT), rng.integers(0, width - _WIDTH)
        yield f"n{row:08d}.JPEG", _file(whole[row % 2][top : top + _HEIGHT, left : left + _WIDTH], "JPEG")


def _found(given: Path) -> Iterator[tuple[str, bytes]]:
    if given.is_dir():
        for path in sorted(given.rglob("*")):
            if path.suffix.lower() in _SUFFIXES:
                yield path.relative_to(given).as_posix(), path.read_bytes()
        return
    with tarfile.open(given) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.name.lower().endswith(_SUFFIXES) else None
            if file is not None:
                yield member.name, file.read()


def _file(image: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **({"quality": 90} if kind == "JPEG" else {}))
    return file.getvalue()
