"""`gdkd-cache build`."""

from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from gdkd_cache.building.options import BuildOptions, ClusterOptions, CodecChoice
from gdkd_cache.fields import option_of
from gdkd_cache.registry import use
from gdkd_cache.terminal import say
from gdkd_cache_cli.options import DataOptions, TeacherOptions, UseOptions
from gdkd_cache_cli.taking import takes

if TYPE_CHECKING:
    from gdkd_cache.data.source import FullSource
    from gdkd_cache.models.network import Network


@click.command(short_help="Run a teacher over seeded views of a dataset and keep its logits.")
@takes(data=DataOptions, teacher=TeacherOptions, options=BuildOptions, own=UseOptions, cluster=ClusterOptions)
@click.option(
    "--sidecars",
    default=None,
    metavar="DIR",
    help="Also write the cache as sidecars of the wds shards of --data, as convert does; DIR may be their folder.",
)
@click.option(
    "--eval-data",
    default=None,
    metavar="SPEC",
    help="Also tell how right the teacher is on these images, the test split where they have one.",
)
def build(
    data: DataOptions,
    teacher: TeacherOptions,
    options: BuildOptions,
    own: UseOptions,
    cluster: ClusterOptions,
    sidecars: str | None,
    eval_data: str | None,
) -> None:
    """Run a teacher once over seeded views of a dataset and keep its logits in a cache.

    An interrupted build goes on where it stopped when the same command is run again; the result is the
    same to the byte.

    Processes that build the same cache share its work: the ranks of torchrun, or the same command run again,
    on this machine or on another one that sees the place. Any of them may be killed: the others take over. With --ray,
    a Ray cluster runs such processes: teachers where GPUs are, and what they see is rendered on all its cores.

    Before anything is built, the teacher is examined on some views: one that is right no more often than chance,
    or far more often with its classes in another order or its images shown otherwise, is refused by name of the fault.

    Two teams may build different views of the same data, which `gdkd-cache merge` joins.

    \b
    Examples:
      gdkd-cache build --data digits --teacher cnn-l --weights teacher/best.safetensors \\
          --views 4 --recipe crop-flip --seed 0 --license cc-by-4.0 --contact team@example.org --out digits.zarr
      gdkd-cache build --data digits --teacher cnn-l --weights teacher/best.safetensors \\
          --views 4 --for gdkd:k=5,w2=8,temperature=4 --for kd:temperature=1 --out digits.zarr
      gdkd-cache build --data digits --teacher cnn-l --weights teacher/best.safetensors \\
          --first-view 4 --views 4 --codec-from digits.zarr --out more.zarr
      gdkd-cache build --data wds:data/train-{000..127}.tar --stream --teacher torchvision:resnet152 \\
          --weights IMAGENET1K_V2 --views 300 --recipe imagenet --out imagenet.zarr --sidecars data
      torchrun --nproc-per-node 4 --no-python gdkd-cache build --data imagefolder:imagenet \\
          --teacher torchvision:resnet152 --weights teacher.pth --normalize imagenet --views 300 --recipe imagenet \\
          --out imagenet.zarr
      gdkd-cache build --data imagefolder:imagenet --teacher torchvision:resnet152 --weights teacher.pth \\
          --normalize imagenet --views 300 --recipe imagenet --ray head:6379 --teachers 16 --out imagenet.zarr
    """
    from gdkd_cache.building.build import build as run_build
    from gdkd_cache.data.shards.source import ShardSource
    from gdkd_cache.ranks import this_rank
    from gdkd_cache_cli.convert import write_sidecars
    from gdkd_cache_cli.facts import cache_lines

    given = click.get_current_context().get_parameter_source
    choice = [name for name, field in CodecChoice.__dataclass_fields__.items() if option_of(field)]
    if options.codec_from is not None and any(given(name) is not ParameterSource.DEFAULT for name in choice):
        raise click.UsageError("--codec-from brings its codec and its losses; leave out what else asks for them")
    if sidecars is not None and "://" in sidecars:
        raise click.UsageError(f"--sidecars is {sidecars}; they are written to a folder, which you can copy to a store")
    if sidecars is not None and not data.has_shards:
        raise click.UsageError("--sidecars lie beside the shards of --data wds:PATTERN; leave it out")
    if sidecars is not None and data.subset is not None:
        raise click.UsageError("--sidecars are of whole shards, which --subset takes apart; leave one of them out")

    def materials() -> "tuple[FullSource, Network, FullSource | None]":
        for name in own.use:  # on a cluster, this is another process
            use(name)
        source = data.open()
        evaluated = None if eval_data is None else data.for_evaluation(eval_data).open("test")
        return source, teacher.open(source), evaluated

    source = None
    if cluster.ray is None:
        source, network, evaluated = materials()
        result = run_build(options, source, network, evaluated)
    else:
        from gdkd_cache.building.ray_build import build_on_ray

        result = build_on_ray(options, cluster, materials, on_gpus=teacher.device != "cpu")
    if this_rank().rank:
        return
    if result.rows_computed:
        rate = result.rows_computed / result.seconds
        said = f"{result.rows_computed} views here in {result.seconds:.1f} s, {rate:,.0f} images/s"
        say(f"built {options.out}: {said}")
    say(*cache_lines(result.manifest))
    if sidecars is not None:
        shards = source if isinstance(source, ShardSource) else data.streamed().open()
        say(write_sidecars(str(options.out), sidecars, shards))
