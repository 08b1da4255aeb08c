"""Cache a teacher's logits over augmented views once; train students from them with the GDKD loss."""

from gdkd_cache import losses as losses
from gdkd_cache.cache import Cache as Cache
from gdkd_cache.cache import ensemble as ensemble
from gdkd_cache.cache import open_cache as open_cache
from gdkd_cache.data import open_source as open_source
from gdkd_cache.errors import GdkdCacheError as GdkdCacheError
from gdkd_cache.losses import LossSettings as LossSettings
from gdkd_cache.pipeline.pack import pack as pack

__version__ = "0.1.0"
