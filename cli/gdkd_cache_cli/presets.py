"""`gdkd-cache presets`, and the option that takes one."""

from typing import Any

import click

from gdkd_cache.terminal import say, say_table
from gdkd_cache.training.presets.preset import Preset, is_one_preset, open_preset, open_preset_file, preset_files

_COLUMNS = ("preset", "teacher", "student", "with /LOSS")


@click.command(short_help="List published settings of trainings, or print some as a file.")
@click.argument("name", required=False)
def presets(name: str | None) -> None:
    """List the published settings that train --preset takes, or print those of NAME as a TOML file.

    The file of a dataset says where each value comes from, and what is odd about it. The file of one preset holds its
    settings alone, to be changed: train --preset takes your file too, and the command line wins over either.

    \b
    Examples:
      gdkd-cache presets
      gdkd-cache presets cifar100
      gdkd-cache presets cifar100/resnet32x4-resnet8x4/dkd > mine.toml
    """
    if name is None:
        for file in preset_files():
            made = [(pair, file.preset(pair)) for pair in file.pairs]
            rows = [
                (f"{file.name}/{pair}", str(preset.teacher), preset.settings["student"], " ".join(file.losses(pair)))
                for pair, preset in made
            ]
            say_table(_COLUMNS, rows, title=file.summary)
    else:
        text = open_preset(name).to_toml() if is_one_preset(name) else open_preset_file(name).text
        say(*text.splitlines())


def _take(context: click.Context, parameter: click.Parameter, name: str | None) -> Preset | None:
    """Let a preset's settings stand where the command line says nothing."""
    if name is None:
        return None
    preset = open_preset(name)
    context.default_map = {**(context.default_map or {}), **preset.settings}
    return preset


def preset_option(command: Any) -> Any:
    """The option `--preset`, which is read before all others."""
    return click.option(
        "--preset",
        default=None,
        is_eager=True,
        callback=_take,
        metavar="NAME",
        help="Settings by name, such as cifar100/resnet32x4-resnet8x4 or cifar100/resnet32x4-resnet8x4/dkd "
        "(`gdkd-cache presets` lists them), or a TOML file of yours; what else is given here wins.",
    )(command)
