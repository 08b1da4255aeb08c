"""Numbers, URLs, recipes, arrays and odd files: what a user types, or is told to type."""

import io
import json
import math
import os
import socket
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from attacks.case import Attack, Case
from attacks.fuzz import any_value, deep, fuzz, mutate
from attacks.making import npy

_NUMBERS = (
    "nan",
    "inf",
    "-inf",
    "1e300",
    "-1",
    "1e-400",
    str(10**23),
    "-" + str(10**23),
    "1e999",
    "0x10",
    "",
    "٣",
    "1_0",
)
_TRAIN = (
    *(("--lr", number) for number in (*_NUMBERS[:4], "1e9", "1e30", str(10**23))),
    *(("--weight-decay", number) for number in ("1e300", "nan", "inf", str(10**23))),
    *(("--ce-weight", number) for number in ("1e300", "nan", "inf", "-1")),
    *(("--distillation-weight", number) for number in ("1e300", "1e308", "nan")),
    *(("--seed", number) for number in ("9" * 23, "-1", "1e5", str(2**64), str(2**63))),
    *(("--view-seed", number) for number in ("9" * 23, "-1")),
    *(("--batch-size", number) for number in ("0", "-1", "9" * 23)),
    *(("--epochs", number) for number in ("0", "-1", "9" * 23)),
    *(("--size", number) for number in ("0", "-8", "9" * 23, "1e9", str(10**7))),
    *(("--schedule", f"multistep:at={text}") for text in ("9" * 23, "-1", "1/1", "/", "nan")),
    *(("--schedule", text) for text in ("os:system", "one-cycle:rise=1e300", "cosine:least=nan", "step:every=0", ":")),
    *(
        ("--optimizer", text)
        for text in ("os:system", "adam:betas=nan", "sgd:params=1", "timm:" + "9" * 999, ":", "lbfgs")
    ),
    *(("--distillation-weights", text) for text in ("1:nan", "0:1", "2:1,1:1", ",", "9" * 23 + ":1")),
    *(("--save-every", text) for text in ("0", "9" * 23, "1e9h", "-1min")),
    *(("--max-memory", text) for text in ("0", "9" * 23, "1e9GiB", "-1B")),
    *(("--loss", f"gdkd:temperature={number}") for number in ("1e300", "nan", "1e-300", "-1", str(10**23))),
    *(("--loss", f"gdkd:w2={number}") for number in ("1e300", "1e308", "nan", "-1")),
    *(("--loss", f"gdkd:k={number}") for number in ("0", "-1", "9" * 23, "1e3", "nan")),
    *(
        ("--device", name)
        for name in ("mps", "cuda:99", "cuda:-1", "meta", "xla", "cpu:9", "", "cuda:" + "9" * 23, "vulkan")
    ),
    *(("--cache-weight", number) for number in ("1e308", "nan", "-1", "0", "1e-320")),
    *(("--workers", number) for number in ("-1", "9" * 23)),
    *(("--lr-warmup", number) for number in ("-1", "9" * 23)),
)
_BUILD = (
    *(("--seed", number) for number in ("9" * 23, "-1", str(2**64), str(2**63))),
    *(("--views", number) for number in ("0", "-1", "9" * 23, str(10**9))),
    *(("--first-view", number) for number in ("-1", "9" * 23, str(2**31))),
    *(("--batch-size", number) for number in ("0", "9" * 23, str(2**40))),
    *(("--fidelity", number) for number in ("nan", "inf", "0", "-1", "1e-320", "1e300")),
    *(("--for", f"kd:temperature={number}") for number in ("1e300", "1e-300", "nan", "0")),
    *(("--codec", text) for text in ("transform:step=nan", "transform:step=1e300", "topk:k=" + "9" * 23, "topk:k=0")),
    *(("--codec", text) for text in ("transform:step=1e-320", "dense:dtype=int8", "dense:dtype=", "topk:k=1e2")),
    *(("--recipe", text) for text in ("crop-flip:size=" + "9" * 23, "crop-flip:padding=-1", "resize:size=0")),
    *(("--recipe", text) for text in ("resize:size=1000000", "imagenet:size=99999999", "crop-flip:size=nan")),
    *(("--license", text) for text in ("", "x" * 201, "a\nb", "\x1b[2J")),
)
_OPTIONS = [(name, *pair) for name, pairs in (("train", _TRAIN), ("build", _BUILD)) for pair in pairs]


