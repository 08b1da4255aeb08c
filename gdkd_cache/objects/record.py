"""What is known of an object beforehand: its size and checksum."""

import hashlib
from dataclasses import dataclass

from gdkd_cache.errors import CacheError

_REPAIR = "the cache is damaged; copy it again, or run gdkd-cache repair"


@dataclass(frozen=True)
class ObjectRecord:
    """Size in bytes and SHA-256 (hexadecimal) of one object."""

    size: int
    sha256: str

    @classmethod
    def of(cls, data: bytes) -> "ObjectRecord":
        return cls(len(data), hashlib.sha256(data).hexdigest())

    def check(self, name: str, found: "ObjectRecord") -> None:
        """Compare what was found with the record.

        Raises:
            CacheError: they differ.
        """
        if found.size != self.size:
            raise CacheError(f"{name}: more or fewer bytes than the manifest's {self.size}: {_REPAIR}")
        if found.sha256 != self.sha256:
            raise CacheError(f"{name}: its checksum is not the manifest's: {_REPAIR}")
