"""Sources with a mask for each image: every layout as it is distributed, and files that are wrong or hostile."""

import io
import pickle
import struct
import tarfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faulty import web_server
from inputs import refused
from masked import CLASSES, IGNORED_ID, coloured, mask_png, png, random_mask
from PIL import Image

from gdkd_cache import open_source
from gdkd_cache.data.images.decoding import decode_mask
from gdkd_cache.data.loader import ViewLoader
from gdkd_cache.data.masks import IGNORE, MaskFiles, id_table
from gdkd_cache.data.order import epoch_requests
from gdkd_cache.data.recipes.presets import open_recipe
from gdkd_cache.data.source import EncodedSource, FullSource, settle
from gdkd_cache.data.sources import cityscapes
from gdkd_cache.data.targets import MaskTargets
from gdkd_cache.data.views import ViewRenderer
from gdkd_cache.errors import SourceError, UsageError

MASKS = [random_mask(np.random.default_rng(row), 7, 12, 20) for row in range(6)]
IMAGES = [coloured(mask) for mask in MASKS]


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _ids(mask: np.ndarray, ids: Sequence[int], ignored: int) -> np.ndarray:
    """What a file holds where class c has the id `ids[c]`."""
    return np.where(mask == IGNORE, ignored, np.array(ids)[mask.clip(0)]).astype(np.uint8)


def _same(source: FullSource, rows: Sequence[int]) -> None:
    """Images and masks are these."""
    assert source.has_masks
    assert (source.labels == 0).all()
    assert len(source) == len(source.labels) == len(rows)
    for position, row in enumerate(rows):
        image, mask = source[position]
        assert np.array_equal(image, IMAGES[row])
        assert mask.dtype == np.int16
        assert np.array_equal(mask, MASKS[row])
        assert np.array_equal(source.mask(position), mask)


# Layouts


def test_camvid(tmp_path: Path) -> None:
    for row, split in enumerate(("train", "train", "val", "test", "train", "test")):
        _write(tmp_path / split / f"0001TP_{row}.png", png(IMAGES[row]))
        _write(tmp_path / f"{split}annot" / f"0001TP_{row}.png", png(_ids(MASKS[row], range(11), 11)))
    source = open_source(f"camvid:{tmp_path}")
    _same(source, [0, 1, 4])
    assert source.keys == ["train/0001TP_0.png", "train/0001TP_1.png", "train/0001TP_4.png"]
    assert (source.name, len(source.classes), source.classes[3]) == ("camvid/train", 11, "Road")
    _same(open_source(f"camvid:{tmp_path}", split="test"), [2])
    _same(open_source(f"camvid:{tmp_path}:test=test", split="test"), [3, 5])
    (tmp_path / "valannot" / "0001TP_2.png").unlink()
    refused(lambda: open_source(f"camvid:{tmp_path}", split="test"), "has no mask: .*valannot/0001TP_2.png is no file")
    refused(
        lambda: open_source(f"camvid:{tmp_path}/train"), "camvid: .* has no train folder; .*camvid:PATH:train=FOLDER"
    )


@pytest.mark.parametrize("kind", ["labelIds", "labelTrainIds"])
def test_cityscapes(tmp_path: Path, kind: str) -> None:
    ids = list(cityscapes.CLASSES.values()) if kind == "labelIds" else range(19)
    for row, place in enumerate(("train/ulm", "train/aachen", "val/lindau", "train/ulm")):
        city = place.partition("/")[2]
        stem = f"{place}/{city}_{row:06d}_000019"
        _write(tmp_path / "leftImg8bit" / f"{stem}_leftImg8bit.png", png(IMAGES[row]))
        _write(
            tmp_path / "gtFine" / f"{stem}_gtFine_{kind}.png",
            png(_ids(MASKS[row], ids, 3 if kind == "labelIds" else 255)),
        )
        _write(tmp_path / "gtFine" / f"{stem}_gtFine_color.png", png(IMAGES[row]))
    source = open_source(f"cityscapes:{tmp_path}")
    _same(source, [1, 0, 3])
    assert source.keys[0] == "leftImg8bit/train/aachen/aachen_000001_000019_leftImg8bit.png"
    assert (len(source.classes), source.classes[0], source.classes[18]) == (19, "road", "bicycle")
    _same(open_source(f"cityscapes:{tmp_path}", split="test"), [2])
    refused(lambda: open_source(f"cityscapes:{tmp_path}:test=demo", split="test"), "has no demo folder")