def numbers(attack: Attack) -> Case:
    """Numbers out of all bounds, for each option: refused, or harmless."""
    command, option, text = attack.rng.choice(_OPTIONS)
    out = attack.place / "out"
    if command == "build":
        build = attack.kit.build(attack.kit.images, attack.kit.weights, out)
        return Case(command=[*build, f"{option}={text}"], then=["verify", out])
    train = attack.kit.train(attack.kit.cache, attack.kit.images, out)
    return Case(command=[*train, f"{option}={text}"], after=lambda code: trained(out))


def trained(out: Path) -> str | None:
    """What is wrong with what a training left: metrics that are not JSON, weights that are not finite, parts."""
    metrics = out / "metrics.jsonl"
    for line in metrics.read_text().splitlines() if metrics.exists() else ():
        try:
            values = json.loads(line, parse_constant=int)
        except ValueError:  # `int` of NaN, too
            return f"metrics.jsonl is not JSON: {line[:80]}"
        if not all(math.isfinite(value) for value in values.values() if isinstance(value, float)):
            return f"metrics.jsonl is not finite: {line[:80]}"
    for weights in out.rglob("*.safetensors"):
        if not all(value.isfinite().all() for value in load_file(weights).values() if value.is_floating_point()):
            return f"{weights.name} is not finite"
    return next((f"{path.name} stays" for path in out.rglob("*.partial")), None) if out.exists() else None


_PARTS = (
    "[::1", "[::1]:1", "]", "localhost:1", "127.0.0.1:1", "bucket", "..", "%00", "%", "\\", "\n", "\x1b[2J", "\udcff",
    "é", "℀", "user:hush@", "@", ":", "::", ":80", ":99999", ":-1", ":abc", "?", "#", "?sig=hush", "/", "///",
    "/a/b.tar", "\u202e", "a" * 3000, "{", "}", '"', "<", "*", " ", "[v1.x]", "[fe80::1%eth0]", "$(id)", "`id`",
)  # fmt: skip


def urls(attack: Attack) -> Case:
    """URLs that are broken: told in one line, without what may be a password."""
    scheme = attack.rng.choice(("http", "http", "https", "s3", "gs", "az", "S3", "ftp", "file", "h2"))
    # Ending in a colon, or in what no URL has, so that none leads to a machine.
    url = f"{scheme}://{''.join(attack.rng.choice(_PARTS) for _ in range(attack.rng.randint(0, 5)))}"
    url = attack.rng.choice(
        (url + ":x", url.replace("://", "://[", 1), f"{scheme}://", f"{scheme}://{attack.rng.choice(_PARTS)}@h")
    )
    out = attack.place / "out"
    command = attack.rng.choice(
        (
            ["inspect", url],
            ["pull", url, out],
            ["push", attack.kit.cache, url],
            ["eval", "--data", f"wds:{url}", "--weights", attack.kit.weights],
            [*attack.kit.build(attack.kit.images, attack.kit.weights, out)[:-1], url],
        )
    )

    def after(code: int) -> str | None:
        said = (attack.kit.folder / "logs" / "err").read_text()
        return "tells a password" if "hush" in said.partition("://")[2].partition("/")[0] else None

    return Case(command=command, refuse=True, after=after)


