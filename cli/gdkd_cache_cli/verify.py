"""`gdkd-cache verify`."""

from dataclasses import dataclass

import click

from gdkd_cache.fields import check_fields, option
from gdkd_cache.terminal import say, say_json
from gdkd_cache_cli.options import CacheOptions, KnownDataOptions, KnownTeacherOptions, RecipeOptions
from gdkd_cache_cli.taking import argument, takes


@dataclass(frozen=True, kw_only=True)
class _VerifyOptions:
    """How closely to look."""

    strict_replay: bool = option(False, "Count views that differ by rounding as a problem.")
    deep: bool = option(False, "Also decode every chunk of every view, and check every value.")
    rows: int = option(256, "On how many views of an image --teacher is run.", least=16)

    def __post_init__(self) -> None:
        check_fields(self)


@click.command(short_help="Check that a cache is whole and belongs to these images and this teacher.")
@argument("cache")
@takes(
    trust=CacheOptions,
    options=_VerifyOptions,
    data=KnownDataOptions,
    recipe=RecipeOptions,
    teacher=KnownTeacherOptions,
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for machines.")
def verify(
    cache: str,
    trust: CacheOptions,
    options: _VerifyOptions,
    data: KnownDataOptions,
    recipe: RecipeOptions,
    teacher: KnownTeacherOptions,
    as_json: bool,
) -> None:
    """Compare every object of a cache with its manifest; exit with 1 when something is wrong.

    With --data, every image is decoded and compared with what the teacher saw, and of the probed ones (1 in 64, at
    least 32) the views are rendered again and compared too. With --teacher and --weights too, that teacher is run again
    on some rows: its weights must be those of the manifest, and its logits those of the cache, within the error that
    the manifest states.

    \b
    Examples:
      gdkd-cache verify digits.zarr --data digits
      gdkd-cache verify digits.zarr --deep --data digits --teacher cnn-l --weights teacher/best.safetensors
      gdkd-cache verify s3://bucket/imagenet.zarr --data wds:s3://bucket/train-{000..127}.tar --stream --local-copy kept
    """
    from gdkd_cache.checking.verify import verify as run_verify

    teacher.check(data)
    recipe.check(data)
    source = data.opened()
    result = run_verify(
        cache,
        digest=trust.digest,
        local_copy=trust.copy_of(cache, data.local_copy),
        deep=options.deep,
        source=source,
        recipe=recipe.opened(source),
        strict=options.strict_replay,
        teacher=teacher.opened(trust.open(cache, data.local_copy), source),
        num_rows=options.rows,
    )
    if as_json:
        facts = {"digest": result.digest, "objects": result.num_objects, "problems": list(result.problems)}
        facts["views_decoded"] = result.views_decoded
        facts["replay"] = None if result.replay is None else vars(result.replay)
        facts["teacher"] = None if result.rerun is None else vars(result.rerun)
        say_json(facts)
    else:
        say(*result.problems, error=True)
        if result.replay is not None:
            say(result.replay)
        if result.rerun is not None:
            say(result.rerun)
        verdict = f"{len(result.problems)} problems" if result.problems else "whole"
        decoded = f", {result.views_decoded} views decoded" if options.deep else ""
        say(f"{cache}: {result.num_objects} objects checked{decoded}, {verdict}; {result.digest}")
    if result.problems:
        raise SystemExit(1)
