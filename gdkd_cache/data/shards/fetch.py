"""Bring whole image shards over from object stores: a file that has its name is whole."""

import hashlib
import io
import json
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from uuid import uuid4

from gdkd_cache.errors import SourceError, StoreError, naming
from gdkd_cache.objects.files import Files, Version, open_files

FETCHES_AT_ONCE = 4


def fetch(
    place: tuple[Files, str],
    path: Path,
    *,
    version: Version | None = None,
    sha256: str | None = None,
    wanted: Callable[[], bool],
) -> tuple[Version, str] | None:
    """Bring a file over in pieces.

    Args:
        place: the file.
        path: where to; its folder exists.
        version, sha256: what it must be; None takes whatever it is.
        wanted: asked between pieces.

    Returns:
        What it is, and its SHA-256; None where it was not wanted any more.

    Raises:
        SourceError: no such file, another one than it must be, or one too large for the disk.
        StoreError: the store cannot be reached, or sends something else than it says.
        OSError: the folder cannot be written.
    """
    files, name = place
    found = files.get(name)
    if found is None:
        raise _missing(place)
    said, pieces = found
    if version not in (None, said):
        raise _changed(place)
    free = shutil.disk_usage(path.parent).free
    if said.size > free:
        raise SourceError(f"wds: {files.location}/{name} has {said.size:,} bytes, {path.parent} has room for {free:,}")
    partial = path.with_name(f"{path.name}.{uuid4().hex}.partial")
    size, digest = 0, hashlib.sha256()
    try:
        with naming(path), partial.open("xb") as file, closing(pieces):
            for piece in pieces:
                size += len(piece)
                if not wanted():
                    return None
                if size > said.size:
                    break
                file.write(piece)
                digest.update(piece)
        if size != said.size:
            raise StoreError(f"{files.location}/{name}: the store sent more or less than it said; try again")
        if sha256 not in (None, digest.hexdigest()):  # a store without ETags may not tell
            raise _changed(place)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return said, digest.hexdigest()


def _missing(place: tuple[Files, str]) -> SourceError:
    return SourceError(f"wds: {place[0].location}/{place[1]} does not exist")


def _changed(place: tuple[Files, str]) -> SourceError:
    url = f"{place[0].location}/{place[1]}"
    return SourceError(f"wds: {url} is not what it was when it was opened, it was replaced meanwhile; start again")


def read_text(url: str, limit: int) -> str | None:
    """A small text file, None where there is none.

    Raises:
        SourceError: it has more than `limit` bytes, or is no text.
        UsageError, StoreError: as `fetch`.
    """
    ((files, name),) = open_files([url])
    found = files.get(name)
    if found is None:
        return None
    data = bytearray()
    with closing(found[1]) as pieces:
        for piece in pieces:
            data += piece
            if len(data) > limit:
                raise SourceError(f"wds: {files.location}/{name} has more than {limit} bytes")
    try:
        return io.TextIOWrapper(io.BytesIO(data), "utf-8").read()
    except UnicodeDecodeError:
        raise SourceError(f"wds: {files.location}/{name} is no text in UTF-8") from None


def keep_shards(urls: Sequence[str], folder: Path) -> list[Path]:
    """Shards in a local folder that keeps them: only what it does not hold as the store does is fetched.

    Each lies under a hash of its URL and version, and beside it stands its SHA-256, which is compared here. So the
    folder only grows; it may serve several sources and processes, and may be deleted.

    Raises:
        SourceError, StoreError, OSError: as `fetch`.
    """
    failed = threading.Event()

    def keep(place: tuple[Files, str]) -> Path:
        files, name = place
        version = files.version(name)
        if version is None:
            raise _missing(place)
        facts = {"url": f"{files.location}/{name}", **vars(version)}
        which = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        path = folder / "shards" / which / name
        record = path.with_name(f"{name}.json")
        if path.is_file() and record.is_file():
            with path.open("rb") as file:
                facts["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
            if record.read_bytes() == json.dumps(facts).encode():
                return path
        path.parent.mkdir(parents=True, exist_ok=True)
        fetched = fetch(place, path, version=version, wanted=lambda: not failed.is_set())
        if fetched is not None:
            facts["sha256"] = fetched[1]
            partial = path.with_name(f"{record.name}.{uuid4().hex}.partial")
            with naming(record):
                partial.write_text(json.dumps(facts))
                partial.replace(record)
        return path

    with ThreadPoolExecutor(FETCHES_AT_ONCE, thread_name_prefix="fetch-shards") as pool:
        try:
            return list(pool.map(keep, open_files(urls)))
        except BaseException:
            failed.set()
            raise
