"""Images and shards: what a dataset of somebody else holds."""

import io
import struct
import tarfile

from PIL import Image

from attacks.case import Attack, Case
from attacks.fuzz import fuzz
from attacks.making import read_shard, write_shard

_EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
_FORMATS: tuple[tuple[str, bytes | str], ...] = (
    ("EPS", _EPS),
    (
        "EPS with a preview",
        b"\xc5\xd0\xd3\xc6" + struct.pack("<IIIIII", 30, len(_EPS), 0, 0, 0, 0) + b"\xff\xff" + _EPS,
    ),
    ("AVIF", b"\x00\x00\x00\x20ftypavif\x00\x00\x00\x00avifmif1miafMA1B" + bytes(200)),
    ("BLP", b"BLP2" + struct.pack("<IbbbbII", 1, 1, 0, 0, 0, 8, 8) + bytes(400)),
    (
        "DDS",
        b"DDS " + struct.pack("<IIIIIII", 124, 0x1007, 8, 8, 0, 0, 0) + bytes(44) + b"\x20\x00\x00\x00" + bytes(60),
    ),
    ("WMF", b"\xd7\xcd\xc6\x9a\x00\x00" + bytes(100)),
    ("FITS", b"SIMPLE  =                    T" + b" " * 3000),
    ("PSD", b"8BPS\x00\x01" + bytes(300)),
    ("HDF5", b"\x89HDF\r\n\x1a\n" + bytes(100)),
    ("GRIB", b"GRIB" + bytes(3) + b"\x01" + bytes(100)),
    ("BUFR", b"BUFR" + bytes(100)),
    *(
        (name, name)
        for name in ("GIF", "BMP", "TIFF", "WEBP", "ICO", "PPM", "TGA", "SGI", "PCX", "IM", "JPEG2000", "MPO")
    ),
    *((name, name) for name in ("ICNS", "DIB", "SPIDER", "PDF")),
)
_NEVER = ("EPS", "EPS with a preview", "AVIF", "BLP", "DDS", "WMF", "FITS", "PSD", "HDF5", "GRIB", "BUFR", "PDF")


def replaced_images(attack: Attack) -> Case:
    """Other pixels under the same name, or other labels, of a few images: whether these are probed or not."""
    way, sharded = attack.number % 5, attack.number // 5 % 2
    if sharded:
        images, cache = attack.kit.copy(attack.kit.shards, attack.place), attack.kit.shard_cache
        shard = images / f"part-{attack.rng.randrange(2)}.tar"
        members = read_shard(shard)
        places = [i for i, (name, _) in enumerate(members) if name.endswith(".png")]
        one, two = attack.rng.sample(places, 2)
        other = members[two][1] if way == 0 else _changed(attack, members[one][1], way)
        members[one] = (members[one][0], other)
        write_shard(shard, members)
    else:
        images, cache = attack.kit.copy(attack.kit.images, attack.place), attack.kit.cache
        one, two = attack.rng.sample(sorted((images / "train").rglob("*.png")), 2)
        one.write_bytes(two.read_bytes() if way == 0 else _changed(attack, one.read_bytes(), way))
    if attack.rng.random() < 0.3:
        return Case(command=["verify", cache, "--data", attack.kit.data(images)], refuse=True)
    return Case(command=attack.kit.train(cache, images, attack.place / "out"), refuse=True)


def _changed(attack: Attack, png: bytes, way: int) -> bytes:
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    if way == 1:
        picture = picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM).rotate(90)
    elif way == 2:
        picture = Image.eval(picture, lambda value: 255 - value)
    elif way == 3:
        picture = picture.resize((16, 16)).crop((4, 4, 12, 12))
    else:
        picture = Image.new("RGB", picture.size, tuple(attack.rng.randrange(256) for _ in range(3)))
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def formats(attack: Attack) -> Case:
    """Files of all formats that Pillow opens, under the name of a PNG or JPEG: some of them run programs."""
    name, made = attack.next_of(_FORMATS)
    if isinstance(made, str):
        out = io.BytesIO()
        try:
            Image.new("RGB", (8, 8), (200, 100, 50)).save(out, made)
        except (OSError, KeyError, ValueError):
            out.write(b"no such format here")
        made = out.getvalue()
    images = attack.kit.copy(attack.kit.images, attack.place)
    path = attack.rng.choice(sorted((images / "val").rglob("*.png")))
    path.unlink()
    path.with_suffix(attack.rng.choice((".png", ".jpg", ".jpeg"))).write_bytes(made)
    return Case(command=attack.kit.evaluate(images), refuse=name in _NEVER)


