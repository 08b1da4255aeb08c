#!/usr/bin/env python
"""Attack the command line with files and arguments that an attacker makes, over a fresh cache of a few digits.

    python scripts/attack.py --count 300 --seed 0
    python scripts/attack.py --count 50 --family bombs --keep attacks-found

Each case is one command line over one damaged, forged or hostile thing, in a process of its own. It must be refused,
with one line on stderr and an exit code that is not 0, or hold: what it then made is read, or compared with what the
whole files give. What is found is a traceback, more than one line, code of a file that ran, a file outside that was
written or removed, more than 1 GB, a hang, text that steers a terminal, or success with wrong bytes; exits with 1 when
anything was. To add a family: a function of an `Attack` in one of the modules of `attacks/`, and its name here.
"""

import argparse
import importlib
import os
import random
import shlex
import shutil
import sys
import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # threads of torch's that a fork does not have would be waited for
sys.path.insert(0, str(Path(__file__).parent))
from attacks import arguments, caches, memory, networks, pictures, trainings
from attacks.case import Case, Family
from attacks.kit import Kit, begin_kit
from attacks.run import Run, attack, run

FAMILIES: tuple[Family, ...] = (
    networks.cards_that_name_code, networks.card_values, networks.fuzzed_cards, networks.any_card_value,
    networks.hostile_weights, networks.fuzzed_weights, networks.models,
    pictures.replaced_images, pictures.formats, pictures.fuzzed_images, pictures.fuzzed_shards, pictures.cut_shards,
    caches.damaged_objects, caches.fuzzed_manifests, caches.any_texts, caches.fuzzed_sidecars, caches.paths,
    caches.force, caches.terminal, caches.killed_trainings,
    trainings.fuzzed_states, trainings.forged_states, trainings.run_files,
    arguments.numbers, arguments.urls, arguments.recipes, arguments.arrays, arguments.pipes,
    memory.bombs,
)  # fmt: skip


def make_kit(folder: Path) -> Kit:
    """What is attacked; what its commands import is imported here too, for all that are forked from here."""
    kit = begin_kit(folder)
    (folder / "case").mkdir()
    for command in kit.commands():
        ran = run(command, folder / "case", seconds=120)
        if ran.code != 0:
            raise SystemExit(f"the kit cannot be made: {shlex.join(map(str, command))}: {ran.err}")
        for name in ran.modules:
            with suppress(Exception):  # some can be imported only by others
                importlib.import_module(name)
    _stop_a_training(kit)
    return kit


def _stop_a_training(kit: Kit) -> None:
    """Kill one after it wrote a state, before it is done."""
    for kill in (0.2 * 1.2**number for number in range(30)):
        shutil.rmtree(kit.stopped, ignore_errors=True)
        ran = run(kit.long_training(kit.stopped), kit.folder / "case", seconds=120, kill=kill)
        if ran.code != 0 and (kit.stopped / "state.safetensors").exists():
            return
    raise SystemExit("no training could be killed between its first state and its end")


def told(kit: Kit, case: Case, ran: Run) -> str:
    """A command as one types it, shortened."""
    parts = [str(part).replace(str(kit.folder), "KIT") for part in case.command]
    text = shlex.join(ascii(part)[1:-1][:80] for part in parts)
    return f"gdkd-cache {text}\n      exit code {ran.code}, {ran.peak / 1e6:,.0f} MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300, help="how many cases")
    parser.add_argument("--seed", type=int, default=0)
    names = {family.__name__: family for family in FAMILIES}
    parser.add_argument("--family", action="append", choices=list(names), help="only this one; may be repeated")
    parser.add_argument("--keep", type=Path, help="a folder that keeps the files of what is found")
    arguments = parser.parse_args()
    chosen = arguments.family or list(names)
    cases, refused, held, peaks = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    found: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        kit = make_kit(Path(folder).resolve())
        for index in range(arguments.count):
            name, number = chosen[index % len(chosen)], index // len(chosen)
            rng = random.Random(f"{arguments.seed} {name} {number}")
            case, ran, fault = attack(kit, names[name], number, rng)
            cases[name] += 1
            peaks[name] = max(peaks[name], ran.peak)
            if fault is not None:
                found.append(f"{name} {number}: {fault}\n      {told(kit, case, ran)}")
                if arguments.keep is not None:
                    shutil.copytree(kit.folder / "case", arguments.keep / f"{name}-{number}", symlinks=True)
            else:
                held[name] += ran.code == 0
                refused[name] += ran.code != 0
            print(f"\r{index + 1} of {arguments.count}", end="", file=sys.stderr)
    print()
    for name in chosen:
        counts = f"{cases[name]:4} cases {refused[name]:4} refused {held[name]:4} held"
        wrong = cases[name] - refused[name] - held[name]
        print(f"{name.replace('_', ' '):>24}: {counts} {wrong:4} found, at most {peaks[name] / 1e6:,.0f} MB")
    counts = f"{cases.total():4} cases {refused.total():4} refused {held.total():4} held {len(found):4} found"
    print(f"{'all':>24}: {counts}, at most {max(peaks.values(), default=0) / 1e6:,.0f} MB")
    for text in found:
        print(f"  {text}")
    raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
