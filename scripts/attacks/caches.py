"""Caches of somebody else, and places where somebody else's files stand."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attacks.case import Attack, Case
from attacks.fuzz import TEXTS, any_value, fuzz, mutate
from attacks.making import forge, forge_object
from attacks.run import FORGED, run
from gdkd_cache.models.weights import load_card
from gdkd_cache.training.records.layout import STATE

_HOSTILE = (
    f"x\n{FORGED}; sha256:0", f"x\r{FORGED}", "\x1b[2J\x1b[H", "\x9b2J", "\u202egnp.whole", "\u2066\u2069",
    "\x07\x08\x7f", "\u2028whole", "x\x85whole", "[link=http://x]y", "{0}%s", "\U000e0041", "\udcff\udcfe",
)  # fmt: skip
_FOREIGN = ("Notes.txt", "thesis/chapter.tex", "data.csv", "c/0/0", "keys/c/own", "README", "zarr.json.bak", "ledger/x")
_HIDDEN = (".git/HEAD", ".gitattributes", ".cache/huggingface/x")


def _same_as_whole(attack: Attack, code: int) -> str | None:
    """No step may have been taken with other bytes: what was trained is what the whole cache trains."""
    if code:
        return None
    one, two = (folder / "last.safetensors" for folder in (attack.kit.trained, attack.place / "out"))
    return None if one.read_bytes() == two.read_bytes() else "trained with other bytes"


def _train(attack: Attack, cache: Path) -> Case:
    command = attack.kit.train(cache, attack.kit.images, attack.place / "out")
    return Case(command=command, after=lambda code: _same_as_whole(attack, code))


def damaged_objects(attack: Attack) -> Case:
    """Bytes of objects, cut, swapped, gone: verify must find it, and no step be taken with it."""
    cache = attack.kit.copy(attack.kit.cache, attack.place)
    objects = sorted(path for path in cache.rglob("*") if path.is_file() and path.name != "manifest.json")
    one, two = attack.rng.sample(objects, 2)
    before, way = one.read_bytes(), attack.number % 4
    if way == 0:
        one.unlink()
    elif way == 1:
        one.write_bytes(two.read_bytes())
    else:
        one.write_bytes(fuzz(attack.rng, before))
    if attack.rng.random() < 0.5:
        whole = one.exists() and one.read_bytes() == before
        return Case(command=["verify", cache, "--deep"], refuse=not whole)
    return _train(attack, cache)


def fuzzed_manifests(attack: Attack) -> Case:
    """A manifest with other values and a digest that is its own, or of other bytes."""
    cache = attack.kit.copy(attack.kit.cache, attack.place)
    path = cache / "manifest.json"
    if attack.number % 3:
        forge(path, lambda stored: stored.update(mutate(attack.rng, stored)))
    else:
        path.write_bytes(fuzz(attack.rng, path.read_bytes()))
    command = attack.rng.choice(
        (["inspect", cache], ["verify", cache, "--deep"], ["push", cache, attack.place / "copy"])
    )
    if attack.rng.random() < 0.3:
        return Case(command=attack.kit.train(cache, attack.kit.images, attack.place / "out"))
    return Case(command=command)


def fuzzed_sidecars(attack: Attack) -> Case:
    """The records of sidecars, or their listing."""
    sidecars = attack.kit.copy(attack.kit.sidecars, attack.place)
    listing = sidecars / "sidecars.json"
    if attack.number % 2:
        forge(listing, lambda stored: stored.update(mutate(attack.rng, stored)))
    else:
        path = attack.rng.choice(sorted(sidecars.iterdir()))
        path.write_bytes(fuzz(attack.rng, path.read_bytes()))
    command = attack.rng.choice(
        (["verify", sidecars], ["inspect", sidecars], ["convert", sidecars, attack.place / "back"])
    )
    if attack.rng.random() < 0.3:
        return Case(command=attack.kit.train(sidecars, attack.kit.shards, attack.place / "out"))
    return Case(command=command)


def _rename(attack: Attack, cache: Path, name: str) -> None:
    """List an object of the manifest under another name."""

    def change(stored: dict[str, Any]) -> None:
        objects = stored["objects"]
        objects[name] = objects.pop(attack.rng.choice(sorted(objects)))

    forge(cache / "manifest.json", change)


def paths(attack: Attack) -> Case:
    """Names and links in caches and sidecars that lead elsewhere: nothing is written or removed there."""
    name = attack.rng.choice(
        (
            "../../outside/x",
            "/tmp/x",
            "a/../../../outside/x",
            "..",
            ".",
            "",
            "a//b",
            "c/",
            "~/x",
            "a\\..\\b",
            "-rf",
            ".git/x",
        )
    )
    way = attack.number % 5
    if way == 0:
        cache = attack.kit.copy(attack.kit.cache, attack.place)
        _rename(attack, cache, name)
    elif way == 1:
        cache = attack.kit.copy(attack.kit.sidecars, attack.place)
        listed = f"{name}.logits.tar"

        def change(stored: dict[str, Any]) -> None:
            stored["sidecars"][listed] = stored["sidecars"].pop(sorted(stored["sidecars"])[0])

        forge(cache / "sidecars.json", change)
    else:
        cache = attack.kit.copy(attack.kit.cache, attack.place)
        objects = sorted(path for path in cache.rglob("*") if path.is_file())
        target = attack.rng.choice(objects)
        if way == 2:
            target.unlink()
            target.symlink_to(attack.kit.outside / "precious.txt")
        elif way == 3:
            folder = attack.rng.choice(sorted(path for path in cache.rglob("*") if path.is_dir()))
            shutil.rmtree(folder)
            folder.symlink_to(attack.kit.outside)
        else:
            forge_object(
                cache, objects[0].relative_to(cache).as_posix(), (attack.kit.outside / "precious.txt").read_bytes()
            )
    out = attack.place / "out.zarr"
    commands: list[list[object]] = [["pull", cache, out], ["verify", cache], ["pull", cache, out, "--views", "0"]]
    if way != 1:
        commands += [["repair", cache, "--drop"], attack.kit.train(cache, attack.kit.images, attack.place / "out")]
        commands += [[*attack.kit.build(attack.kit.images, attack.kit.weights, cache), "--force"]]
    return Case(command=attack.rng.choice(commands))


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def force(attack: Attack) -> Case:
    """`--force` where others have put files: these stay, whatever comes of it; what is hidden does not matter."""
    hidden = attack.number % 3 == 0
    cache = attack.place / "c.zarr"
    way = attack.number // 3 % 4
    if way < 2:
        shutil.copytree(attack.kit.cache, cache)
    if way == 1:
        (cache / "manifest.json").rename(cache / "build.json")
    own = [_write(cache / name, "mine") for name in attack.rng.sample(_HIDDEN if hidden else _FOREIGN, 2)]
    if way == 3:
        own.append(_write(cache / "manifest.json", '{"name": "a web app"}'))

    def after(code: int) -> str | None:
        if gone := [path for path in own if not path.is_file()]:
            return f"{gone[0].relative_to(cache)} is gone"
        if way == 0 and code and not (cache / "manifest.json").exists():
            return "the cache that was to be replaced is gone"
        return f"refused because of {own[0].name}" if code and hidden and way == 0 else None

    if attack.rng.random() < 0.5:
        command = ["pack", attack.kit.logits, cache, "--codec", "dense", "--force"]
    else:
        command = [*attack.kit.build(attack.kit.images, attack.kit.weights, cache), "--seed", 7, "--force"]
    return Case(command=command, refuse=not hidden or way == 3, after=after, then=["verify", cache])


def terminal(attack: Attack) -> Case:
    """Names that steer a terminal, or forge what is printed, wherever names come from."""
    name = attack.next_of(_HOSTILE)
    file = name.replace("/", "_")
    ways: list[Callable[[], list[object]]] = [
        lambda: _foreign_file(attack, file),
        lambda: _forged_texts(attack, name),
        lambda: _bad_image(attack, file),
        lambda: ["inspect", attack.place / file],
        lambda: ["verify", attack.kit.cache, "--digest", name],
        lambda: [*attack.kit.evaluate(weights=attack.place / f"{file}.pt")],
        lambda: ["train", "--loss", name, "--data", "digits", "--student", "cnn-s", "--epochs", 1, "--out", "out"],
        lambda: ["losses", name],
        lambda: [
            "show",
            attack.kit.cache,
            "--data",
            attack.kit.data(attack.kit.images),
            "--key",
            name,
            "--out",
            "a.png",
        ],
        lambda: [
            *attack.kit.build(attack.kit.images, attack.kit.weights, attack.place / "o"),
            "--recipe",
            f"{file}.toml",
        ],
        lambda: ["inspect", f"s3://{name}"],
        lambda: ["pull", attack.kit.cache, attack.place / "o", "--views", name],
    ]
    return Case(command=attack.rng.choice(ways)())


def _foreign_file(attack: Attack, name: str) -> list[object]:
    cache = attack.kit.copy(attack.kit.cache, attack.place)
    (cache / name).write_bytes(b"")
    return ["verify", cache]


def _forged_texts(attack: Attack, text: str) -> list[object]:
    text = text.encode(errors="replace").decode()
    cache = attack.kit.copy(attack.kit.cache, attack.place)

    def change(stored: dict[str, Any]) -> None:
        identity = stored["identity"]
        identity["classes"][0] = identity["teacher"]["name"] = identity["data"]["name"] = text
        identity["card"] = {"license": text, "contact": text}

    forge(cache / "manifest.json", change)
    return attack.rng.choice(
        (["inspect", cache], ["verify", cache], ["pull", cache, attack.place / "o", "--views", "0"])
    )


def _bad_image(attack: Attack, name: str) -> list[object]:
    images = attack.kit.copy(attack.kit.images, attack.place)
    (next((images / "val").iterdir()) / f"{name}.png").write_bytes(b"no image")
    return attack.kit.evaluate(images)


def any_texts(attack: Attack) -> Case:
    """One value of a manifest, of any kind, behind a digest that is its own."""
    cache = attack.kit.copy(attack.kit.cache, attack.place)

    def change(stored: dict[str, Any]) -> None:
        name = attack.rng.choice(sorted(stored["identity"]))
        stored["identity"][name] = attack.rng.choice((any_value(attack.rng), attack.rng.choice(TEXTS)))

    forge(cache / "manifest.json", change)
    return Case(command=["inspect", cache, *attack.rng.choice(((), ("--json",)))])


def killed_trainings(attack: Attack) -> Case:
    """A training that is killed at any instant: a card tells the accuracy of its weights, and all can be run again."""
    out = attack.place / "out"
    command = attack.kit.train(attack.kit.cache, attack.kit.images, out)

    def after(code: int) -> str | None:
        for weights in out.rglob("*.safetensors"):
            if weights.name == STATE:  # to go on from, no network: the run again reads it
                continue
            evaluated = run([*attack.kit.evaluate(weights=weights), "--json"], attack.place, seconds=60)
            if evaluated.code != 0:
                return f"{weights.name} does not evaluate: {evaluated.err.strip().splitlines()[-1:]}"
            found, card = json.loads(evaluated.out)["accuracy"], load_card(weights)
            if card is None or found != card.accuracy:
                return f"the card of {weights.name} says {card}, its weights give {found}"
        again = run([*command, "--force"], attack.place, seconds=60)
        if again.code != 0:
            return f"cannot be run again: {again.err.strip().splitlines()[-1:]}"
        left = [path.name for path in out.rglob("*.partial")]
        return f"{left[0]} stays" if left else _same_as_whole(attack, 0)

    return Case(command=command, kill=attack.rng.uniform(0.03, 0.4), after=after)