def test_ids_of_cityscapes() -> None:
    """The standard table: 19 train ids, all else ignored."""
    known = np.full(34, IGNORE)
    known[[7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]] = range(19)
    table = id_table(list(cityscapes.CLASSES.values()), [*range(34), 255])
    assert (table[:34] == known).all()
    assert (table[[34, 254, 255]] == [-1, -1, IGNORE]).all()


def test_segfolder(tmp_path: Path) -> None:
    for row, place in enumerate(("train/b/x", "train/a", "valid/z", "train/c")):
        suffix = "BMP" if row == 1 else "PNG"
        file = io.BytesIO()
        Image.fromarray(IMAGES[row]).save(file, suffix)
        _write(tmp_path / "images" / f"{place}.{suffix.lower()}", file.getvalue())
        _write(tmp_path / "masks" / f"{place}.png", mask_png(MASKS[row]))
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    source = open_source(f"segfolder:{tmp_path}:ignore={IGNORED_ID}")
    _same(source, [1, 0, 3])
    assert list(source.classes) == list(CLASSES)
    assert list(source.keys) == ["images/train/a.bmp", "images/train/b/x.png", "images/train/c.png"]
    _same(open_source(f"segfolder:{tmp_path}:ignore={IGNORED_ID}", split="test"), [2])
    with pytest.raises(
        SourceError,
        match=rf"mask of 'images/train/a.bmp' has id {IGNORED_ID}, which is neither a class .* nor ignored .255.",
    ):
        open_source(f"segfolder:{tmp_path}")[0]
    refused(lambda: open_source(f"segfolder:{tmp_path}:ignore=x"), "ignore='x' is not int", UsageError)
    refused(lambda: open_source(f"segfolder:{tmp_path}:ignore=70000"), "ignore is 70000; it must be int in 0..65535")


def test_ade20k(tmp_path: Path) -> None:
    for row, split in enumerate(("training", "training", "validation")):
        _write(tmp_path / "images" / split / f"ADE_{row}.png", png(IMAGES[row]))
        _write(tmp_path / "annotations" / split / f"ADE_{row}.png", png(_ids(MASKS[row], range(1, 8), 0)))
    lines = [f"{number}\t0.1\t5\t1\t{name}, other" for number, name in enumerate(CLASSES, 1)]
    (tmp_path / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *lines]))
    source = open_source(f"ade20k:{tmp_path}")
    _same(source, [0, 1])
    assert list(source.classes) == list(CLASSES)
    _same(open_source(f"ade20k:{tmp_path}", split="test"), [2])


def test_voc(tmp_path: Path) -> None:
    """Masks have a palette there: the index is the id."""
    for row in range(3):
        file = io.BytesIO()
        Image.fromarray(IMAGES[row]).save(file, "PNG")
        _write(tmp_path / "JPEGImages" / f"2007_{row}.jpg", file.getvalue())
        mask = Image.fromarray(_ids(MASKS[row], range(21), 255), "P")
        mask.putpalette(np.random.default_rng(0).permutation(256 * 3).astype(np.uint8).tobytes())
        file = io.BytesIO()
        mask.save(file, "PNG")
        _write(tmp_path / "SegmentationClass" / f"2007_{row}.png", file.getvalue())
    _write(tmp_path / "ImageSets" / "Segmentation" / "train.txt", b"2007_2\n2007_0\n")
    _write(tmp_path / "ImageSets" / "Segmentation" / "val.txt", b"2007_1\n")
    source = open_source(f"voc:{tmp_path}")
    _same(source, [2, 0])
    assert (len(source.classes), source.classes[15]) == (21, "person")
    _same(open_source(f"voc:{tmp_path}", split="test"), [1])
    _write(tmp_path / "ImageSets" / "Segmentation" / "train.txt", b"../../2007_2\n")
    refused(lambda: open_source(f"voc:{tmp_path}"), "leads out of")


