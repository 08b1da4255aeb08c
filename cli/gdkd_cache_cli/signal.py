"""`gdkd-cache signal`."""

import click

from gdkd_cache.building.options import SignalOptions
from gdkd_cache.terminal import say
from gdkd_cache_cli.options import CachedDataOptions, CacheOptions, TeacherOptions
from gdkd_cache_cli.taking import argument, takes


@click.command(short_help="Keep the class means of a teacher's features beside a cache.")
@argument("cache")
@takes(data=CachedDataOptions, teacher=TeacherOptions, options=SignalOptions, own=CacheOptions)
def signal(
    cache: str, data: CachedDataOptions, teacher: TeacherOptions, options: SignalOptions, own: CacheOptions
) -> None:
    """Run a teacher over the images of CACHE once, and keep the mean features of each class in a small file.

    Features are what its last linear layer reads. The file belongs to the cache's data; the cache stays as it is. It is
    what `train --method nd --signal FILE` needs.

    \b
    Example:
      gdkd-cache signal digits.zarr --data digits --teacher cnn-l --weights teacher/best.safetensors \\
          --out digits.signal
    """
    from gdkd_cache.building.features import class_features

    opened, source = own.open(cache, data.local_copy), data.open()
    made = class_features(options, opened, source, teacher.open(source))
    shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in made.arrays.items())
    say(f"{options.out}: {shapes}; {made.about}")
