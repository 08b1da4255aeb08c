"""The manifest: what a cache is, and the size and checksum of every object that it consists of."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from gdkd_cache.errors import CacheError

FORMAT = "gdkd-cache/1"
MANIFEST_NAME = "manifest.json"
BUILD_NAME = "build.json"
LEDGER_NAME = "ledger"
MANIFEST_LIMIT = 256 * 2**20
CARD = ("license", "contact")
MOST_VIEWS = 2**20


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
class ObjectRecord:
    """Size in bytes and SHA-256 (hexadecimal) of one object."""

    size: int
    sha256: str

    @classmethod
    def of(cls, data: bytes) -> "ObjectRecord":
        return cls(len(data), hashlib.sha256(data).hexdigest())

    def check(self, name: str, data: bytes) -> None:
        """Compare bytes with the record.

        Raises:
            CacheError: they differ.
        """
        if len(data) != self.size:
            raise CacheError(f"{name}: more or fewer bytes than the manifest's {self.size}: {_REPAIR}")
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise CacheError(f"{name}: its checksum is not the manifest's: {_REPAIR}")


_REPAIR = "the cache is damaged; copy it again, or build it again with --force"


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
    def from_bytes(cls, data: bytes) -> "Manifest":
        """Parse and check a manifest.

        Raises:
            CacheError: too large, no JSON, another format version, wrong types, or a digest that is not its own.
        """
        stored = parse_json(MANIFEST_NAME, data)
        if stored.get("format") != FORMAT:
            raise CacheError(f"the format is {stored.get('format')!r}; this version of gdkd-cache reads {FORMAT!r}")
        try:
            identity = identity_from_json(stored["identity"])
            objects = {name: ObjectRecord(int(size), str(sha)) for name, (size, sha) in stored["objects"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CacheError(f"{MANIFEST_NAME} lacks or misstates {error}") from None
        manifest = cls(identity, objects)
        if stored.get("digest") != manifest.digest:
            raise CacheError(f"{MANIFEST_NAME} was changed after the build: its digest is not its own; copy it again")
        return manifest


def identity_from_json(stored: dict[str, Any]) -> Identity:
    """Rebuild an identity.

    Raises:
        KeyError, TypeError, ValueError: a field is missing, unknown or of another type.
    """
    fields: dict[str, Any] = dict(stored)
    identity = Identity(**{**fields, "classes": tuple(map(str, fields["classes"]))})
    for name in ("num_rows", "num_views", "shard_rows"):
        if type(getattr(identity, name)) is not int or getattr(identity, name) < 1:
            raise ValueError(name)
    for name in ("data", "teacher", "request", "codec", "fidelity", "build"):
        if not isinstance(getattr(identity, name), dict):
            raise ValueError(name)
    if type(identity.data.get("keys_bytes")) is not int or identity.data["keys_bytes"] < 1:
        raise ValueError("data.keys_bytes")
    if identity.views is not None and not (
        isinstance(identity.views, dict)
        and type(identity.views.get("first", 0)) is int
        and 0 <= identity.view_numbers.start <= identity.view_numbers.stop <= MOST_VIEWS
    ):
        raise ValueError("views")
    card = identity.card
    if not isinstance(card, dict) or not all(name in CARD and isinstance(text, str) for name, text in card.items()):
        raise ValueError("card")
    return identity


def canonical_json(value: dict[str, Any]) -> bytes:
    """The one way this format writes JSON: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def parse_json(name: str, data: bytes) -> dict[str, Any]:
    """Parse a JSON object of bounded size.

    Raises:
        CacheError: it is too large, too deep, or no JSON object.
    """
    if len(data) > MANIFEST_LIMIT:
        raise CacheError(f"{name} is larger than {MANIFEST_LIMIT} bytes")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise CacheError(f"{name} is not JSON: the cache is damaged; copy it again") from None
    if not isinstance(value, dict):
        raise CacheError(f"{name} is not a JSON object")
    return value
