"""`gdkd-cache plan`."""

import click

from gdkd_cache.building.options import PlanOptions
from gdkd_cache.terminal import say, say_json, say_table
from gdkd_cache_cli.options import DataOptions, TeacherOptions, UseOptions
from gdkd_cache_cli.taking import takes


@click.command(short_help="Before a build: what each codec would cost and lose.")
@takes(data=DataOptions, teacher=TeacherOptions, options=PlanOptions, own=UseOptions)
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for machines.")
@click.option(
    "--eval-data",
    default=None,
    metavar="SPEC",
    help="Also tell how right the teacher is on these images, the test split where they have one.",
)
def plan(
    data: DataOptions,
    teacher: TeacherOptions,
    options: PlanOptions,
    own: UseOptions,
    as_json: bool,
    eval_data: str | None,
) -> None:
    """Run the teacher on a sample and print, before any build, what each codec would cost and lose.

    \b
    Example:
      gdkd-cache plan --data digits --teacher cnn-l --weights teacher/best.safetensors --views 40
    """
    from gdkd_cache.building.plan import plan as run_plan
    from gdkd_cache.store.card import examination_text

    source = data.open()
    evaluated = None if eval_data is None else data.for_evaluation(eval_data).open("test")
    planned = run_plan(options, source, teacher.open(source), evaluated)
    if as_json:
        say_json(planned.to_json())
        return
    views = options.num_views
    rows = [
        (
            row.setting,
            f"{row.bytes_per_view:.1f}",
            f"{row.total_bytes / 1e6:,.1f} MB",
            [f"{error:.3f}  {loss}" for loss, error in row.gradient_error.items()] or "serves none",
            f"{row.encode_rate:,.0f}",
            str(row.num_objects),
            "<- build takes this" if row.chosen else "",
        )
        for row in planned.rows
    ]
    say_table(("codec", "bytes a view", f"{views} views", "gradient error", "encode rows/s", "objects", ""), rows)
    if planned.examination is not None:
        say(f"The teacher: {examination_text(planned.examination, 'augmented views')}.")
    for row in planned.rows:
        if row.chosen and row.references:
            say(
                f"The first {row.references} views predict the others; training holds them in "
                f"{row.reference_bytes / 1e6:,.0f} MB of memory (--codec transform:references=0 does without)."
            )
    say(
        f"{planned.num_rows} images, {views} views of the {planned.distinct_views or 'countless'} different ones that "
        "the recipe has; "
        f"the teacher sees {planned.teacher_rate:,.0f} images/s, so a build takes about "
        f"{planned.build_seconds / 60:,.1f} minutes here."
    )
