"""Run a command line in a fork of this process, in which torch is loaded; watch it, and judge what came of it."""

import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from gdkd_cache_cli.main import main

from attacks.case import Attack, Case, Family
from attacks.kit import Kit

MOST_BYTES = 2**30
FORGED = "31 objects checked, whole"
"""What names of files forge; no line may begin with it."""
_ROOM = 4 * 2**30  # that a command may map, so that a bomb does not take this machine along
_EXECUTES = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pty.spawn")
_CHANGES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.symlink", "shutil.rmtree")
_LOGS = ("out", "err", "events", "modules")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


@dataclass(frozen=True, kw_only=True)
class Run:
    """What came of a command.

    Attributes:
        code: its exit code, or minus the signal that ended it; None where it hung.
        out, err: what it printed.
        events: what it executed, and what it changed outside its folder.
        peak: bytes that it held at most.
        modules: what it had imported at its end.
    """

    code: int | None
    out: str
    err: str
    events: tuple[str, ...]
    peak: int
    modules: tuple[str, ...]


def run(command: Sequence[object], place: Path, *, seconds: float, kill: float | None = None) -> Run:
    """Run a command in a folder."""
    logs = place.parent / "logs"
    logs.mkdir(exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _child([str(part) for part in command], place, logs)
    start, status, usage = time.monotonic(), None, None
    limit = seconds if kill is None else min(kill, seconds)
    while usage is None:
        ended, status, found = os.wait4(pid, os.WNOHANG)
        if ended:
            usage = found
        elif time.monotonic() - start > limit:
            os.killpg(pid, signal.SIGKILL)
            _, status, usage = os.wait4(pid, 0)
            status = status if kill is not None else None
        else:
            time.sleep(0.003)
    texts = {name: (logs / name).read_text(errors="surrogateescape") for name in _LOGS}
    return Run(
        code=None if status is None else os.waitstatus_to_exitcode(status),
        out=texts["out"],
        err=texts["err"],
        events=tuple(texts["events"].splitlines()),
        peak=usage.ru_maxrss * 1024,
        modules=tuple(texts["modules"].split()),
    )


def _child(command: list[str], place: Path, logs: Path) -> NoReturn:
    code: object = 1
    files = [os.open(logs / name, os.O_CREAT | os.O_TRUNC | os.O_WRONLY) for name in _LOGS]
    try:
        os.setsid()
        for number, file in enumerate((os.open(os.devnull, os.O_RDONLY), files[0], files[1])):
            os.dup2(file, number)
        (place / "tmp").mkdir(exist_ok=True)
        os.environ["TMPDIR"] = str(place / "tmp")
        os.chdir(place)
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + _ROOM, mapped + _ROOM))
        _watch(place.resolve(), files[2])
        main(command, prog_name="gdkd-cache")
        code = 0
    except SystemExit as ended:
        code = 0 if ended.code is None else ended.code
    except BaseException:
        sys.excepthook(*sys.exc_info())  # pyright: ignore[reportArgumentType]
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os.write(files[3], "\n".join(sys.modules).encode())
        os._exit(code if isinstance(code, int) else 1)


def _watch(place: Path, log: int) -> None:
    """Log what is executed, and what is changed elsewhere."""

    def changed(path: object) -> None:
        if isinstance(path, str | bytes | os.PathLike):
            full = os.path.realpath(os.fsdecode(os.fspath(path)))
            if not full.startswith((f"{place}/", "/dev/", "/proc/")) and full != str(place):
                os.write(log, f"changed {full!a}\n".encode())

    def hook(event: str, given: tuple[Any, ...]) -> None:
        if event.startswith(_EXECUTES):
            os.write(log, f"executed {event} {ascii(given[:2])[:200]}\n".encode())
        elif event == "open" and isinstance(given[2], int) and given[2] & _WRITING:
            changed(given[0])
        elif event in _CHANGES:
            for path in given[:2]:
                changed(path)

    sys.addaudithook(hook)


def attack(kit: Kit, family: Family, number: int, rng: random.Random) -> tuple[Case, Run, str | None]:
    """Make and run one case: the case, what came of it, and what was found wrong; None where nothing was."""
    place = kit.folder / "case"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    before = _contents(kit.folder)
    case = family(Attack(kit=kit, place=place, number=number, rng=rng))
    ran = run(case.command, place, seconds=case.seconds, kill=case.kill)
    fault = _fault(case, ran) or (None if ran.code is None else case.after(ran.code))
    if fault is None and case.then is not None and ran.code == 0:
        second = run(case.then, place, seconds=case.seconds)
        if second.code != 0:
            fault = f"what it made fails: {second.err.strip().splitlines()[-1:]}"
    if (after := _contents(kit.folder)) != before:
        fault = f"changed outside its folder: {sorted(dict(after.items() ^ before.items()))[:3]}"
        (kit.folder / "mark").unlink(missing_ok=True)
    return case, ran, fault


def _contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of all files of the kit, what executed code leaves among them, but for the cases' own."""
    found = {}
    for parent, folders, files in os.walk(folder):
        if parent == str(folder):
            folders[:] = [name for name in folders if name not in ("case", "logs")]
        for name in files:
            facts = os.lstat(f"{parent}/{name}")
            found[f"{parent}/{name}"] = (facts.st_size, facts.st_mtime_ns)
    return found


def _fault(case: Case, ran: Run) -> str | None:
    """What is wrong with how a command ended and with what it said."""
    said = f"{ran.out}\n{ran.err}"
    if ran.code is None:
        return f"hangs for {case.seconds:.0f} s"
    if ran.events:
        return ran.events[0]
    if ran.peak > MOST_BYTES:
        return f"held {ran.peak / 1e6:,.0f} MB"
    if "Traceback (most recent call last)" in said or "panicked at" in said:
        return f"traceback: {said.strip().splitlines()[-1]}"
    if ran.code < 0 and case.kill is None:
        return f"ended by signal {-ran.code}"
    for line in said.splitlines():
        if not line.isprintable():
            return f"prints raw {ascii(line)[:120]}"
        if line.startswith(FORGED):
            return "a name forges a verdict"
    if ran.code == 0:
        return "exit 0" if case.refuse else None
    lines = ran.err.strip().splitlines()
    told = [line for line in lines if line.startswith("Error: ")]
    verdict = "problems" in ran.out  # of verify and repair, which print a line for each
    if ran.code > 0 and not verdict and (len(told) != 1 or told[0] != lines[-1]):
        return f"not refused in one line: {lines[-3:]}"
    return None
