"""The read side that users see: open a cache, look at its views, join it with its source, average several."""

from gdkd_cache.cache.cache import Cache as Cache
from gdkd_cache.cache.cache import open_cache as open_cache
from gdkd_cache.cache.dataset import CachedDataset as CachedDataset
from gdkd_cache.cache.dataset import TeacherBatch as TeacherBatch
from gdkd_cache.cache.dataset import match_rows as match_rows
from gdkd_cache.cache.ensemble import Ensemble as Ensemble
from gdkd_cache.cache.ensemble import ensemble as ensemble
from gdkd_cache.cache.replay import Replay as Replay
from gdkd_cache.cache.replay import check_replay as check_replay
from gdkd_cache.cache.replay import recipe_of as recipe_of
from gdkd_cache.cache.view import View as View
