"""The manifest: what a cache is, and the size and checksum of every object that it consists of."""

import hashlib
import json
import re
from dataclasses import dataclass, fields, replace
from typing import Any

from gdkd_cache.codec.fidelity import Fidelity
from gdkd_cache.codec.stored import check_codec_json
from gdkd_cache.errors import CacheError
from gdkd_cache.limits import MOST_CELLS, MOST_CLASSES, MOST_VIEWS
from gdkd_cache.objects.record import ObjectRecord
from gdkd_cache.schema import check_json, from_json, kind_of, short, to_json
from gdkd_cache.store.arrays import shards_fit
from gdkd_cache.store.cells import ONE_CELL, Cells
from gdkd_cache.store.facts import (
    LAPLACE,
    NO_CARD,
    Build,
    BuildFacts,
    Card,
    CodecFacts,
    Data,
    Examination,
    NoiseFacts,
    PartFacts,
    RequestFacts,
    TeacherFacts,
    Views,
)

FORMAT = "gdkd-cache/1"
MANIFEST_NAME = "manifest.json"
BUILD_NAME = "build.json"
LEDGER_NAME = "ledger"
REPLACED_NAME = "replaced.json"
_TABLES = "tables/c/"
MANIFEST_LIMIT = 32 * 2**20
"""Of any JSON in a cache: room for `MOST_OBJECTS`; what is made of it stays below half a GB."""
MOST_OBJECTS = 300_000
_MOST_VALUES = 2**20
_MOST_OUTPUTS = 16
_MOST_DEPTH = 32
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What is being cached and how: two builds with equal identities on equal machines give equal bytes.

    Attributes:
        num_rows, num_views: extent of the cache.
        classes: class names in the order of class ids.
        data: the source.
        views: how the views are made; None for logits computed elsewhere.
        teacher: whose logits they are.
        request: what was asked of the codec.
        codec: what encodes them; `UNFITTED` where the build itself decides.
        fidelity: what the codec was measured to lose on held-out calibration rows; `UNMEASURED` likewise.
        build: what moves a teacher's last bits.
        shard_rows: rows a shard.
        cells: how many distributions a row holds.
        card: what its maker says of it.
        examination: how right the teacher is; None where nobody looked.
        noise: what was added to what it said; None for none. Equal builds then give other bytes.
    """

    num_rows: int
    num_views: int
    classes: tuple[str, ...]
    data: Data
    views: Views | None
    teacher: TeacherFacts
    request: RequestFacts
    codec: CodecFacts
    fidelity: Fidelity
    build: Build
    shard_rows: int
    cells: Cells = ONE_CELL
    card: Card = NO_CARD
    examination: Examination | None = None
    noise: NoiseFacts | None = None

    @property
    def view_numbers(self) -> range:
        """The numbers of the views: their addresses of randomness, which parts of a cache keep."""
        first = 0 if self.views is None else self.views.first or 0
        return range(first, first + self.num_views)

    @property
    def parts(self) -> tuple[PartFacts, ...]:
        """How each run of views was built: one, where it is the same for all."""
        return self.build.parts or (_part(self.build, self.view_numbers),)

    def built(self, view: int) -> BuildFacts:
        """How a view was built; it states nothing where the manifest does not."""
        return next((part for part in self.parts if view in part.view_numbers), BuildFacts())

    def of_views(self, numbers: range, *others: "Identity") -> "Identity":
        """The identity of the cache of these views, some of them of others that are parts of one with this."""
        parts: list[PartFacts] = []
        stated = (part for identity in (self, *others) for part in identity.parts)
        for part in sorted(stated, key=lambda part: part.first):
            held = range(max(part.first, numbers.start), min(part.view_numbers.stop, numbers.stop))
            if parts and parts[-1] == _part(part, parts[-1].view_numbers):
                parts[-1] = replace(parts[-1], num_views=parts[-1].num_views + len(held))
            elif held:
                parts.append(_part(part, held))
        return replace(
            self,
            num_views=len(numbers),
            views=self.views and replace(self.views, first=numbers.start),
            build=Build(**_facts(parts[0])) if len(parts) == 1 else Build(parts=tuple(parts)),
        )


def _facts(build: BuildFacts) -> dict[str, Any]:
    return {field.name: getattr(build, field.name) for field in fields(BuildFacts)}


def _part(build: BuildFacts, numbers: range) -> PartFacts:
    return PartFacts(**_facts(build), first=numbers.start, num_views=len(numbers))


@dataclass(frozen=True)
class Manifest:
    """A finished cache: its identity and its objects by name."""

    identity: Identity
    objects: dict[str, ObjectRecord]

    def _body(self) -> dict[str, Any]:
        objects = {name: [record.size, record.sha256] for name, record in self.objects.items()}
        return {"format": FORMAT, "identity": to_json(self.identity), "objects": objects}

    @property
    def digest(self) -> str:
        """`sha256:` and the SHA-256 of the canonical manifest, which holds every object's checksum."""
        return "sha256:" + hashlib.sha256(canonical_json(self._body())).hexdigest()

    @property
    def begun(self) -> "Manifest":
        """What `build.json` holds of it from the start: not its card, which may change until the end, nor any shard."""
        tables = {name: record for name, record in self.objects.items() if name.startswith(_TABLES)}
        return Manifest(replace(self.identity, card=NO_CARD), tables)

    @property
    def num_bytes(self) -> int:
        """Size of the whole cache: every object and the manifest itself."""
        return sum(record.size for record in self.objects.values()) + len(self.to_bytes())

    def to_bytes(self) -> bytes:
        return canonical_json(self._body() | {"digest": self.digest})

    @classmethod
    def from_bytes(cls, data: bytes, name: str = MANIFEST_NAME) -> "Manifest":
        """Parse and check a manifest.

        Raises:
            CacheError: too large, not this format's JSON, another format version, wrong types, numbers out of range, or
                a digest that is not its own.
        """
        stored = parse_json(name, data)
        if stored.get("format") != FORMAT:
            raise CacheError(
                f"the format is {short(stored.get('format'))}; this version of gdkd-cache reads {FORMAT!r}"
            )
        kind = {"format": str, "identity": kind_of(Identity), "objects": {str: [object]}, "digest": str}
        check_json(name, stored, kind)
        identity = from_json(Identity, stored["identity"])
        _check(identity)
        manifest = cls(identity, objects_from_json(name, stored["objects"]))
        if stored["digest"] != manifest.digest:
            raise CacheError(f"{name} was changed after the build: its digest is not its own; copy it again")
        return manifest


