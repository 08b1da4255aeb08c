"""Tar shards that are wrong or hostile: one line that names the shard."""

import os
import tarfile
from pathlib import Path

import pytest
from click.testing import CliRunner
from gdkd_cache_cli.main import main
from inputs import encoded, refused, shard

from gdkd_cache import open_source
from gdkd_cache.errors import SourceError, UsageError


@pytest.mark.parametrize("stream", [False, True])
def test_cut_shards_are_refused(tmp_path: Path, stream: bool) -> None:
    """Wherever they are cut: between two members, too, where tarfile sees the end."""
    path = tmp_path / "a.tar"
    whole = shard(path)
    assert len(open_source(f"wds:{path}", stream=stream)) == 2
    end = len(whole.rstrip(b"\0"))
    end += -end % 512  # of the last member
    for cut in range(0, end + 1024, 512):
        path.write_bytes(whole[:cut])
        refused(lambda: open_source(f"wds:{path}", stream=stream), f"wds: {path} is no intact tar file", SourceError)
    path.write_bytes(whole[:end])
    refused(
        lambda: open_source(f"wds:{path}", stream=stream),
        rf"ends at byte {end:,} without an end marker, .*append 1024 zero bytes.*copy it again",
    )
    path.write_bytes(whole[:end] + bytes(1024))  # as the message says
    assert len(open_source(f"wds:{path}", stream=stream)) == 2


def test_the_commands_refuse_a_cut_shard(tmp_path: Path, weights: Path) -> None:
    path = tmp_path / "a.tar"
    whole = shard(path)
    path.write_bytes(whole[: whole.index(b"b.png")])
    for line in (
        f"train --loss ce --data wds:{path} --eval-data digits --student cnn-s --epochs 1 --out {tmp_path}/o",
        f"build --data wds:{path} --teacher cnn-s --weights {weights} --accept-teacher --views 1 --out {tmp_path}/c",
    ):
        result = CliRunner().invoke(main, line.split())
        assert result.exit_code == 1
        assert f"{path} is no intact tar file: it ends at byte 2,048 without an end marker" in result.stderr


def test_the_rest_of_a_shard_is_not_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    whole = shard(path)
    second = whole.index(b"b.png")
    path.write_bytes(whole[:second] + b"?" + whole[second + 1 :])  # its checksum is wrong now
    refused(lambda: open_source(f"wds:{path}"), f"what begins at byte {second:,} is no header of a member")
    path.write_bytes(whole + whole)
    refused(lambda: open_source(f"wds:{path}"), "goes on after its end at byte")
    path.write_bytes(whole[:second] + bytes(1024) + whole[second + 1024 :])
    refused(lambda: open_source(f"wds:{path}"), f"goes on after its end at byte {second:,}")


_PNG = encoded("PNG")


@pytest.mark.parametrize(
    ("samples", "classes", "said"),
    [
        ({"a.png": _PNG, "a.cls": b"60000000"}, None, "sample 'a' has label 60000000; class ids are below 131072"),
        ({"a.png": _PNG, "a.cls": b"9" * 30}, None, "sample 'a' has label 9+; class ids"),
        ({"a.png": _PNG, "a.cls": b"9" * 5000}, None, "a number in .cls"),
        ({"a.png": _PNG, "a.cls": b"1"}, b"\n" * 200_000, "more than 131072 lines"),
        ({"a.png": _PNG, "a.cls": b"1"}, b"ant\nb\xffe\n", "classes.txt is no text in UTF-8: byte 5"),
        ({"\udcff.png": _PNG, "\udcff.cls": b"1"}, None, r"'\\udcff' is no text in UTF-8"),
        ({"a\nb.png": _PNG, "a\nb.cls": b"1"}, None, r"'a\\nb' is empty or holds a line break"),
        ({"a.png": _PNG, "a.PNG": _PNG, "a.cls": b"1"}, None, "a.tar holds 'a' with png twice"),
    ],
)
def test_wrong_samples(tmp_path: Path, samples: dict[str, bytes], classes: bytes | None, said: str) -> None:
    shard(tmp_path / "a.tar", samples)
    if classes is not None:
        (tmp_path / "classes.txt").write_bytes(classes)
    refused(lambda: open_source(f"wds:{tmp_path}/a.tar"), said, SourceError)


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"0"])
@pytest.mark.parametrize("size", [-(2**40), 3 * 2**30, 2**80])
def test_sizes_in_headers_are_claims(tmp_path: Path, kind: bytes, size: int) -> None:
    path = tmp_path / "a.tar"
    member = tarfile.TarInfo("a.png")
    header = bytearray(member.tobuf())
    header[156:157] = kind
    header[124:136] = size.to_bytes(12, "big", signed=True) if size < 0 else b"\x80" + size.to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path.write_bytes(header + shard(path))
    os.truncate(path, 4 * 2**30)  # as many bytes as it says, all holes
    refused(lambda: open_source(f"wds:{path}"), "is no intact tar file", SourceError)


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("a-{000..001.tar", "braces must be balanced"),
        ("a-{0..999999999999}.tar", "must name 1 to 131072 shards"),
        ("a-{5..-9" + "9" * 30 + "}.tar", "must name 1 to"),
        ("{0..9}" * 6, "must name 1 to"),
        ("{" * 2000 + "}" * 2000, "braces must be balanced|must name"),
        ("{1" + "0" * 5000 + "..2}", "braces must be balanced"),
    ],
)
def test_wrong_patterns(pattern: str, said: str) -> None:
    refused(lambda: open_source(f"wds:{pattern}"), said, UsageError)


@pytest.mark.parametrize("spec", ["..:x", "os:..", ":x", "torch.nn:Linear:3", "builtins:dict:3", "os:system", "a.:b"])
def test_code_that_is_no_source(spec: str) -> None:
    refused(lambda: open_source(spec), "data is|is no source|path after the colon|cannot be imported")
