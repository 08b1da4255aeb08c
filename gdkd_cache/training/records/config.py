"""`run.toml` in the folder of a training: every option of it, and what it read; `train --config` repeats it."""

from collections.abc import Mapping
from typing import Any

from gdkd_cache.cache.cache import Cache
from gdkd_cache.cache.ensemble import Ensemble
from gdkd_cache.training.options import TrainOptions
from gdkd_cache.training.records.facts import plain_options, versions
from gdkd_cache.training.records.tables import toml_table, toml_value

_OWN = ("out", "force")
"""Options that are of one run alone."""


def config_text(options: TrainOptions, command: Mapping[str, Mapping[str, Any]], cache: Cache | Ensemble | None) -> str:
    """The text of `run.toml`.

    Args:
        options: all of them are told.
        command: tables of what else the command was given, such as its data.
        cache: what is trained from.
    """
    told = {name: value for name, value in plain_options(options).items() if name not in _OWN}
    lines = ["# gdkd-cache train --config run.toml --out OTHER trains so again.", *toml_table("train", told)]
    for name, values in command.items():
        lines += toml_table(name, values)
    caches = cache.caches if isinstance(cache, Ensemble) else [cache] if cache is not None else []
    for one in caches:
        manifest = one.manifest
        per_view = manifest.num_bytes / (manifest.identity.num_rows * manifest.identity.num_views)
        lines += ["", "[[cache]]", f"path = {toml_value(str(one.path))}", f"digest = {toml_value(manifest.digest)}"]
        lines += [f"bytes_per_view = {per_view:.4f}"]
    return "\n".join([*lines, *toml_table("versions", versions()), ""])
