"""Put back what a cache has lost, byte for byte, or give up the views that lost it."""

from collections.abc import Mapping

from gdkd_cache.codec.base import Codec
from gdkd_cache.objects.objects import open_writable
from gdkd_cache.objects.record import ObjectRecord
from gdkd_cache.store.generation import Generation
from gdkd_cache.store.layout import all_layouts, check_objects, encode_metadata
from gdkd_cache.store.manifest import MANIFEST_NAME, Manifest
from gdkd_cache.store.reader import CacheReader


def restore(reader: CacheReader, objects: Mapping[str, bytes]) -> list[str]:
    """Write objects anew, those alone whose bytes are what the manifest says.

    Returns:
        Names of the others, which are left as they are.
    """
    differing, place = [], open_writable(reader.path)
    generation = Generation.of_cache(place, reader.manifest)
    for name, data in objects.items():
        if reader.manifest.objects[name] == ObjectRecord.of(data):
            place.write(name, data, allowed=generation.check)
        else:
            differing.append(name)
    return differing


def keep_views(reader: CacheReader, codec: Codec, num_views: int) -> Manifest:
    """Make a cache one of its first views alone: the same cache as a build of so many views.

    Metadata first, as its extents change, then the manifest, then the other views' objects go. Killed in between, it is
    a damaged cache, which the same call mends.

    Args:
        reader: a cache whose other objects are whole.
        codec: its codec.
        num_views: how many views stay, at least 1.
    """
    objects = open_writable(reader.path)
    identity = reader.manifest.identity
    identity = identity.of_views(identity.view_numbers[:num_views])
    metadata = encode_metadata(identity, codec)
    layouts = all_layouts(identity, codec)
    names = [name for layout in layouts.values() for name in layout.all_names() if name not in metadata]
    records = {name: reader.manifest.objects[name] for name in names}
    manifest = Manifest(identity, records | {name: ObjectRecord.of(data) for name, data in metadata.items()})
    check_objects(manifest, codec)
    generation = Generation.of_cache(objects, reader.manifest)
    with objects.alone():
        for name, data in metadata.items():
            objects.write(name, data, allowed=generation.check)
        objects.write(MANIFEST_NAME, manifest.to_bytes(), allowed=generation.check)
        objects.delete(reader.manifest.objects.keys() - manifest.objects.keys())
    return manifest
