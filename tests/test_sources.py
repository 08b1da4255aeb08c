"""Every kind of source on small files in the real on-disk format."""

import io
import re
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from on_disk import cifar, encoded, image
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100

from gdkd_cache import open_source
from gdkd_cache.data.source import ArraySource, EncodedSource, Source
from gdkd_cache.errors import SourceError, UsageError


def _imagefolder(root: Path, test_name: str = "val") -> Path:
    for split, count in (("train", 3), (test_name, 1)):
        for label, name in enumerate(("cat", "dog")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{number}.png").write_bytes(encoded(10 * label + number, 12 + number))
    return root


def _tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def _wds(folder: Path, shards: int = 2, size: int = 32) -> str:
    for shard in range(shards):
        members: dict[str, bytes] = {}
        for row in range(3):
            members[f"s{shard}-{row}.png"] = encoded(10 * shard + row, size)
            members[f"s{shard}-{row}.cls"] = str(row).encode()
        _tar(folder / f"train-{shard:06d}.tar", members)
    return f"wds:{folder}/train-{{000000..{shards - 1:06d}}}.tar"


def _tiny_imagenet(root: Path) -> Path:
    """Three train images of each of two classes (one is grayscale) and two val images, as in tiny-imagenet-200."""
    (root / "wnids.txt").write_text("n02124075\nn01443537\n")
    (root / "words.txt").write_text("n00001740\tentity\nn01443537\tgoldfish, Carassius auratus\nn02124075\tcat\n")
    (root / "val" / "images").mkdir(parents=True)
    for label, wnid in enumerate(("n01443537", "n02124075")):
        folder = root / "train" / wnid / "images"
        folder.mkdir(parents=True)
        (folder.parent / f"{wnid}_boxes.txt").write_text("")
        for number in range(3):
            (folder / f"{wnid}_{number}.JPEG").write_bytes(encoded(10 * label + number, 64, "JPEG"))
    Image.fromarray(image(5, 64)[..., 0]).save(root / "train" / "n02124075" / "images" / "n02124075_1.JPEG")
    for number in range(2):
        (root / "val" / "images" / f"val_{number}.JPEG").write_bytes(encoded(20 + number, 64, "JPEG"))
    (root / "val" / "val_annotations.txt").write_text(
        "val_0.JPEG\tn02124075\t0\t32\t44\t62\nval_1.JPEG\tn01443537\t52\t55\t57\t59\n"
    )
    return root


def _cub200(root: Path) -> Path:
    """Four images of two classes, as in CUB_200_2011."""
    names = ["001.Albatross/A_18.jpg", "001.Albatross/A_19.jpg", "002.Auklet/B_1.jpg", "002.Auklet/B_2.jpg"]
    (root / "classes.txt").write_text("1 001.Albatross\n2 002.Auklet\n")
    (root / "images.txt").write_text("".join(f"{number} {name}\n" for number, name in enumerate(names, 1)))
    (root / "image_class_labels.txt").write_text("1 1\n2 1\n3 2\n4 2\n")
    (root / "train_test_split.txt").write_text("1 0\n2 1\n3 1\n4 0\n")
    for number, name in enumerate(names, 1):
        path = root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(number, 40 + number, "JPEG"))
    return root


def test_digits() -> None:
    train, test = open_source("digits"), open_source("digits", split="test")
    assert (len(train), len(test)) == (1438, 359)
    assert not set(train.keys) & set(test.keys)
    image, label = train[0]
    assert image.shape == (8, 8, 3)
    assert image.max() > 200
    assert label == 0
    assert train.digest == open_source("digits").digest != test.digest


def test_imagefolder(tmp_path: Path) -> None:
    source = open_source(f"imagefolder:{_imagefolder(tmp_path)}")
    assert source.keys == ["train/cat/0.png", "train/cat/1.png", "train/cat/2.png"] + [
        f"train/dog/{number}.png" for number in range(3)
    ]
    assert list(source.classes) == ["cat", "dog"]
    assert source.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert np.array_equal(source[4][0], image(11, 13))
    assert open_source(f"imagefolder:{tmp_path}", split="test").keys == ["val/cat/0.png", "val/dog/0.png"]


