"""How a cache is described to a person and to a machine."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gdkd_cache.store import Manifest

_CODEC_FACTS = ("num_top", "step", "num_components", "temperatures", "dtype")


def cache_json(manifest: "Manifest") -> dict[str, Any]:
    """The facts of a cache for `--json`."""
    identity = manifest.identity
    return {
        "digest": manifest.digest,
        "views": identity.num_views,
        "rows": identity.num_rows,
        "classes": len(identity.classes),
        "codec": identity.codec["name"],
        "bytes": manifest.num_bytes,
        "bytes_per_view": manifest.num_bytes / (identity.num_views * identity.num_rows),
        "objects": len(manifest.objects),
        "fidelity": identity.fidelity,
        "identity": identity.to_json(),
    }


def cache_lines(manifest: "Manifest") -> list[str]:
    """The facts of a cache as aligned lines."""
    identity, facts = manifest.identity, cache_json(manifest)
    teacher = [str(identity.teacher.get("name", "unknown"))]
    if identity.teacher.get("accuracy") is not None:
        teacher.append(f"accuracy {identity.teacher['accuracy']:.2%}")
    shown = {name: value for name, value in identity.codec.items() if name in _CODEC_FACTS}
    codec = ", ".join(f"{name} {f'{v:.4g}' if isinstance(v, float) else v}" for name, v in shown.items())
    rows = {
        "data": f"{identity.data['name']}: {identity.num_rows} rows, {len(identity.classes)} classes",
        "teacher": ", ".join(teacher),
        "views": _views(identity.num_views, identity.views),
        "codec": f"{facts['codec']} ({codec})",
        "serves": _served(identity.fidelity),
        "size": f"{facts['bytes_per_view']:.1f} bytes a view, {facts['bytes']:,} bytes in {facts['objects']} objects",
        "made with": ", ".join(f"{name} {number}" for name, number in identity.build.get("software", {}).items()),
        "digest": facts["digest"],
    }
    return [f"{name:>10}  {printable(text)}" for name, text in rows.items()]


def printable(text: str) -> str:
    """Text on one line, without the control characters by which a foreign cache could steer a terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _views(count: int, views: dict[str, Any] | None) -> str:
    if views is None:
        return f"{count}, of logits computed elsewhere"
    height, width = views["size"]
    return f"{count} of {height}x{width}, recipe {views['recipe']['name']}, seed {views['seed']}"


def _served(fidelity: dict[str, Any]) -> str:
    errors = [f"{loss}: gradient error {error:.3f}" for loss, error in fidelity["gradient_error"].items()]
    if not errors:
        return "none of the declared losses"
    return f"{'; '.join(errors)} (on {fidelity['rows']} held-out rows; top classes exact)"