def objects_from_json(where: str, stored: dict[str, list[Any]]) -> dict[str, ObjectRecord]:
    """Rebuild objects by name from [size, checksum] pairs.

    Raises:
        CacheError: a pair is something else.
    """
    objects = {}
    for name, pair in stored.items():
        size, sha256 = pair if len(pair) == 2 else (None, None)
        if not (type(size) is int and size >= 0 and isinstance(sha256, str) and _SHA256.fullmatch(sha256)):
            raise CacheError(f"{where}: object {short(name)} is {short(pair)}; expected [size, SHA-256]")
        objects[name] = ObjectRecord(size, sha256)
    return objects


def _check(identity: Identity) -> None:
    """Refuse an identity, made of JSON of the right types, that no cache has.

    Raises:
        CacheError: a number is out of range, or an unknown codec.
    """
    check_codec_json(to_json(identity.codec))
    size = () if identity.views is None else identity.views.size
    tables_bytes = identity.codec.tables_bytes
    ranges = {
        "num_rows": (identity.num_rows, 1, 2**48),
        "num_views": (identity.num_views, 1, MOST_VIEWS),
        "views.first": (identity.view_numbers.start, 0, MOST_VIEWS),
        "the number of classes": (len(identity.classes), 2, MOST_CLASSES),
        "data.keys_bytes": (identity.data.keys_bytes, 1, 2**48),
        "data.unlabelled": (identity.data.unlabelled, 0, identity.num_rows),
        **{f"views.size[{i}]": (extent, 1, 2**16) for i, extent in enumerate(size)},
        **{
            f"build.batch_size of view {part.first}": (part.batch_size, 1, 2**20)
            for part in identity.parts
            if part.batch_size is not None
        },
        "codec.tables_bytes": (1 if tables_bytes is None else tables_bytes, 1, 2**48),
        "cells.height": (identity.cells.height, 1, MOST_CELLS),
        "cells.width": (identity.cells.width, 1, MOST_CELLS),
        "the number of cells.outputs": (len(identity.cells.outputs), 0, _MOST_OUTPUTS),
    }
    for what, (value, least, most) in ranges.items():
        if not least <= value <= most:
            raise CacheError(f"{MANIFEST_NAME}: {what} is {value}; it must be {least} to {most}")
    outputs, most = identity.teacher.classes or (), len(identity.classes) - 1
    if len(outputs) > MOST_CLASSES or any(not -1 <= number <= most for number in outputs):
        raise CacheError(f"{MANIFEST_NAME}: teacher.classes has {len(outputs)} numbers, not all of them -1 to {most}")
    if len(identity.cells.outputs) == 1 or len({*identity.cells.outputs}) != len(identity.cells.outputs):
        raise CacheError(f"{MANIFEST_NAME}: cells.outputs must be several names, or none where there is one output")
    if identity.codec.references and identity.cells != ONE_CELL:
        raise CacheError(f"{MANIFEST_NAME}: rows of several cells, whose views predict no others, have references")
    noise = identity.noise
    if noise is not None and not (noise.mechanism == LAPLACE and noise.epsilon > 0 and noise.sensitivity > 0):
        raise CacheError(f"{MANIFEST_NAME}: noise is {short(to_json(noise))}, which no cache has")
    if identity.codec.num_classes != len(identity.classes):
        raise CacheError(
            f"{MANIFEST_NAME}: the codec has {identity.codec.num_classes} classes, the manifest names "
            f"{len(identity.classes)}"
        )
    if not shards_fit(identity.shard_rows):
        raise CacheError(f"{MANIFEST_NAME}: shard_rows is {identity.shard_rows}, which no cache has")
    if identity.views is not None and len(size) != 2:
        raise CacheError(f"{MANIFEST_NAME}: views.size has {len(size)} numbers; it must have a height and a width")


def canonical_json(value: dict[str, Any]) -> bytes:
    """The one way this format writes JSON: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def parse_json(name: str, data: bytes) -> dict[str, Any]:
    """Parse a JSON object of bounded size and depth, in the one form that `canonical_json` writes.

    So it holds no repeated names, no NaN or infinity, and no edit goes unseen, not even of white space.

    Raises:
        CacheError: it is too large, too deep, or no such JSON object.
    """
    if len(data) > MANIFEST_LIMIT or sum(map(data.count, (b",", b"[", b"{"))) > _MOST_VALUES:
        raise CacheError(f"{name} is larger than {MANIFEST_LIMIT} bytes or {_MOST_VALUES} values")
    try:
        value = json.loads(data)
        if not isinstance(value, dict):
            raise CacheError(f"{name} is not a JSON object")
        canonical = _depth(value) <= _MOST_DEPTH and canonical_json(value) == data
    except (ValueError, RecursionError):
        raise CacheError(f"{name} is not JSON: the cache is damaged; copy it again") from None
    if not canonical:
        raise CacheError(f"{name} was edited: it is not in the form in which this format writes JSON; copy it again")
    return value


def _depth(value: object) -> int:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, children), default=0)
