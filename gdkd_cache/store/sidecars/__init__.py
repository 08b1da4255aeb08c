"""Sidecars: a cache as WebDataset shards, each beside the image shard whose samples it speaks of.

`NAME.logits.tar` holds a record `shared` (cache rows, keys, labels and probes of the shard's samples, in the shard's
order) and then one record a view, `00000` and so on, whose members are `.npy` columns of those samples.
`sidecars.json`, written last, holds the manifest of the Zarr cache and the checksum of every record; a fitted
codec's tables lie once in `sidecars.tables.npy`.
"""

from gdkd_cache.store.sidecars.listing import SIDECAR_SUFFIX as SIDECAR_SUFFIX
from gdkd_cache.store.sidecars.listing import SidecarSet as SidecarSet
from gdkd_cache.store.sidecars.reader import SidecarReader as SidecarReader
from gdkd_cache.store.sidecars.reader import open_reader as open_reader
from gdkd_cache.store.sidecars.writer import write_sidecars as write_sidecars
