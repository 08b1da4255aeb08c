"""Sources, recipes, views, and the loaders that render them."""

from gdkd_cache.data.loader import ViewLoader as ViewLoader
from gdkd_cache.data.loader import default_num_workers as default_num_workers
from gdkd_cache.data.recipes import LARGEST_SIDE as LARGEST_SIDE
from gdkd_cache.data.recipes import Recipe as Recipe
from gdkd_cache.data.recipes import open_recipe as open_recipe
from gdkd_cache.data.shards import ShardSource as ShardSource
from gdkd_cache.data.shards import epoch_requests as epoch_requests
from gdkd_cache.data.source import ArraySource as ArraySource
from gdkd_cache.data.source import EncodedSource as EncodedSource
from gdkd_cache.data.source import Source as Source
from gdkd_cache.data.source import check_source as check_source
from gdkd_cache.data.source import labels_of as labels_of
from gdkd_cache.data.source import name_of as name_of
from gdkd_cache.data.source import normalization_of as normalization_of
from gdkd_cache.data.sources import open_source as open_source
from gdkd_cache.data.views import ViewBatch as ViewBatch
from gdkd_cache.data.views import ViewRenderer as ViewRenderer
from gdkd_cache.data.views import ViewRequest as ViewRequest
from gdkd_cache.data.views import image_size as image_size
from gdkd_cache.data.views import normalize_pixels as normalize_pixels
from gdkd_cache.data.views import requests_for as requests_for
