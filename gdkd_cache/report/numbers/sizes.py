"""What takes a cache's bytes."""

from collections.abc import Mapping


def bytes_by_array(sizes: Mapping[str, int]) -> dict[str, int]:
    """Bytes of each array of a Zarr group, the largest first; files that are no array's stand together under "".

    Args:
        sizes: bytes of each object by its name, `ARRAY/c/...` or `ARRAY/zarr.json`.
    """
    found: dict[str, int] = {}
    for name, size in sizes.items():
        array = name.partition("/")[0] if "/" in name else ""
        found[array] = found.get(array, 0) + size
    return dict(sorted(found.items(), key=lambda item: -item[1]))
