"""The manifest: what a cache is, and the size and checksum of every object that it consists of."""

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any

from gdkd_cache.codec.stored import check_codec_json
from gdkd_cache.errors import CacheError
from gdkd_cache.limits import MOST_VIEWS
from gdkd_cache.objects.record import ObjectRecord
from gdkd_cache.schema import check_json, short
from gdkd_cache.store.arrays import shards_fit

FORMAT = "gdkd-cache/1"
MANIFEST_NAME = "manifest.json"
BUILD_NAME = "build.json"
LEDGER_NAME = "ledger"
CARD = ("license", "contact")
MANIFEST_LIMIT = 32 * 2**20
"""Of any JSON in a cache: room for 300,000 objects; what is made of it stays below half a GB."""
_MOST_VALUES = 2**20
_MOST_DEPTH = 32
_MOST_CLASSES = 2**17
_SHA256 = re.compile("[0-9a-f]{64}")

_RECIPE = {"name": str, "steps": [{str: object}], "mix": (None, {str: object}), "decode_side": (None, int)}
_BUILD = {"software?": {str: str}, "batch_size?": int, "device?": str, "precision?": str}
_IDENTITY = {
    **dict.fromkeys(("num_rows", "num_views", "shard_rows"), int),
    "classes": [str],
    "data": {"name": str, "digest": str, "keys_bytes": int},
    "views": (None, {"recipe": _RECIPE, "seed": int, "size": [int], "first?": int}),
    "teacher": {
        "name": str,
        **dict.fromkeys(("weights?", "logits?"), str),
        "mean?": [float],
        "std?": [float],
        "accuracy?": (None, float),
    },
    "request": {"spec": str, "fidelity": float, "losses": [object], "num_top": int},
    "codec": {str: object},
    "fidelity": {
        "rows": int,
        "gradient_error": {str: float},
        "kl": {str: float},
        **dict.fromkeys(("top1_agreement", "topk_agreement"), (None, float)),
        "max_error": float,
    },
    "build": _BUILD | {"parts?": [_BUILD | {"first": int, "num_views": int}]},
    "card?": {f"{name}?": str for name in CARD},
}


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What is being cached and how: two builds with equal identities on equal machines give equal bytes.

    Attributes:
        num_rows, num_views: extent of the cache.
        classes: class names in the order of class ids.
        data: `name` and `digest` of the source, and `keys_bytes`, the length of its key table.
        views: `recipe`, `seed` and `size` [height, width] of the views, and `first`, the number of the first one (0
            where it is not said); None for logits computed elsewhere.
        teacher: name, checksum of the weights, input size, normalisation, accuracy.
        request: what was asked of the codec: spec, fidelity, losses.
        codec: the codec's `to_json`.
        fidelity: what the codec was measured to lose on held-out calibration rows.
        build: batch size, precision, device kind and library versions: what moves a teacher's last bits; `parts`
            has them for each run of views (`first`, `num_views`) where they are not the same for all.
        shard_rows: rows a shard.
        card: what its maker says of it, if anything: `license` and `contact`, as `make_card` makes it.
    """

    num_rows: int
    num_views: int
    classes: tuple[str, ...]
    data: dict[str, Any]
    views: dict[str, Any] | None
    teacher: dict[str, Any]
    request: dict[str, Any]
    codec: dict[str, Any]
    fidelity: dict[str, Any]
    build: dict[str, Any]
    shard_rows: int
    card: dict[str, str] = field(default_factory=dict)

    @property
    def view_numbers(self) -> range:
        """The numbers of the views: their addresses of randomness, which parts of a cache keep."""
        first = (self.views or {}).get("first", 0)
        return range(first, first + self.num_views)

    def to_json(self) -> dict[str, Any]:
        fields = dataclasses.asdict(self) | {"classes": list(self.classes)}
        return {name: value for name, value in fields.items() if name != "card" or value}


@dataclass(frozen=True)
class Manifest:
    """A finished cache: its identity and its objects by name."""

    identity: Identity
    objects: dict[str, ObjectRecord]

    def _body(self) -> dict[str, Any]:
        objects = {name: [record.size, record.sha256] for name, record in self.objects.items()}
        return {"format": FORMAT, "identity": self.identity.to_json(), "objects": objects}

    @property
    def digest(self) -> str:
        """`sha256:` and the SHA-256 of the canonical manifest, which holds every object's checksum."""
        return "sha256:" + hashlib.sha256(canonical_json(self._body())).hexdigest()

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
        check_json(name, stored, {"format": str, "identity": _IDENTITY, "objects": {str: [object]}, "digest": str})
        manifest = cls(identity_from_json(stored["identity"]), objects_from_json(name, stored["objects"]))
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


def identity_from_json(stored: dict[str, Any]) -> Identity:
    """Rebuild an identity from JSON of the right types.

    Raises:
        CacheError: a number is out of range.
    """
    identity = Identity(**{**stored, "classes": tuple(stored["classes"])})
    check_codec_json(identity.codec)
    size = [] if identity.views is None else identity.views["size"]
    ranges = {
        "num_rows": (identity.num_rows, 1, 2**48),
        "num_views": (identity.num_views, 1, MOST_VIEWS),
        "views.first": (identity.view_numbers.start, 0, MOST_VIEWS),
        "the number of classes": (len(identity.classes), 2, _MOST_CLASSES),
        "data.keys_bytes": (identity.data["keys_bytes"], 1, 2**48),
        **{f"views.size[{i}]": (extent, 1, 2**16) for i, extent in enumerate(size)},
        "build.batch_size": (identity.build.get("batch_size", 1), 1, 2**20),
        "codec.tables_bytes": (identity.codec.get("tables_bytes", 1), 1, 2**48),
    }
    for what, (value, least, most) in ranges.items():
        if not least <= value <= most:
            raise CacheError(f"{MANIFEST_NAME}: {what} is {value}; it must be {least} to {most}")
    if identity.codec["num_classes"] != len(identity.classes):
        raise CacheError(
            f"{MANIFEST_NAME}: the codec has {identity.codec['num_classes']} classes, the manifest names "
            f"{len(identity.classes)}"
        )
    if not shards_fit(identity.shard_rows):
        raise CacheError(f"{MANIFEST_NAME}: shard_rows is {identity.shard_rows}, which no cache has")
    if identity.views is not None and len(size) != 2:
        raise CacheError(f"{MANIFEST_NAME}: views.size has {len(size)} numbers; it must have a height and a width")
    return identity


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
