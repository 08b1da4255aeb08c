"""The store: manifest, ledger, Zarr arrays, and the protocol that keeps them whole."""

from gdkd_cache.store.arrays import SHARD_ROWS as SHARD_ROWS
from gdkd_cache.store.layout import PROBE as PROBE
from gdkd_cache.store.layout import PROBE_BYTES as PROBE_BYTES
from gdkd_cache.store.layout import encode_keys as encode_keys
from gdkd_cache.store.layout import view_layouts as view_layouts
from gdkd_cache.store.manifest import Identity as Identity
from gdkd_cache.store.manifest import Manifest as Manifest
from gdkd_cache.store.reader import CacheReader as CacheReader
from gdkd_cache.store.sidecars import SIDECAR_SUFFIX as SIDECAR_SUFFIX
from gdkd_cache.store.sidecars import SidecarReader as SidecarReader
from gdkd_cache.store.sidecars import SidecarSet as SidecarSet
from gdkd_cache.store.sidecars import open_reader as open_reader
from gdkd_cache.store.sidecars import write_sidecars as write_sidecars
from gdkd_cache.store.writer import CacheWriter as CacheWriter
