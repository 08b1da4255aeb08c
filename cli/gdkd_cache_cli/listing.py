"""`gdkd-cache models`, `sources`, `losses`, `methods`, `schedules`, `codecs`, `recipes`, `steps`: what can be named."""

from collections.abc import Callable
from typing import Any

import click

from gdkd_cache.codec.registry import CODECS
from gdkd_cache.data.recipes.registry import RECIPES, STEPS
from gdkd_cache.data.sources.registry import SOURCES
from gdkd_cache.fields import describe_fields
from gdkd_cache.losses.registry import LOSSES
from gdkd_cache.models.registry import MODELS
from gdkd_cache.registry import Registry
from gdkd_cache.terminal import say, say_table
from gdkd_cache.training.methods.registry import METHODS
from gdkd_cache.training.optimization.registry import SCHEDULES

_COLUMNS = ("setting", "type", "default", "allowed", "what it is")


def _listing(
    name: str, registry: Registry[Any], written: str, examples: str, fields_of: Callable[[Any], Any] = lambda kind: kind
) -> click.Command:
    """The command that lists a registry's things, each with what the fields of `fields_of(thing)` say."""

    def command(names: tuple[str, ...]) -> None:
        for one in names or registry:
            kind = registry.load(one)
            summary = (kind.__doc__ or "").strip().split("\n")[0].rstrip(".")
            rows = [(row.name, row.kind, row.default, row.range, row.help) for row in describe_fields(fields_of(kind))]
            if rows:
                say_table(_COLUMNS, rows, title=f"{one}: {summary}")
            else:
                say(f"{one}: {summary} (no settings)")

    command.__doc__ = (
        f"List all {name}, or those of NAMES, with their settings.\n\n{written}\n\n\b\nExamples:\n{examples}"
    )
    short = f"List the {name} with their settings, defaults and ranges."
    return click.command(name, short_help=short)(click.argument("names", nargs=-1)(command))


@click.command(short_help="List the networks.")
def models() -> None:
    """List the networks that can be teachers (build --teacher) and students (train --student).

    One of your own is package.module:name, and is called with num_classes.

    \b
    Examples:
      gdkd-cache models
      gdkd-cache models | grep vgg
    """
    say_table(("model", "what it is"), list(MODELS.summaries().items()))


@click.command(short_help="List the data that can be read.")
def sources() -> None:
    """List the images that --data can name, with a class or a mask each.

    A source of your own is package.module:name, a function or class that gives one.

    \b
    Examples:
      gdkd-cache sources
      gdkd-cache sources | grep mask
    """
    say_table(("--data", "what it is"), list(SOURCES.summaries().items()))


losses = _listing(
    "losses",
    LOSSES,
    "Wherever a loss is asked for (train --loss, build --for), it is written as its name, a colon and settings, as in "
    "gdkd:k=5,w2=8,temperature=4; what is left out has its default. One of your own is package.module:name.",
    "  gdkd-cache losses\n  gdkd-cache losses gdkd my_package.losses:Huber",
)
methods = _listing(
    "methods",
    METHODS,
    "A method (train --method) is written as its name, a colon and settings, as in dho:alpha=0.5,beta=0.5. One of your "
    "own is package.module:name.",
    "  gdkd-cache methods\n  gdkd-cache methods dho",
)
schedules = _listing(
    "schedules",
    SCHEDULES,
    "A schedule (train --schedule) is written as its name, a colon and settings, as in multistep:at=150/180/210. One "
    "of your own is package.module:name.",
    "  gdkd-cache schedules\n  gdkd-cache schedules cosine one-cycle",
)
codecs = _listing(
    "codecs",
    CODECS,
    "A codec (build --codec) is written as its name, a colon and settings, as in topk:k=16,step=0.02. One of your own "
    "is package.module:name.",
    "  gdkd-cache codecs\n  gdkd-cache codecs topk",
    lambda kind: kind.Options,
)
recipes = _listing(
    "recipes",
    RECIPES,
    "A recipe (build --recipe) is written as its name, a colon and settings, as in crop-flip:size=32,padding=4. Others "
    "are a .toml or .json file of steps, see gdkd-cache steps, or compat:module:name.",
    "  gdkd-cache recipes\n  gdkd-cache recipes imagenet",
)
steps = _listing(
    "steps",
    STEPS,
    'A recipe file holds steps, each a table with its name and settings: step = "random_crop", size = 32, padding = 4. '
    "One of your own is package.module:name.",
    "  gdkd-cache steps\n  gdkd-cache steps random_resized_crop",
)
