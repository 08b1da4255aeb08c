"""`gdkd-cache build`."""

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from gdkd_cache_cli.options import (
    PLACE,
    card_options,
    codec_options,
    codec_request,
    data_options,
    machine_options,
    view_options,
)


@click.command(short_help="Run a teacher over seeded views of a dataset and keep its logits.")
@data_options
@view_options
@click.option(
    "--first-view",
    default=0,
    show_default=True,
    help="Number of the first view: teams that build views 0-19 and 20-39 can merge them.",
)
@codec_options
@click.option(
    "--codec-from",
    default=None,
    type=PLACE,
    metavar="CACHE",
    help="Take the codec of this cache, of the same data, teacher, recipe and seed, so that both can be merged.",
)
@click.option(
    "--batch-size",
    default=256,
    show_default=True,
    help="Images the teacher sees at once; part of the digest.",
)
@click.option("--precision", default="auto", show_default=True, help="auto, float32, float16 or bfloat16.")
@machine_options
@card_options
@click.option("--out", required=True, type=PLACE, help="The cache folder, or a URL: s3://, gs://, az://.")
@click.option("--force", is_flag=True, help="Replace another cache there.")
@click.option(
    "--sidecars",
    default=None,
    type=PLACE,
    metavar="DIR",
    help="Also write the cache as sidecars of the wds shards of --data, as convert does; DIR may be their folder.",
)
def build(
    data: str,
    stream: bool,
    download: bool,
    local_copy: Path | None,
    teacher: str,
    weights: Path,
    views: int,
    recipe: str,
    seed: int,
    first_view: int,
    codec_from: str | None,
    batch_size: int,
    precision: str,
    device: str,
    workers: int | None,
    license: str | None,
    contact: str | None,
    out: str,
    force: bool,
    sidecars: str | None,
    **codec: Any,
) -> None:
    """Run a teacher once over seeded views of a dataset and keep its logits in a cache.

    An interrupted build goes on where it stopped when the same command is run again; the result is the
    same to the byte.

    Processes that build the same cache share its work: the ranks of torchrun, or the same command run again,
    on this machine or on another one that sees the place. Any of them may be killed: the others take over.

    Two teams may build different views of the same data, which `gdkd-cache merge` joins.

    \b
    Examples:
      gdkd-cache build --data digits --teacher cnn-l --weights teacher/best.safetensors \\
          --views 4 --recipe crop-flip --seed 0 --license cc-by-4.0 --contact team@example.org --out digits.zarr
      gdkd-cache build --data digits --teacher cnn-l --weights teacher/best.safetensors \\
          --first-view 4 --views 4 --codec-from digits.zarr --out more.zarr
      gdkd-cache build --data wds:data/train-{000..127}.tar --stream --teacher torchvision:resnet152 \\
          --weights teacher.pth --views 300 --recipe imagenet --out imagenet.zarr --sidecars data
      torchrun --nproc-per-node 4 --no-python gdkd-cache build --data imagefolder:imagenet \\
          --teacher torchvision:resnet152 --weights teacher.pth --views 300 --recipe imagenet --out imagenet.zarr
    """

    from gdkd_cache import open_source
    from gdkd_cache.building.build import BuildOptions
    from gdkd_cache.building.build import build as run_build
    from gdkd_cache.data.shards.source import ShardSource
    from gdkd_cache.data.sources.registry import takes
    from gdkd_cache.models.network import open_network
    from gdkd_cache.ranks import this_rank
    from gdkd_cache_cli.convert import write_sidecars
    from gdkd_cache_cli.report import cache_lines

    given = click.get_current_context().get_parameter_source
    if codec_from is not None and any(given(name) is not ParameterSource.DEFAULT for name in codec):
        raise click.UsageError("--codec-from brings its codec and its losses; leave out what else asks for them")
    if sidecars is not None and not takes(data, "stream"):
        raise click.UsageError("--sidecars lie beside the shards of --data wds:PATTERN; leave it out")
    if sidecars is not None and "://" in sidecars:
        raise click.UsageError(f"--sidecars is {sidecars}; they are written to a folder, which you can copy to a store")
    options = BuildOptions(
        out=out,
        num_views=views,
        first_view=first_view,
        recipe=recipe,
        seed=seed,
        request=codec_request(**codec),
        codec_from=codec_from,
        batch_size=batch_size,
        num_workers=workers,
        force=force,
        license=license,
        contact=contact,
    )
    source = open_source(data, download=download, stream=stream, local_copy=local_copy)
    network = open_network(teacher, weights, len(source.classes), device=device, precision=precision)
    result = run_build(options, source, network)
    if this_rank().rank:
        return
    if result.rows_computed:
        rate = result.rows_computed / result.seconds
        click.echo(f"built {out}: {result.rows_computed} views here in {result.seconds:.1f} s, {rate:,.0f} images/s")
    for line in cache_lines(result.manifest):
        click.echo(line)
    if sidecars is not None:
        shards = source if isinstance(source, ShardSource) else open_source(data, stream=True, local_copy=local_copy)
        click.echo(write_sidecars(out, sidecars, shards))
