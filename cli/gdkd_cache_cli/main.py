"""`gdkd-cache`: the group of commands, and how their errors reach the user."""

import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import click

from gdkd_cache.errors import GdkdCacheError, UsageError, is_out_of_memory
from gdkd_cache.ranks import this_rank
from gdkd_cache.terminal import guard, log_lines, printable

_COMMANDS = (
    "build:build",
    "train:train",
    "evaluate:evaluate",
    "compare:compare",
    "export:export",
    "average:average",
    "inspect:inspect",
    "verify:verify",
    "repair:repair",
    "show:show",
    "report:report",
    "select:select",
    "plan:plan",
    "pack:pack",
    "signal:signal",
    "transfer:push",
    "transfer:pull",
    "convert:convert",
    "merge:merge",
    "listing:models",
    "listing:sources",
    "listing:losses",
    "listing:methods",
    "listing:schedules",
    "listing:codecs",
    "listing:recipes",
    "listing:steps",
    "presets:presets",
    "demo:demo",
)
"""The commands, by module of this package and name there: to add one, write its module and name it here."""
_RESUME = "a build, a training or a copy goes on when the same command is run again"


class _Failure(click.ClickException):
    """One line on stderr, then exit code 1."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(f"rank {this_rank().rank}: {message}" if this_rank().rank else message))


class _UsageFailure(_Failure):
    exit_code = 2


class _Interrupted(_Failure):
    exit_code = 130


class _Ended(_Failure):
    exit_code = 143


class _Terminated(KeyboardInterrupt):
    """SIGTERM, handled like Ctrl-C."""


def _terminate(signum: int, frame: object) -> None:
    raise _Terminated


@contextmanager
def _told() -> Iterator[None]:
    """Turn what a user or a machine did wrong into one line and an exit code: 2 for usage, 1 for the rest."""
    try:
        yield
    except click.ClickException as error:
        error.message = printable(error.message)  # pyright: ignore[reportAttributeAccessIssue]
        raise
    except (click.exceptions.Exit, click.Abort, BrokenPipeError):
        raise
    except _Terminated:
        raise _Ended(f"terminated; {_RESUME}") from None
    except KeyboardInterrupt:
        raise _Interrupted(f"interrupted; {_RESUME}") from None
    except Exception as error:
        failure = _failure(error)
        if failure is None:
            raise
        raise failure from None


class _Group(click.Group):
    """Commands whose errors, and whatever else is printed, reach the user as lines that nothing can forge."""

    def main(self, *args: Any, **facts: Any) -> Any:
        guard()
        return super().main(*args, **facts)

    def make_context(self, *args: Any, **facts: Any) -> click.Context:
        with _told():
            return super().make_context(*args, **facts)

    def invoke(self, ctx: click.Context) -> object:
        before = signal.signal(signal.SIGTERM, _terminate)
        try:
            with _told():
                return super().invoke(ctx)
        finally:
            signal.signal(signal.SIGTERM, before)


def _failure(error: Exception) -> _Failure | None:
    """How an exception is told to the user; None for a fault of our own, which deserves its traceback."""
    if isinstance(error, GdkdCacheError):
        return _UsageFailure(str(error)) if isinstance(error, UsageError) else _Failure(str(error))
    if is_out_of_memory(error):
        torch = sys.modules.get("torch")  # without it, nothing ran on a GPU
        on_gpu = torch is not None and isinstance(error, torch.OutOfMemoryError)
        whose = "the GPU's memory" if on_gpu else "this machine's memory"
        return _Failure(f"{whose} is full; try smaller images (--size), or a smaller --batch-size")
    if isinstance(error, OSError) and error.strerror:
        return _Failure(f"{error.filename or 'this machine'}: {error.strerror}")
    return None


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="gdkd-cache")
def main() -> None:
    """Run a teacher once, keep its logits, and train students from them with no teacher.

    \b
    Try it on real images, without a download or a GPU:
      gdkd-cache demo

    \b
    The main job:
      gdkd-cache train --loss ce --data digits --student cnn-l --epochs 8 --out teacher
      gdkd-cache build --data digits --teacher cnn-l --weights teacher/best.safetensors --views 4 --out digits.zarr
      gdkd-cache train --loss gdkd --data digits --cache digits.zarr --student cnn-s --epochs 8 --out student
    """
    # Of several ranks the first speaks for all.
    log_lines(logging.WARNING if this_rank().rank else logging.INFO)


for _command in _COMMANDS:
    _module, _, _name = _command.partition(":")
    main.add_command(getattr(import_module(f"gdkd_cache_cli.{_module}"), _name))
