"""`gdkd-cache repair`."""

from dataclasses import dataclass

import click

from gdkd_cache.data.options import RenderOptions
from gdkd_cache.fields import option
from gdkd_cache.terminal import say
from gdkd_cache_cli.options import CacheOptions, KnownDataOptions, KnownTeacherOptions, RecipeOptions
from gdkd_cache_cli.taking import argument, takes


@dataclass(frozen=True, kw_only=True)
class _RepairOptions(RenderOptions):
    """What to do about damage."""

    drop: bool = option(False, "Keep only the views before the first damaged one; needs no teacher.")


@click.command(short_help="Build what is damaged in a cache again, or drop the damaged views.")
@argument("cache")
@takes(
    trust=CacheOptions, options=_RepairOptions, data=KnownDataOptions, recipe=RecipeOptions, teacher=KnownTeacherOptions
)
def repair(
    cache: str,
    trust: CacheOptions,
    options: _RepairOptions,
    data: KnownDataOptions,
    recipe: RecipeOptions,
    teacher: KnownTeacherOptions,
) -> None:
    """Make a damaged cache whole: each damaged object gets the bytes of the manifest's checksum, or is left as it is.

    Damaged metadata needs no more than the cache; keys and labels need --data; shards and the codec's tables need the
    data and the teacher, and are built again, those alone. A damaged manifest cannot be repaired: build again.

    With --drop, the views from the first damaged one on are given up instead, and the smaller cache has a digest of its
    own. Views keep their numbers, as these say how the images were augmented.

    \b
    Examples:
      gdkd-cache repair digits.zarr --data digits --teacher cnn-l --weights teacher/best.safetensors
      gdkd-cache repair digits.zarr --drop
    """
    from gdkd_cache.building.repair import repair as run_repair

    teacher.check(data)
    recipe.check(data)
    source = data.opened()
    result = run_repair(
        cache,
        source=source,
        teacher=teacher.opened(trust.open(cache, data.local_copy), source),
        recipe=recipe.opened(source),
        num_workers=options.num_workers,
        local_copy=trust.copy_of(cache, data.local_copy),
        drop=options.drop,
    )
    say(*result.problems, error=True)
    views = result.manifest.identity.num_views
    dropped = f", views {views} to {views + result.dropped_views - 1} dropped" if result.dropped_views else ""
    verdict = f"{len(result.problems)} problems are left" if result.problems else "whole"
    say(f"{cache}: {len(result.restored)} objects repaired{dropped}, {verdict}; {result.manifest.digest}")
    if result.problems:
        raise SystemExit(1)