# Shards


def _shards(folder: Path, counts: Sequence[int] = (2, 1, 3)) -> str:
    rows = iter(range(6))
    for number, count in enumerate(counts):
        with tarfile.open(folder / f"{number}.tar", "w") as tar:
            for row in (next(rows) for _ in range(count)):
                for kind, data in (("mask.png", mask_png(MASKS[row])), ("png", png(IMAGES[row]))):
                    member = tarfile.TarInfo(f"s{row}.{kind}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return f"{{0..{len(counts) - 1}}}.tar:classes=7,ignore={IGNORED_ID}"


def _rendered(source: FullSource, workers: int = 0) -> dict[int, tuple[bytes, bytes]]:
    """Pixels and mask of each row, in the order of a shuffled epoch."""
    found = {}
    renderer = ViewRenderer(source, open_recipe("scale-crop:height=8,width=9,class_share=.5", 12, 20), 0)
    requests = epoch_requests(source, 1, epoch=0, batch_size=2)
    for batch in ViewLoader(renderer, num_workers=workers).stream(requests):
        assert isinstance(batch.targets, MaskTargets)
        for row, pixels, mask in zip(batch.rows.tolist(), batch.pixels, batch.targets.masks, strict=True):
            found[row] = pixels.numpy().tobytes(), mask.numpy().tobytes()
    return found


def test_shards(tmp_path: Path) -> None:
    """In memory, streamed from disk, and streamed from a web server: the same views, also of parts."""
    spec = _shards(tmp_path)
    source = open_source(f"wds:{tmp_path}/{spec}")
    streamed = open_source(f"wds:{tmp_path}/{spec}", stream=True)
    with web_server(tmp_path) as url:
        remote = open_source(f"wds:{url}/{spec}", stream=True)
        for one in (source, streamed, remote, pickle.loads(pickle.dumps(streamed))):
            _same(one, range(6))
            assert _rendered(one) == _rendered(source)
            part = one.take(np.array([1, 2, 5]))
            _same(part, [1, 2, 5])
        assert remote.remote is not None
        assert _rendered(remote, workers=2) == _rendered(source)
    assert streamed.digest == source.digest
    assert list(source.classes) == [str(number) for number in range(7)]


def test_names_of_classes_of_shards(tmp_path: Path) -> None:
    spec = _shards(tmp_path)
    plain = spec.partition(":")[0]
    refused(lambda: open_source(f"wds:{tmp_path}/{plain}"), "no classes.txt .*wds:PATTERN:classes=19,ignore=255")
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    source = open_source(f"wds:{tmp_path}/{plain}:ignore={IGNORED_ID}")
    _same(source, range(6))
    assert list(source.classes) == list(CLASSES)
    refused(
        lambda: open_source(f"wds:{tmp_path}/{plain}:classes=8"), "classes.txt of .* names 7 classes, and classes=8"
    )
    refused(lambda: open_source(f"wds:{tmp_path}/{plain}:classes=1"), "classes is 1; it must be int in 2..32768")


def test_labels_and_masks_in_shards(tmp_path: Path) -> None:
    """A sample with both is of a class, as it always was; some with one and some with the other are refused."""

    def shard(members: dict[str, bytes]) -> str:
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            for name, data in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        return f"wds:{tmp_path}/a.tar"

    image, mask = png(IMAGES[0]), mask_png(MASKS[0])
    both = {"a.png": image, "a.mask.png": mask, "a.cls": b"1"}
    assert not open_source(shard(both)).has_masks
    refused(lambda: open_source(shard(both) + ":classes=7"), "has labels and no masks", UsageError)
    mixed = both | {"b.png": image, "b.mask.png": mask}
    refused(lambda: open_source(shard(mixed)), "sample 'a' has a number in .cls, 'b' a mask alone")
    refused(lambda: open_source(shard({"a.mask.png": mask})), "has the members 'mask.png'; it needs an image")
    refused(
        lambda: open_source(shard({"a.png": image})), r"it needs an image .* and a number in .cls .*, or a .mask.png"
    )


# A user's own


class _Own:
    """A source with the least that one must have."""

    keys, classes, digest = ("a", "b", "c"), CLASSES, "1"
    reads = 0

    def __len__(self) -> int:
        return 3

    def __getitem__(self, row: int) -> tuple[np.ndarray, Any]:
        self.reads += 1
        return IMAGES[row], MASKS[row]


class _Labelled(_Own):
    """One that has labels too, and gives masks alone."""

    labels = np.array([0, 0, 0])

    def __getitem__(self, row: int) -> tuple[np.ndarray, Any]:
        return IMAGES[row], 0

    def mask(self, row: int) -> np.ndarray:
        return MASKS[row].astype(np.int64)


def test_sources_of_ones_own() -> None:
    own = _Own()
    source = settle(own)
    assert own.reads == 1
    _same(source, range(3))
    _same(source.take(np.array([0, 2])), [0, 2])
    assert source.digest == "1"
    own.reads = 0
    rendered = _rendered(source)
    assert own.reads == 3  # image and mask at once
    assert rendered.keys() == {0, 1, 2}
    labelled = settle(_Labelled())
    assert labelled.has_masks
    assert np.array_equal(labelled.mask(1), MASKS[1])


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (MASKS[1].astype(float), r"mask of 'b' is float64 \[12, 20\]; it must be whole numbers \[height, width\]"),
        (MASKS[1][..., None], r"mask of 'b' is int16 \[12, 20, 1\]; it must"),
        (3, r"mask of 'b' is int64 \[\]; it must"),
        (np.full((12, 20), 7), "mask of 'b' has id 7; it must be a class id, 0 to 6, or -100 where it is ignored"),
        (np.full((12, 20), -1), "mask of 'b' has id -1; it must"),
        (np.full((12, 20), 65436, np.uint16), "mask of 'b' has id 65436; it must"),
        (np.zeros((12, 21), np.int16), "mask of 'b' is 12x21 pixels, its image 12x20; both must be of one size"),
    ],
)
def test_masks_that_are_none(mask: Any, said: str) -> None:
    class Wrong(_Own):
        def __getitem__(self, row: int) -> tuple[np.ndarray, Any]:
            return IMAGES[row], mask if row == 1 else MASKS[row]

    source = settle(Wrong())
    refused(lambda: source[1], said, SourceError)
    refused(lambda: _rendered(source), said, SourceError)
    _same(source.take(np.array([0, 2])), [0, 2])