@pytest.mark.parametrize("name", ["val", "valid", "validation", "test"])
def test_imagefolder_with_other_test_folders(tmp_path: Path, name: str) -> None:
    _imagefolder(tmp_path, name)
    assert open_source(f"imagefolder:{tmp_path}", split="test").keys == [f"{name}/cat/0.png", f"{name}/dog/0.png"]


def test_imagefolder_with_named_folders(tmp_path: Path) -> None:
    """What is asked for wins over what is there; keys stay paths under PATH, which may have colons."""
    root = _imagefolder(tmp_path / "a:b", "val")
    (root / "train").rename(root / "some train")
    (root / "parts").mkdir()
    shutil.copytree(root / "val", root / "parts" / "one")
    spec = f"imagefolder:{root}:train=some train,test=parts/one"
    train, test = open_source(spec), open_source(spec, split="test")
    assert (train.keys[0], test.keys[0]) == ("some train/cat/0.png", "parts/one/cat/0.png")
    assert open_source(f"imagefolder:{root}:train=some train", split="test").keys[0] == "val/cat/0.png"


@pytest.mark.parametrize(
    ("split", "folders", "error", "said"),
    [
        ("train", "train=gone", SourceError, "has no gone folder; name another as in imagefolder:PATH:train=FOLDER"),
        ("test", "test=gone", SourceError, "has no gone folder; name another as in imagefolder:PATH:test=FOLDER"),
        ("test", "train=gone", SourceError, "holds no class folders"),
        (
            "train",
            "validation=val",
            UsageError,
            "imagefolder: cannot read 'validation=val'; allowed: train=train, test=",
        ),
        ("train", "train=../x", UsageError, "split '../x' must lie in PATH"),
        ("test", "test=/x", UsageError, "split '/x' must lie in PATH"),
    ],
)
def test_imagefolder_with_wrong_folders(
    tmp_path: Path, split: str, folders: str, error: type[Exception], said: str
) -> None:
    _imagefolder(tmp_path)
    with pytest.raises(error, match=re.escape(said)):
        open_source(f"imagefolder:{tmp_path}:{folders}", split=split)


def test_imagenet_is_an_imagefolder(tmp_path: Path) -> None:
    """Class folders of .JPEG files, of which ImageNet has some in CMYK, in grayscale, and one that is a PNG."""
    for split, name in (("train", "n01440764_18"), ("train", "n02105855_2933"), ("val", "ILSVRC2012_val_00000293")):
        for wnid in ("n01440764", "n02105855"):
            folder = tmp_path / split / wnid
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{name}.JPEG").write_bytes(encoded(0, 80, "JPEG"))
    train = tmp_path / "train"
    Image.fromarray(image(1, 80)).convert("CMYK").save(train / "n01440764" / "n01440764_18.JPEG")
    (train / "n02105855" / "n02105855_2933.JPEG").write_bytes(encoded(2, 80, "PNG"))
    Image.fromarray(image(3, 80)[..., 0]).save(train / "n02105855" / "n01440764_18.JPEG")
    source = open_source(f"imagefolder:{tmp_path}")
    assert isinstance(source, EncodedSource)
    assert list(source.classes) == ["n01440764", "n02105855"]
    assert source.keys[0] == "train/n01440764/n01440764_18.JPEG"
    for row in range(4):
        assert source[row][0].shape == source.decode(row, 60).shape == (80, 80, 3)
    assert source.decode(0, 40).shape == (40, 40, 3)  # CMYK too is decoded at a half
    assert np.array_equal(source.decode(3, 40), image(2, 80))  # a PNG never is
    assert len(open_source(f"imagefolder:{tmp_path}", split="test")) == 2


_INDEX = '{"0": ["cat", "tabby, tabby cat"], "1": ["cow", "ox"]}'


