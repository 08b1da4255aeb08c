"""How a cache is described to a person and to a machine."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gdkd_cache.store.manifest import Manifest


def cache_json(manifest: "Manifest") -> dict[str, Any]:
    """The facts of a cache for `--json`."""
    from gdkd_cache.schema import to_json

    identity = manifest.identity
    return {
        "digest": manifest.digest,
        "views": identity.num_views,
        "rows": identity.num_rows,
        "classes": len(identity.classes),
        "codec": identity.codec.name,
        "bytes": manifest.num_bytes,
        "bytes_per_view": manifest.num_bytes / (identity.num_views * identity.num_rows),
        "objects": len(manifest.objects),
        "fidelity": to_json(identity.fidelity),
        "identity": to_json(identity),
    }


def cache_lines(manifest: "Manifest") -> list[str]:
    """The card of a cache, its size and its digest as aligned lines."""
    from gdkd_cache.store.card import card_facts

    facts = cache_json(manifest)
    rows = card_facts(manifest.identity) | {
        "size": f"{facts['bytes_per_view']:.1f} bytes a view, {facts['bytes']:,} bytes in {facts['objects']} objects",
        "digest": facts["digest"],
    }
    return [f"{name:>10}  {text}" for name, text in rows.items()]
