"""Cache a teacher's logits over augmented views once; train students from them with the GDKD loss."""

from gdkd_cache import losses as losses
from gdkd_cache.building.pack import pack as pack
from gdkd_cache.cache.cache import Cache as Cache
from gdkd_cache.cache.cache import open_cache as open_cache
from gdkd_cache.cache.ensemble import ensemble as ensemble
from gdkd_cache.data.sources.registry import open_source as open_source
from gdkd_cache.errors import GdkdCacheError as GdkdCacheError
from gdkd_cache.losses.settings import LossSettings as LossSettings

__version__ = "0.1.0"