@pytest.mark.parametrize(
    ("lists", "names"),
    [
        ({}, ["cat", "dog"]),
        ({"LOC_synset_mapping.txt": "cat tabby, tabby cat\r\ndog  pug\n\ncow ox\n"}, ["tabby, tabby cat", "pug"]),
        ({"words.txt": "cow\tox\ndog\tpug, pug-dog\n"}, ["cat", "pug, pug-dog"]),
        ({"classes.txt": "tabby\npug\n", "words.txt": "dog\t\n"}, ["cat", "dog"]),
        ({"imagenet_class_index.json": _INDEX, "classes.txt": "tabby\n"}, ["tabby, tabby cat", "dog"]),
        ({"words.txt": "cow\tox\n", "imagenet_class_index.json": _INDEX}, ["tabby, tabby cat", "dog"]),
        ({"imagenet_class_index.json": _INDEX, "words.txt": "dog\tpug\n"}, ["cat", "pug"]),
    ],
)
def test_names_of_classes(tmp_path: Path, lists: dict[str, str], names: list[str]) -> None:
    """They are for people: classes, keys and digest are what they are without."""
    spec = f"imagefolder:{_imagefolder(tmp_path)}"
    plain = open_source(spec)
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
    source = open_source(spec)
    assert list(source.shown_names) == names
    assert list(source.classes) == list(plain.classes) == list(plain.shown_names)
    assert source.digest == plain.digest
    assert list(source.take(np.array([1])).shown_names) == names


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("imagenet_class_index.json", b"{"),
        ("imagenet_class_index.json", b"[" * 100_000),
        ("imagenet_class_index.json", b'{"0": ["cat"]}'),
        ("imagenet_class_index.json", b'{"0": ["cat", 1]}'),
        ("words.txt", b"cat\t\xff"),
    ],
)
def test_wrong_names_of_classes(tmp_path: Path, name: str, data: bytes) -> None:
    _imagefolder(tmp_path)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(SourceError, match=f"^list {tmp_path / name} is no ") as caught:
        open_source(f"imagefolder:{tmp_path}")
    assert "\n" not in str(caught.value)


def test_imagenets_flat_val_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train" / "n01440764").mkdir(parents=True)
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG").write_bytes(encoded(0, 80, "JPEG"))
    with pytest.raises(SourceError, match=r"val or .* holds no class folders; .* valprep\.sh"):
        open_source(f"imagefolder:{tmp_path}", split="test")


def test_tiny_imagenet(tmp_path: Path) -> None:
    spec = f"tiny-imagenet:{_tiny_imagenet(tmp_path)}"
    source, test = open_source(spec), open_source(spec, split="test")
    assert list(source.classes) == list(test.classes) == ["goldfish, Carassius auratus", "cat"]
    assert source.keys[0] == "train/n01443537/images/n01443537_0.JPEG"
    assert source.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert np.array_equal(source[2][0], np.array(Image.open(io.BytesIO(encoded(2, 64, "JPEG")))))
    gray = source[4][0]
    assert (gray[..., 0] == gray[..., 2]).all()
    assert list(test.keys) == ["val/images/val_0.JPEG", "val/images/val_1.JPEG"]
    assert test.labels.tolist() == [1, 0]
    assert test.digest != source.digest == open_source(spec).digest


def test_cub200(tmp_path: Path) -> None:
    spec = f"cub200:{_cub200(tmp_path)}"
    source, test = open_source(spec), open_source(spec, split="test")
    assert list(source.keys) == ["images/001.Albatross/A_19.jpg", "images/002.Auklet/B_1.jpg"]
    assert list(test.keys) == ["images/001.Albatross/A_18.jpg", "images/002.Auklet/B_2.jpg"]
    assert list(source.classes) == ["001.Albatross", "002.Auklet"]
    assert source.labels.tolist() == test.labels.tolist() == [0, 1]
    assert source[1][0].shape == (43, 43, 3)
    assert source[1][1] == 1


