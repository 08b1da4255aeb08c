"""The store: manifest, ledger, Zarr arrays, and the protocol that keeps them whole."""

from gdkd_cache.store.arrays import SHARD_ROWS as SHARD_ROWS
from gdkd_cache.store.card import card_facts as card_facts
from gdkd_cache.store.card import make_card as make_card
from gdkd_cache.store.card import readme as readme
from gdkd_cache.store.layout import PROBE as PROBE
from gdkd_cache.store.layout import PROBE_BYTES as PROBE_BYTES
from gdkd_cache.store.layout import encode_keys as encode_keys
from gdkd_cache.store.layout import encode_metadata as encode_metadata
from gdkd_cache.store.layout import encode_rows as encode_rows
from gdkd_cache.store.layout import encode_shard as encode_shard
from gdkd_cache.store.layout import row_layouts as row_layouts
from gdkd_cache.store.layout import shard_objects as shard_objects
from gdkd_cache.store.layout import shards_of as shards_of
from gdkd_cache.store.layout import view_layouts as view_layouts
from gdkd_cache.store.manifest import Identity as Identity
from gdkd_cache.store.manifest import Manifest as Manifest
from gdkd_cache.store.mend import keep_views as keep_views
from gdkd_cache.store.mend import restore as restore
from gdkd_cache.store.reader import CacheReader as CacheReader
from gdkd_cache.store.writer import CacheWriter as CacheWriter
from gdkd_cache.store.writer import differences as differences
from gdkd_cache.store.writer import differences_between as differences_between
