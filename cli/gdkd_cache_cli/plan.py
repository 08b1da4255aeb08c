"""`gdkd-cache plan`."""

import json
from pathlib import Path
from typing import Any

import click

from gdkd_cache_cli.options import codec_options, codec_request, data_options, machine_options, view_options


@click.command(short_help="Before a build: what each codec would cost and lose.")
@data_options
@view_options
@codec_options
@click.option("--batch-size", default=256, show_default=True, help="Images the teacher sees at once.")
@click.option("--precision", default="auto", show_default=True, help="auto, float32, float16 or bfloat16.")
@machine_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for machines.")
def plan(
    data: str,
    stream: bool,
    download: bool,
    local_copy: Path | None,
    teacher: str,
    weights: Path,
    views: int,
    recipe: str,
    seed: int,
    batch_size: int,
    precision: str,
    device: str,
    workers: int | None,
    as_json: bool,
    **codec: Any,
) -> None:
    """Run the teacher on a sample and print, before any build, what each codec would cost and lose.

    \b
    Example:
      gdkd-cache plan --data digits --teacher cnn-l --weights teacher/best.safetensors --views 40
    """
    from rich.console import Console
    from rich.table import Table

    from gdkd_cache import open_source
    from gdkd_cache.building.build import BuildOptions
    from gdkd_cache.building.plan import plan as run_plan
    from gdkd_cache.models.network import open_network

    options = BuildOptions(
        out=Path(),
        num_views=views,
        recipe=recipe,
        seed=seed,
        request=codec_request(**codec),
        batch_size=batch_size,
        num_workers=workers,
    )
    source = open_source(data, download=download, stream=stream, local_copy=local_copy)
    network = open_network(teacher, weights, len(source.classes), device=device, precision=precision)
    planned = run_plan(options, source, network)
    if as_json:
        click.echo(json.dumps(planned.to_json(), indent=1))
        return
    table = Table("codec", "bytes a view", f"{views} views", "gradient error", "encode rows/s", "objects", "")
    for row in planned.rows:
        errors = "\n".join(f"{error:.3f}  {loss}" for loss, error in row.gradient_error.items()) or "serves none"
        table.add_row(
            row.setting,
            f"{row.bytes_per_view:.1f}",
            f"{row.total_bytes / 1e6:,.1f} MB",
            errors,
            f"{row.encode_rate:,.0f}",
            str(row.num_objects),
            "<- build takes this" if row.chosen else "",
        )
    Console(highlight=False, width=None if Console().is_terminal else 160).print(table)
    click.echo(
        f"{planned.num_rows} images, {views} views of the {planned.distinct_views or 'countless'} different ones that "
        "the recipe has; "
        f"the teacher sees {planned.teacher_rate:,.0f} images/s, so a build takes about "
        f"{planned.build_seconds / 60:,.1f} minutes here."
    )