@pytest.mark.parametrize(
    ("kind", "file", "text", "said"),
    [
        ("tiny-imagenet", "wnids.txt", None, "does not exist; the dataset must lie there"),
        ("tiny-imagenet", "wnids.txt", "", "is empty"),
        ("tiny-imagenet", "wnids.txt", "n02124075\nn09999999\n", "no words for n09999999"),
        ("tiny-imagenet", "wnids.txt", "../..\nn01443537\n", "no words for"),
        ("tiny-imagenet", "words.txt", "n02124075 cat\n", "line 1: 'n02124075 cat' must have 2 fields"),
        ("tiny-imagenet", "words.txt", "n01443537\tfish\nn02124075\tcat\nn3\t\xff\n", "is no text in UTF-8"),
        ("tiny-imagenet", "train/n01443537/images", None, "holds no .JPEG images"),
        ("tiny-imagenet", "train/n01443537/images/n01443537_0.JPEG", "x", "cannot be decoded"),
        ("cub200", "classes.txt", None, "does not exist; the dataset must lie there"),
        ("cub200", "images.txt", "1\n", "line 1: '1' must have 2 fields"),
        ("cub200", "images.txt", "1 a.jpg\n1 b.jpg\n", "names an id more than once"),
        ("cub200", "images.txt", "2 ../../secret.jpg\n", "leads out of"),
        ("cub200", "images.txt", "2 /etc/secret.jpg\n", "leads out of"),
        ("cub200", "images.txt", "5 a.jpg\n", "has nothing for image 5"),
        ("cub200", "image_class_labels.txt", "1 1\n2 1\n3 2\n4 3\n", "has 3 for image 4"),
        ("cub200", "train_test_split.txt", "1 1\n2 2\n3 1\n4 0\n", "has 2 for image 2"),
        ("cub200", "train_test_split.txt", "1 0\n2 0\n3 0\n4 0\n", "has 0 rows"),
    ],
)
def test_wrong_lists(tmp_path: Path, kind: str, file: str, text: str | None, said: str) -> None:
    (_tiny_imagenet if kind == "tiny-imagenet" else _cub200)(tmp_path)
    path = tmp_path / file
    if text is None:
        path.rename(tmp_path / "gone")
    else:
        path.write_text(text, "latin-1")
    with pytest.raises(SourceError, match=re.escape(said)) as caught:
        open_source(f"{kind}:{tmp_path}")[0]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("val_0.JPEG\tn1\n", "of class 'n1'"),
        ("../../a.JPEG\tn01443537\n", "leads out of"),
        ("val_0.JPEG\n", "2 fields"),
    ],
)
def test_wrong_val_annotations(tmp_path: Path, line: str, said: str) -> None:
    _tiny_imagenet(tmp_path)
    (tmp_path / "val" / "val_annotations.txt").write_text(line)
    with pytest.raises(SourceError, match=said):
        open_source(f"tiny-imagenet:{tmp_path}", split="test")


@pytest.mark.parametrize(("kind", "number"), [(CIFAR10, 10), (CIFAR100, 100)])
def test_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[CIFAR10], number: int) -> None:
    spec = f"cifar{number}:{cifar(kind, tmp_path, monkeypatch)}"
    source, test = open_source(spec), open_source(spec, split="test")
    assert isinstance(source, ArraySource)
    assert (source.name, len(source), len(test), len(source.classes)) == (f"cifar{number}/train", 4, 2, number)
    assert list(source.keys) == [f"train/{row:05d}" for row in range(4)]
    for row in range(4):
        assert np.array_equal(source[row][0], image(row))
    assert source.labels.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(("kind", "file"), [(CIFAR10, "data_batch_2"), (CIFAR10, "batches.meta"), (CIFAR100, "train")])
def test_damaged_cifar_is_not_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[CIFAR10], file: str
) -> None:
    number = "100" if kind is CIFAR100 else "10"
    cifar(kind, tmp_path, monkeypatch)
    canary = tmp_path / "canary"
    payload = b"cos\nsystem\n(S'touch %s'\ntR." % str(canary).encode()
    (tmp_path / kind.base_folder / file).write_bytes(payload)
    with pytest.raises(SourceError, match=f"does not hold CIFAR-{number}"):
        open_source(f"cifar{number}:{tmp_path}")
    assert not canary.exists()


def test_wds(tmp_path: Path) -> None:
    source = open_source(_wds(tmp_path))
    assert source.keys == ["s0-0", "s0-1", "s0-2", "s1-0", "s1-1", "s1-2"]
    assert source.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert list(source.classes) == ["0", "1", "2"]
    assert np.array_equal(source[4][0], image(11))
    (tmp_path / "classes.txt").write_text("ant\nbee\ncow\ndog\n")
    assert list(open_source(f"wds:{tmp_path}/train-*.tar").classes) == ["ant", "bee", "cow", "dog"]


