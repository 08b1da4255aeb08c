"""The transform codec; README.md in this folder says what was tried, and what it gave."""

from gdkd_cache.codec.transform.codec import TransformCodec as TransformCodec
from gdkd_cache.codec.transform.fit import Statistics as Statistics
from gdkd_cache.codec.transform.fit import fit_transform as fit_transform
from gdkd_cache.codec.transform.fit import gather_statistics as gather_statistics
from gdkd_cache.codec.transform.tables import TransformTables as TransformTables
from gdkd_cache.codec.transform.tables import tables_from_bytes as tables_from_bytes