def fuzzed_images(attack: Attack) -> Case:
    images = attack.kit.copy(attack.kit.images, attack.place)
    path = attack.rng.choice(sorted((images / "val").rglob("*.png")))
    data = path.read_bytes()
    if attack.number % 2:
        out, picture = io.BytesIO(), Image.open(path).convert("RGB")
        picture.save(out, attack.rng.choice(("JPEG", "PNG", "WEBP")))
        path.unlink()
        path, data = path.with_suffix(".jpg"), out.getvalue()
    path.write_bytes(fuzz(attack.rng, data))
    return Case(command=attack.kit.evaluate(images))


def fuzzed_shards(attack: Attack) -> Case:
    """Bytes of a shard, with its checksums of headers mended in half of the cases; and odd members."""
    images = attack.kit.copy(attack.kit.shards, attack.place)
    shard = images / "part-0.tar"
    way = attack.number % 3
    if way < 2:
        data = bytearray(fuzz(attack.rng, shard.read_bytes()))
        for start in range(0, len(data) - 512, 512) if way else ():
            if data[start + 257 : start + 262] == b"ustar":
                header = data[start : start + 148] + b" " * 8 + data[start + 156 : start + 512]
                data[start + 148 : start + 156] = b"%06o\0 " % sum(header)
        shard.write_bytes(data)
    else:
        members = read_shard(shard)
        png = members[1][1]
        odd = attack.rng.choice(
            ([("900.cls", b"9" * 30)], [("900.cls", b"")], [("900.cls", "٣".encode())], [("900.cls", b"-1")],
             [("900.cls", b"1.5")], [("900.cls", b"0x1")], [("900.cls", b" 1 \n")], [("900.cls", b"\xff")],
             [("900.cls", b"10")], [("\udcff\udcfe.cls", b"1"), ("\udcff\udcfe.png", png)], [("900.png", png)],
             [("../../outside/x.cls", b"1"), ("../../outside/x.png", png)], [("/etc/x.cls", b"1"), ("/etc/x.png", png)],
             [("a\n31 objects checked, whole.cls", b"1"), ("a\n31 objects checked, whole.png", b"x")],
             [("\x1b[2J.cls", b"1"), ("\x1b[2J.png", b"x")], [("x" * 3000 + ".cls", b"1"), ("x" * 3000 + ".png", png)])
        )  # fmt: skip
        if len(odd) == 1 and odd[0][0].endswith("cls"):
            odd.append(("900.png", png))
        write_shard(shard, [*members, *odd])
        if attack.rng.random() < 0.2:
            (images / "classes.txt").write_bytes(
                attack.rng.choice((b"\xff\xfe", b"", b"a\x1b[2J\nb", b"\n" * 20, b"a\0b"))
            )
    if attack.rng.random() < 0.5:
        return Case(command=attack.kit.evaluate(images))
    return Case(command=attack.kit.train(attack.kit.shard_cache, images, attack.place / "out"))


def cut_shards(attack: Attack) -> Case:
    """A shard that ends at a member's boundary, or at any: what is missing must be missed."""
    images = attack.kit.copy(attack.kit.shards, attack.place)
    shard = images / "part-1.tar"
    with tarfile.open(shard) as tar:
        ends = [member.offset for member in tar][1:]
    data = shard.read_bytes()
    samples = ends[1::2]  # where a sample begins, so that none is half there
    cut = attack.next_of((attack.rng.choice(samples), attack.rng.choice(ends), attack.rng.randrange(1, ends[-1])))
    shard.write_bytes(data[:cut])
    if attack.number // 3 % 2:
        command = attack.kit.build(images, attack.kit.weights, attack.place / "out.zarr")
    else:
        command = attack.kit.train(attack.kit.shard_cache, images, attack.place / "out")
    return Case(command=command, refuse=True)