@pytest.mark.parametrize(
    ("spec", "error", "said"),
    [
        ("", UsageError, "must be one of digits"),
        ("imagenet:/data", UsageError, "must be one of digits"),
        ("digits:/data", UsageError, "takes no path"),
        ("imagefolder", UsageError, "needs a path"),
        ("cifar100:", UsageError, "needs a path"),
        ("cifar10:{tmp}", SourceError, "does not hold CIFAR-10 (cifar-10-batches-py/"),
        ("wds:pipe:touch canary", UsageError, "local files"),
        ("wds:ftp://example.org/a.tar", UsageError, "local files"),
        ("wds:{{s3://b/0,1}}.tar", UsageError, "local files"),
        ("wds:https://me:secret@example.org/a.tar", UsageError, "URL without user"),
        ("imagefolder:{tmp}/nowhere", SourceError, "is no folder"),
        ("imagefolder:{tmp}", SourceError, "has no train folder"),
        ("cifar100:{tmp}", SourceError, "--download"),
        ("tiny-imagenet:{tmp}/nowhere", SourceError, "wnids.txt does not exist"),
        ("cub200", UsageError, "needs a path"),
        ("wds:{tmp}/a-{{0..3}}.tar", SourceError, "a-0.tar does not exist"),
        ("wds:{tmp}/*.tar", SourceError, "no file matches"),
    ],
)
def test_wrong_specs(tmp_path: Path, spec: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=re.escape(said)):
        open_source(spec.format(tmp=tmp_path))


def test_undecodable_images_name_their_key(tmp_path: Path) -> None:
    _imagefolder(tmp_path)
    (tmp_path / "train" / "cat" / "1.png").write_bytes(encoded(0)[:100])
    source = open_source(f"imagefolder:{tmp_path}")
    with pytest.raises(SourceError, match=r"'train/cat/1\.png' cannot be decoded"):
        source[1]


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"a.png": encoded(0)}, "'a' has the members png"),
        ({"a.cls": b"1"}, "'a' has the members cls"),
        ({"a.png": encoded(0), "a.cls": b"one"}, "a number in .cls"),
        ({"a.png": b"no image", "a.cls": b"1"}, "'a' cannot be decoded"),
        ({"a.png": encoded(0), "a.cls": b"0", "b.png": encoded(0), "b.cls": b"1", "c.png": b""}, "'c'"),
        ({}, "holds no samples"),
    ],
)
def test_wrong_wds_samples(tmp_path: Path, members: dict[str, bytes], said: str) -> None:
    _tar(tmp_path / "a.tar", members)
    with pytest.raises(SourceError, match=said):
        open_source(f"wds:{tmp_path}/a.tar")[0]


def test_truncated_wds(tmp_path: Path) -> None:
    spec = _wds(tmp_path, shards=1)
    shard = tmp_path / "train-000000.tar"
    shard.write_bytes(shard.read_bytes()[:700])
    with pytest.raises(SourceError, match="no intact tar"):
        open_source(spec)


def test_repeated_keys_are_refused(tmp_path: Path) -> None:
    for name in ("a.tar", "b.tar"):
        members = {f"{key}.{kind}": data for key in "xy" for kind, data in (("png", encoded(0)), ("cls", b"1"))}
        _tar(tmp_path / name, members)
    with pytest.raises(SourceError, match="'x' occurs more than once"):
        open_source(f"wds:{tmp_path}/*.tar")


def test_a_users_source_is_checked(digits: ArraySource) -> None:
    assert isinstance(digits, Source)

    with pytest.raises(SourceError, match="line break"):
        replace(digits, keys=["a\nb", *digits.keys[1:]])
    with pytest.raises(SourceError, match="has label 10"):
        replace(digits, labels=np.full(256, 10))
    with pytest.raises(SourceError, match="has 10 classes and 3 names"):
        replace(digits, names=["a", "b", "c"])
    with pytest.raises(SourceError, match="256 rows and 0 keys"):
        replace(digits, keys=[])
