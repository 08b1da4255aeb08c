"""Cache a teacher's logits over augmented views once; train students from them with the GDKD loss."""

from typing import TYPE_CHECKING

from gdkd_cache.lazy import lazy_names

if TYPE_CHECKING:
    from gdkd_cache import losses as losses
    from gdkd_cache.building.build import build as build
    from gdkd_cache.building.options import BuildOptions as BuildOptions
    from gdkd_cache.building.pack import pack as pack
    from gdkd_cache.cache.cache import Cache as Cache
    from gdkd_cache.cache.cache import open_cache as open_cache
    from gdkd_cache.cache.ensemble import ensemble as ensemble
    from gdkd_cache.cache.signal import open_signal as open_signal
    from gdkd_cache.cache.signal import pack_signal as pack_signal
    from gdkd_cache.codec.base import Codec as Codec
    from gdkd_cache.data.recipes.step import Step as Step
    from gdkd_cache.data.sources.registry import open_source as open_source
    from gdkd_cache.errors import GdkdCacheError as GdkdCacheError
    from gdkd_cache.losses.base import Loss as Loss
    from gdkd_cache.losses.base import loss as loss
    from gdkd_cache.models.opening import open_network as open_network
    from gdkd_cache.registry import use as use
    from gdkd_cache.selection.select import select as select
    from gdkd_cache.training.options import TrainOptions as TrainOptions
    from gdkd_cache.training.presets.preset import open_preset as open_preset
    from gdkd_cache.training.train import train as train

__version__ = "0.1.0"

__getattr__ = lazy_names(
    __name__,
    {
        "BuildOptions": "gdkd_cache.building.options",
        "Cache": "gdkd_cache.cache.cache",
        "Codec": "gdkd_cache.codec.base",
        "GdkdCacheError": "gdkd_cache.errors",
        "Loss": "gdkd_cache.losses.base",
        "Step": "gdkd_cache.data.recipes.step",
        "TrainOptions": "gdkd_cache.training.options",
        "build": "gdkd_cache.building.build",
        "ensemble": "gdkd_cache.cache.ensemble",
        "loss": "gdkd_cache.losses.base",
        "losses": "gdkd_cache.losses:",
        "open_cache": "gdkd_cache.cache.cache",
        "open_network": "gdkd_cache.models.opening",
        "open_preset": "gdkd_cache.training.presets.preset",
        "open_signal": "gdkd_cache.cache.signal",
        "open_source": "gdkd_cache.data.sources.registry",
        "pack": "gdkd_cache.building.pack",
        "pack_signal": "gdkd_cache.cache.signal",
        "select": "gdkd_cache.selection.select",
        "train": "gdkd_cache.training.train",
        "use": "gdkd_cache.registry",
    },
)
