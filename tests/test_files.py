"""Files that a user names are plain, bounded and never waited for."""

import os
import socket
from pathlib import Path

import pytest

from gdkd_cache.errors import ModelError
from gdkd_cache.files import read_bounded


def test_reads_up_to_the_bound(tmp_path: Path) -> None:
    path, link = tmp_path / "a", tmp_path / "link"
    path.write_bytes(b"12345678")
    link.symlink_to(path)
    assert read_bounded(path, 8, "weights", ModelError) == read_bounded(link, 8, "weights", ModelError) == b"12345678"
    with pytest.raises(ModelError, match=r"weights .*/a is larger than 7 bytes, the most that are read"):
        read_bounded(path, 7, "weights", ModelError)


def test_what_is_no_plain_file_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("folder").mkdir()
    Path("file").touch()
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket")
        for name, said in {
            "pipe": "weights pipe is no plain file but a pipe, a socket or a device; name a file",
            "socket": "weights socket is no plain file",
            "/dev/zero": "weights /dev/zero is no plain file",
            "folder": "weights folder is a folder; name a file",
            "none": "weights none does not exist",
            "file/none": "weights file/none does not exist",
        }.items():
            with pytest.raises(ModelError, match=said):
                read_bounded(Path(name), 8, "weights", ModelError)