_RECIPES: tuple[dict[str, Any], ...] = (
    {"steps": [{"step": "random_crop", "size": 8, "padding": 2}, {"step": "horizontal_flip"}]},
    {
        "steps": [
            {"step": "random_resized_crop", "size": 8, "scale": [0.2, 1.0]},
            {"step": "rand_augment", "magnitude": 7},
        ]
    },
    {"decode_side": 16, "steps": [{"step": "color_jitter"}], "mix": {"mixup_alpha": 0.8, "cutmix_alpha": 1.0}},
)


def recipes(attack: Attack) -> Case:
    """Recipe files: deep, fuzzed, of other kinds, that name code."""
    recipe = mutate(attack.rng, attack.rng.choice(_RECIPES))
    way = attack.number % 5
    path = attack.place / ("recipe.toml" if way == 4 else "recipe.json")
    data = json.dumps(recipe).encode()
    if way == 0:
        data = attack.rng.choice(
            (b"", b"null", b"[]", b"\xff", b"{" * 9999, deep().encode(), b'{"steps":' + deep().encode())
        )
    elif way == 1:
        data = fuzz(attack.rng, data)
    elif way == 2:
        data = json.dumps(
            {"steps": [{"step": attack.rng.choice(("json:nothing", "os:system", "x" * 5000, "..:x"))}]}
        ).encode()
    elif way == 4:
        depth = attack.rng.choice((100, 5000))
        options = (
            f"steps = {deep(depth)}",
            "a" + ".a" * depth + " = 1",
            "\x1b[2J",
            "[[steps]]\nstep = 1",
            f"{any_value(attack.rng)}",
        )
        data = attack.rng.choice(options).encode(errors="replace")
    path.write_bytes(data)
    out = attack.place / "out.zarr"
    command = [*attack.kit.build(attack.kit.images, attack.kit.weights, out), "--recipe", path]
    return Case(command=command, then=["verify", out, "--data", attack.kit.data(attack.kit.images)])


def arrays(attack: Attack) -> Case:
    """Logits, labels and keys that another program made, or says that it made."""
    logits, rng = np.load(attack.kit.logits), attack.rng
    path, more = attack.place / "logits.npy", []
    odd: list[Any] = [
        lambda: np.save(path, logits.astype(">f4")), lambda: np.save(path, logits.astype(np.longdouble)),
        lambda: np.save(path, logits.astype("U9")), lambda: np.save(path, np.full_like(logits, np.nan)),
        lambda: np.save(path, logits[..., :1]), lambda: np.save(path, logits[:0]), lambda: np.save(path, logits[0]),
        lambda: np.save(path, logits.astype(complex)), lambda: np.save(path, np.asfortranarray(logits)),
        lambda: np.save(path, np.array([{"a": 1}]), allow_pickle=True), lambda: np.save(path, logits.astype("M8[s]")),
        lambda: path.write_bytes(npy("'<f2'", (2, 41, 10), logits.tobytes())),
        lambda: path.write_bytes(npy("'<f2'", (-2, 40, 10), logits.tobytes())),
        lambda: path.write_bytes(npy("'|O'", (2,), b"cos\nsystem\n(S'true'\ntR.")),
        lambda: path.write_bytes(npy("[('a', '<f4')]", (2, 4, 10), logits.tobytes())),
        lambda: path.write_bytes(npy("'<f2'", (10**30,), b"")), lambda: path.write_bytes(npy(deep(900), (2,), b"")),
        lambda: path.write_bytes(b""), lambda: path.write_bytes(fuzz(rng, attack.kit.logits.read_bytes())),
        lambda: np.save(path, (logits.astype("f8") * 1e300)), lambda: np.save(path, np.full(logits.shape, 7, "f4")),
    ]  # fmt: skip
    if attack.number % 3 == 0:
        rng.choice(odd)()
    elif attack.number % 3 == 1:
        np.save(path, logits)
        labels = rng.choice(
            (np.full(40, 0.7), np.array(["1"] * 40), np.array([], int), np.full(40, 10), np.full(40, -1), np.array(1),
             np.full(40, np.nan), np.full(40, 2**63, np.uint64), np.full(40, True), np.full(40, 1.0), np.zeros((40, 2)))
        )  # fmt: skip
        np.save(attack.place / "labels.npy", labels)
        more += ["--labels", attack.place / "labels.npy"]
        if rng.random() < 0.3:
            keys = rng.choice((b"\xff\xfe\n" * 40, b"", b"a\n" * 40, b"\x1b[2J\n" * 40, b"a\0b\n" * 40, b"x" * 10**6))
            (attack.place / "keys").write_bytes(keys)
            more += ["--keys", attack.place / "keys"]
    else:
        file = io.BytesIO()
        np.savez(file, logits=logits, label=np.arange(40) % 10)
        data = fuzz(rng, file.getvalue())
        if rng.random() < 0.5:
            with zipfile.ZipFile(file := io.BytesIO(), "w") as archive:
                archive.writestr("logits.npy", npy("'<f2'", (2, 40, rng.choice((10, 11, 10**12))), logits.tobytes()))
                archive.writestr(
                    rng.choice(("label.npy", "labels.npy", "../x.npy", "label.txt")),
                    fuzz(rng, npy("'<i8'", (40,), bytes(320))),
                )
            data = file.getvalue()
        path = path.with_suffix(".npz")
        path.write_bytes(data)
    out = attack.place / "out.zarr"
    return Case(command=["pack", path, out, "--codec", "dense", *more], then=["verify", out, "--deep"])