def test_many_classes() -> None:
    about: dict[str, Any] = {"name": "many", "keys": ["a"], "labels": np.zeros(1, np.int64), "files": [b""]}
    masks = MaskFiles(keys=["a"], files=[b""], ids=id_table(range(9), []))
    EncodedSource(classes=[str(i) for i in range(2**15)], masks=masks, **about)
    with pytest.raises(SourceError, match="has 32769 classes; masks hold 32768 at most"):
        EncodedSource(classes=[str(i) for i in range(2**15 + 1)], masks=masks, **about)


# Files


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("palette", [False, True])
def test_masks_of_any_depth(bits: int, palette: bool) -> None:
    """An id is what the file holds, where viewers spread grey over 0 to 255."""
    if palette and bits == 16:
        return
    ids = np.random.default_rng(0).integers(0, 2**bits, (9, 16))
    assert np.array_equal(decode_mask("a", _png(ids, bits, palette)), ids)


def _png(ids: np.ndarray, bits: int, palette: bool = False) -> bytes:
    """A PNG of so many bits a pixel, written by hand, as Pillow writes few kinds."""
    places = np.arange(bits - 1, -1, -1)
    rows = np.packbits((ids[..., None] >> places & 1).reshape(len(ids), -1).astype(np.uint8), axis=1)
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", ids.shape[1], ids.shape[0], bits, 3 if palette else 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    if palette:
        colours = np.random.default_rng(0).integers(0, 256, 3 * 2**bits, dtype=np.uint8)
        chunks.insert(1, (b"PLTE", colours.tobytes()))
    packed = (struct.pack(">I", len(data)) + name + data for name, data in chunks)
    sums = (struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(part + own for part, own in zip(packed, sums, strict=True))


def _jpeg() -> bytes:
    file = io.BytesIO()
    Image.fromarray(MASKS[0].clip(0).astype(np.uint8)).save(file, "JPEG")
    return file.getvalue()


def _claiming(width: int, height: int) -> bytes:
    """A PNG that says it is so large."""
    whole = _png(np.zeros((1, 8), int), 8)
    head = whole[12:16] + struct.pack(">II", width, height) + whole[24:29]
    return whole[:12] + head + struct.pack(">I", zlib.crc32(head)) + whole[33:]


_HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "colours": (
        lambda: png(IMAGES[0]),
        "has the channels RGB; it must be a PNG of one channel, grey or with a palette",
    ),
    "transparency": (lambda: png(np.zeros((12, 20, 2), np.uint8)), "has the channels LA; it must be a PNG of one"),
    "colours and transparency": (lambda: png(np.zeros((12, 20, 4), np.uint8)), "has the channels RGBA; it must"),
    "another size": (lambda: mask_png(MASKS[0][:-1]), "is 11x20 pixels, its image 12x20; both must be of one size"),
    "turned": (lambda: mask_png(MASKS[0].T), "is 20x12 pixels, its image 12x20"),
    "an id beyond": (
        lambda: mask_png(np.full((12, 20), 7)),
        r"has id 7, which is neither a class \(0 to 6\) nor ignored \(200\)",
    ),
    "16 bits, an id beyond": (lambda: _png(np.full((12, 20), 65535), 16), "has id 65535, which is neither"),
    "JPEG": (_jpeg, r"cannot be decoded \(it is no PNG\); replace or remove that file"),
    "cut": (lambda: mask_png(MASKS[0])[:-30], "cannot be decoded"),
    "empty": (lambda: b"", r"cannot be decoded \(it is no PNG\)"),
    "says that it is large": (
        lambda: _claiming(8000, 8000),
        "has 64,000,000 pixels; at most 40,000,000 are decoded",
    ),
    "says that it is huge": (lambda: _claiming(2**31 - 1, 2**31 - 1), "pixels"),
}


@pytest.mark.parametrize("kind", _HOSTILE)
@pytest.mark.parametrize("stream", [False, True])
def test_hostile_masks(tmp_path: Path, kind: str, stream: bool) -> None:
    """Each is refused in a line that names the key, where it is first read, in a file and in shards."""
    make, said = _HOSTILE[kind]
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in (("x.png", png(IMAGES[0])), ("x.mask.png", make())):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    source = open_source(f"wds:{tmp_path}/a.tar:classes=7,ignore={IGNORED_ID}", stream=stream)
    for read in (lambda: source[0], lambda: _rendered(source)):
        refused(read, f"mask of 'x' .*{said}", SourceError)


def test_a_mask_that_is_no_file(tmp_path: Path) -> None:
    """A fifo would wait for ever."""
    import os

    os.mkfifo(tmp_path / "a.png")
    refused(lambda: decode_mask("a", tmp_path / "a.png"), "mask", SourceError)
    refused(lambda: decode_mask("a", tmp_path / "b.png"), "mask .*b.png", SourceError)