def pipes(attack: Attack) -> Case:
    """Pipes, devices and sockets, wherever a file can be named: refused at once."""
    kit, out = attack.kit, attack.place / "out"
    kind = attack.rng.choice(("fifo", "fifo", "socket", "/dev/zero", "/dev/null", "folder"))

    def odd(path: Path) -> Path:
        path.unlink(missing_ok=True)
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "socket":
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(os.path.relpath(path))
        elif kind == "folder":
            path.mkdir()
        else:
            path.symlink_to(kind)
        return path

    build = kit.build(kit.images, kit.weights, out)
    where = attack.number % 12
    if where < 2:
        command = [*kit.evaluate(weights=odd(attack.place / f"w.{('pt', 'safetensors')[where]}")), "--model", "cnn-s"]
    elif where == 2:
        weights = attack.place / "w.pt"
        torch.save(load_file(kit.weights), weights)
        odd(weights.with_suffix(".json"))
        command = kit.evaluate(weights=weights)
    elif where == 3:
        command = [*build, "--recipe", odd(attack.place / attack.rng.choice(("r.toml", "r.json")))]
    elif where < 7:
        options = ("logits.npy", "labels.npy", "keys.txt")
        name = options[where - 4]
        path = odd(attack.place / name)
        logits = path if name == "logits.npy" else kit.logits
        more = () if name == "logits.npy" else (f"--{path.stem}", path)
        command = ["pack", logits, out, *more]
    elif where == 7:
        command = ["inspect", odd(attack.place / "cache")]
    elif where == 8:
        cache = kit.copy(kit.cache, attack.place)
        odd(cache / "manifest.json")
        command = attack.rng.choice((["inspect", cache], ["verify", cache], ["pull", cache, out]))
    elif where == 9:
        cache = kit.copy(kit.cache, attack.place)
        odd(
            attack.rng.choice(
                sorted(path for path in cache.rglob("*") if path.is_file() and path.name != "manifest.json")
            )
        )
        command = attack.rng.choice((["verify", cache], ["pull", cache, out]))
    elif where == 10:
        images = kit.copy(kit.shards, attack.place)
        odd(images / attack.rng.choice(("part-0.tar", "classes.txt")))
        command = kit.evaluate(images)
    else:
        images = kit.copy(kit.images, attack.place)
        odd(attack.rng.choice(sorted((images / "val").rglob("*.png"))))
        command = kit.evaluate(images)
    # /dev/null is an empty file where a text may be empty, and a folder may be where a file is optional.
    return Case(command=command, refuse=kind in ("fifo", "socket", "/dev/zero"), seconds=15)
