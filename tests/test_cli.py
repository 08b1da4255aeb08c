"""The command line: the fixed forms work, help teaches, and bad input gets one line and the right exit code."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from gdkd_cache_cli.main import main
from safetensors.torch import load_file, save_file

import gdkd_cache as gc
from gdkd_cache import open_cache
from gdkd_cache.losses.registry import LOSSES
from gdkd_cache.models.weights import load_card

_COMMANDS = sorted(main.commands)


def _run(*args: str | Path) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


_LIGHT = """
import sys
import gdkd_cache
assert not {"torch", "numpy", "zarr"} & sys.modules.keys()
assert gdkd_cache.BuildOptions.__name__ == "BuildOptions" and "torch" not in sys.modules
from gdkd_cache_cli.main import main
main(["--help"], standalone_mode=False)
for name, command in main.commands.items():
    try:
        main([name, "--help"])
    except SystemExit:
        assert "torch" not in sys.modules, name
"""


def test_help_does_not_import_torch() -> None:
    """Nor does the package before a name of it is used; the help of every command tells all its options."""
    run = subprocess.run([sys.executable, "-c", _LIGHT], capture_output=True, text=True, check=True)
    for command in _COMMANDS:
        assert f"  {command} " in run.stdout
    assert "--for LOSS" in run.stdout


def test_every_public_name_loads() -> None:
    """All that a type checker sees of the package is there, and what is not is an AttributeError."""
    source = Path(gc.__file__).read_text()
    names = re.findall(r"^    from \S+ import (\w+) as \1$", source, re.MULTILINE)
    assert len(names) > 12
    for name in names:
        assert getattr(gc, name) is not None
    for name in LOSSES:
        assert getattr(gc.losses, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = gc.nothing


@pytest.mark.parametrize("command", _COMMANDS)
def test_every_help_shows_an_example(command: str) -> None:
    result = _run(command, "--help")
    assert result.exit_code == 0
    assert f"\n    gdkd-cache {command} " in result.stdout


def test_train_help_fits_on_two_screens() -> None:
    """Of a terminal of 100 columns; what few need is one option away, and is taken from files too."""
    short, long = (
        CliRunner().invoke(main, ["train", flag], terminal_width=100).stdout for flag in ("--help", "--help-all")
    )
    assert len(short.splitlines()) <= 100
    assert max(map(len, long.splitlines())) <= 112
    rare = (
        "--accumulate",
        "--ema",
        "--label-smoothing",
        "--temperatures",
        "--compile",
        "--use",
        "--decoded",
        "--views",
    )
    for flag in rare:
        assert f" {flag} " not in short
        assert f"\n  {flag} " in long
    for flag in ("--data", "--cache", "--student", "--epochs", "--out", "--loss", "--optimizer", "--lr", "--schedule"):
        assert f"\n  {flag} " in short


def test_the_fixed_forms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of the README, on all the digits."""
    monkeypatch.chdir(tmp_path)
    for line in (
        "train --loss ce --data digits --student cnn-s --epochs 2 --out teacher",
        "build --data digits --teacher cnn-s --weights teacher/best.safetensors --views 4 --recipe crop-flip --seed 0"
        " --out digits.zarr",
        "train --loss gdkd --data digits --cache digits.zarr --student cnn-s --epochs 2 --out student",
        "plan --data digits --teacher cnn-s --weights teacher/best.safetensors --views 40 --fidelity 0.2",
        "inspect digits.zarr",
        "verify digits.zarr --data digits",
        "show digits.zarr --data digits --out views.png",
        "eval --data digits --weights student/best.safetensors",
    ):
        result = _run(*line.split())
        assert result.exit_code == 0, result.output
    facts = json.loads(_run("inspect", "digits.zarr", "--json").stdout)
    assert (facts["views"], facts["rows"], facts["classes"], facts["codec"]) == (4, 1438, 10, "transform")
    assert all(error <= 0.1 for error in facts["fidelity"]["gradient_error"].values())
    size = sum(path.stat().st_size for path in Path("digits.zarr").rglob("*") if path.is_file())
    assert facts["bytes_per_view"] == size / (4 * 1438)
    assert facts["digest"].startswith("sha256:")
    verified = json.loads(_run("verify", "digits.zarr", "--data", "digits", "--json").stdout)
    assert verified["problems"] == []
    assert verified["replay"]["exact"] == 4 * 53  # 22 are 1 in 64, and the 32 of the smallest hashes are others but one
    evaluated = json.loads(_run("eval", "--data", "digits", "--weights", "student/best.safetensors", "--json").stdout)
    card = load_card(Path("student/best.safetensors"))
    assert card is not None
    assert evaluated["accuracy"] == card.accuracy
    written = sorted(path.name for path in Path("student").iterdir())
    named = ["best.safetensors", "last.safetensors", "log.txt", "metrics.jsonl", "run.toml", "state.safetensors"]
    assert written == named


def test_plan_says_what_build_takes(tmp_path: Path, weights: Path) -> None:
    common = ["--data", "digits", "--teacher", "cnn-s", "--weights", weights, "--views", "2", "--recipe", "none"]
    planned = json.loads(_run("plan", *common, "--accept-teacher", "--json").stdout)
    assert (planned["num_rows"], planned["num_views"], planned["distinct_views"]) == (1438, 2, 1)
    (chosen,) = (row for row in planned["rows"] if row["chosen"])
    assert _run("build", *common, "--accept-teacher", "--out", tmp_path / "c.zarr").exit_code == 0
    facts = json.loads(_run("inspect", tmp_path / "c.zarr", "--json").stdout)
    assert facts["codec"] in chosen["setting"]
    assert facts["fidelity"]["gradient_error"] == chosen["gradient_error"]
    assert facts["objects"] + 1 == chosen["num_objects"]  # and the manifest


def test_build_for_several_losses(tmp_path: Path, weights: Path) -> None:
    common = ["--data", "digits", "--teacher", "cnn-s", "--weights", weights, "--views", "1"]
    losses = ["--for", "gdkd:w2=2", "--for", "gdkd:w2=2,temperature=1", "--for", "kd:temperature=2"]
    result = _run("build", *common, "--accept-teacher", *losses, "--fidelity", "0.2", "--out", tmp_path / "c.zarr")
    assert result.exit_code == 0, result.output
    facts = json.loads(_run("inspect", tmp_path / "c.zarr", "--json").stdout)
    errors = facts["fidelity"]["gradient_error"]
    assert len(errors) == 3
    assert any(name.startswith("gdkd temperature=1.0") and "w2=2.0" in name for name in errors)
    assert max(errors.values()) <= 0.2


def test_pack(tmp_path: Path) -> None:
    logits = np.random.default_rng(0).normal(size=(2, 60, 12)).astype(np.float16)
    np.save(tmp_path / "logits.npy", logits)
    np.savez(tmp_path / "logits.npz", teacher=logits, label=np.arange(60) % 12)
    (tmp_path / "keys.txt").write_text("".join(f"row {i}\n" for i in range(60)))
    result = _run("pack", tmp_path / "logits.npy", tmp_path / "a.zarr", "--codec", "dense")
    assert result.exit_code == 0, result.output
    assert "top-1 classes of view 0 stand in" in result.stderr
    result = _run("pack", tmp_path / "logits.npz", tmp_path / "b.zarr", "--keys", tmp_path / "keys.txt")
    assert result.exit_code == 0, result.output
    assert "stand in" not in result.stderr
    assert open_cache(tmp_path / "b.zarr").keys[59] == "row 59"
    assert open_cache(tmp_path / "b.zarr").labels[13] == 1
    assert _run("verify", tmp_path / "b.zarr").exit_code == 0


_TRAIN = "train --data digits --student cnn-s --epochs 1 --out out"
_BUILD = "build --accept-teacher --data digits --teacher cnn-s --weights {weights} --out out"


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("train --data digits --epochs 1 --out out", 2, "Missing option '--student'"),
        (f"{_TRAIN} --loss ce --data nonsense", 2, "must be one of digits"),
        (f"{_TRAIN} --loss ce --data imagefolder:nowhere", 1, "nowhere is no folder"),
        (f"{_TRAIN} --loss ce --student vgg", 2, "model is 'vgg'"),
        (f"{_TRAIN} --loss ce --epochs 0", 2, "epochs is 0"),
        (f"{_TRAIN} --loss ce:w2=8", 2, "loss is 'ce:w2=8'"),
        (f"{_TRAIN} --loss mse --cache {{cache}}", 2, "loss is 'mse'; it must be one of kd, dkd, gdkd, gdkd3"),
        (f"{_TRAIN} --loss kd:k=3 --cache {{cache}}", 2, "loss kd: cannot read 'k=3'; allowed: temperature=4.0"),
        (f"{_TRAIN} --loss ce --cache {{cache}}", 2, "--loss ce uses no cache"),
        (f"{_TRAIN} --loss gdkd", 2, "needs --cache"),
        (f"{_TRAIN} --loss gdkd --cache nowhere", 1, "nowhere is no cache"),
        (f"{_TRAIN} --loss gdkd --cache {{weights}}", 1, "is no cache"),
        (f"{_TRAIN} --loss gdkd --cache .", 1, "is no cache"),
        (f"{_TRAIN} --loss gdkd:k=9 --cache {{cache}}", 1, "k=9 needs more exact classes"),
        (f"{_TRAIN} --loss gdkd:temperature=0 --cache {{cache}}", 2, "temperature is 0.0; it must be float in 0.001"),
        (f"{_TRAIN} --loss gdkd --cache {{cache}} --digest sha256:0", 1, "not the sha256:0 asked for"),
        (f"{_TRAIN} --loss gdkd --cache {{cache}} --recipe none", 1, "recipe none is not the cache's"),
        (f"{_TRAIN} --loss gdkd --cache {{cache}} --view-seed 3", 1, "view seed 3 is not the cache's 0"),
        (f"{_TRAIN} --loss gdkd --cache {{cache}}", 1, "is not in"),  # a cache of 256 digits
        (f"{_TRAIN} --loss ce --schedule multistep:at=5/3", 2, "at is 5/3; it must be rising epochs"),
        (f"{_TRAIN} --loss ce --schedule multistep", 2, "at is missing; it must be rising epochs"),
        (f"{_TRAIN} --loss ce --schedule multistep:at=x", 2, "at='x' is not int"),
        (f"{_TRAIN} --loss ce --schedule exponential", 2, "it must be one of cosine, step"),
        (f"{_TRAIN} --loss ce --schedule cosine:least=1", 2, "least is 1, above lr, which is 0.05"),
        (f"{_TRAIN} --loss ce --schedule one-cycle --lr-warmup 1", 2, "leave lr_warmup out"),
        (f"{_TRAIN} --loss ce --optimizer lbfgs", 2, "several passes over a batch"),
        (f"{_TRAIN} --loss ce --optimizer adamv", 2, "did you mean adam"),
        (f"{_TRAIN} --loss ce --optimizer adamw:beta=0.9", 2, "cannot read 'beta=0.9'; allowed: betas, eps"),
        (f"{_TRAIN} --loss ce --optimizer sgd:lr=1", 2, "lr is given with --lr"),
        (f"{_TRAIN} --loss ce --temperatures 1:4", 2, "it goes with a distillation loss"),
        (f"{_TRAIN} --loss ce --data wds:a.tar", 2, "--eval-data"),
        (f"{_TRAIN} --loss ce --device cuda:99", 2, "cuda:99 does not exist"),
        (f"{_TRAIN} --loss ce --out {{weights}}/out", 1, "Not a directory"),
        (f"{_BUILD} --views -1", 2, "num_views is -1"),
        (f"{_BUILD} --views 1 --codec zip", 2, "codec is 'zip'"),
        (f"{_BUILD} --views 1 --recipe shear", 2, "recipe is 'shear'"),
        (f"{_BUILD} --views 1 --precision int8", 2, "precision is 'int8'"),
        (f"{_BUILD} --views 1 --teacher cnn-l", 1, "are of cnn-s, not of cnn-l"),
        (f"{_BUILD} --views 1 --weights nowhere", 1, "do not exist"),
        (f"{_BUILD} --views 1 --out {{weights}}/out", 1, "Not a directory"),
        (f"{_BUILD} --views 1 --out {{parent}}", 1, "holds no cache"),
        (f"{_BUILD} --views 1 --fidelity 0", 2, "fidelity is 0"),
        (f"{_BUILD} --views 1 --for mse", 2, "loss is 'mse'"),
        (f"{_BUILD} --views 1 --for gdkd:w9=1", 2, "cannot read 'w9=1'"),
        (f"{_BUILD} --views 1 --for gdkd:k=10", 2, "needs more than 10 classes"),
        ("pack nowhere.npy out", 1, "does not exist"),
        ("pack {weights} out", 1, "is no .npy or .npz"),
        ("inspect nowhere", 1, "is no cache"),
        ("verify .", 1, "is no cache"),
        ("verify {cache} --digest sha256:0", 1, "not the sha256:0 asked for"),
        ("repair {cache} --digest sha256:0", 1, "not the sha256:0 asked for"),
        ("show {cache} --data digits --out views.gif", 2, "must end in .png, .jpg"),
        ("show {cache} --data digits --out {parent}", 2, "is a directory"),
        ("show {cache} --data digits --out views.png --views 0;1", 2, "--views: views='0;1' is not int"),
        ("show {cache} --data digits --out views.png --rows 0", 2, "rows is 0; it must be int in 1..64"),
        ("show {cache} --data digits --out views.png", 1, "is not in"),  # a cache of 256 digits
        ("show nowhere --data digits --out views.png", 1, "is no cache"),
        ("eval --data digits --weights nowhere", 1, "do not exist"),
        ("demo --out {parent}", 1, "no earlier demo"),
        (f"{_TRAIN} --loss ce --local-copy kept", 2, "goes with --cache"),
        ("inspect ftp://host/x", 2, "no place for a cache"),
        ("push nowhere out", 1, "nowhere is no cache"),
        ("push {cache} {parent}", 1, "not empty and holds no cache"),
        ("push {cache} {weights}/out", 1, "Not a directory"),
        ("pull {cache} out --views x", 2, "--views is 'x'; it must be the first and the last, such as 0-39, or one"),
        ("pull {cache} out --views 3", 2, "has views 0 to 1; copy a part of those"),
        ("pull {cache} out --digest=", 2, "digest is ''; it must be sha256: and 64 hexadecimal digits"),
        ("verify {cache} --digest md5:0", 2, "digest is 'md5:0'; it must be sha256: and"),
        (f"{_TRAIN} --loss gdkd --cache {{cache}} --digest=", 2, "digest is ''; it must be sha256: and"),
        ("convert {cache} out --data digits", 2, "--data is digits; sidecars lie beside the shards of --data wds:"),
        ("inspect {weights}", 1, "is no cache: it is a file, not a folder"),
        ("inspect /dev/null", 1, "/dev/null is no cache: it is a pipe, a socket or a device, not a folder"),
        ("inspect https://", 2, "https:// names no host; such as https://HOST/PATH"),
        ("push {cache} s3:///x", 2, "s3:///x names no bucket; such as s3://BUCKET/PATH"),
        ("inspect http://[::1", 2, "http://[::1 is no URL: its host or port is broken; such as http://HOST/PATH"),
        (f"{_TRAIN} --loss ce --eval-data digits --data wds:https://h:x/a.tar", 2, "is no URL: its host or port"),
        ("pull {cache} out --digest sha256:0", 1, "not the sha256:0 asked for"),
    ],
)
def test_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: Path, digits_cache: Path, line: str, code: int, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = _run(*line.format(weights=weights, cache=digits_cache, parent=weights.parent).split())
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    errors = [text for text in result.stderr.splitlines() if text.startswith("Error: ")]
    assert len(errors) == 1
    assert said in errors[0]
    assert result.stderr.rstrip().endswith(errors[0])  # the line is the last thing said
    assert list(tmp_path.iterdir()) == []


def test_what_nobody_says_of_a_teacher_is_not_guessed(tmp_path: Path, weights: Path) -> None:
    """Weights without a card: a build and an evaluation want to be told how inputs are normalised."""
    bare = tmp_path / "bare.safetensors"
    save_file(load_file(weights), bare)
    build = f"build --data digits --teacher cnn-s --weights {bare} --views 1 --codec dense --accept-teacher".split()
    evaluate = ["eval", "--data", "digits", "--model", "cnn-s", "--weights", bare]
    for command in ([*build, "--out", tmp_path / "a.zarr"], evaluate):
        refused = _run(*command)
        assert refused.exit_code == 1
        assert "have no card, and cnn-s does not say how its inputs are normalised" in refused.stderr
        assert "type --normalize imagenet|cifar|half, or --mean R G B --std R G B" in refused.stderr
    assert not (tmp_path / "a.zarr").exists()
    for out, given, mean in (
        ("a.zarr", ["--normalize", "half"], [0.5, 0.5, 0.5]),
        ("b.zarr", ["--mean", "0.3", "0.3", "0.3", "--std", "0.4", "0.4", "0.4"], [0.3, 0.3, 0.3]),
    ):
        assert _run(*build, *given, "--out", tmp_path / out).exit_code == 0
        facts = json.loads(_run("inspect", tmp_path / out, "--json").stdout)
        assert facts["identity"]["teacher"]["mean"] == mean
        assert _run(*evaluate, *given).exit_code == 0
    with_card = _run(*build[:6], weights, *build[7:], "--out", tmp_path / "c.zarr")  # its card says the same as b's
    assert with_card.exit_code == 0, with_card.output
    codecs = [open_cache(tmp_path / name).view(0).logits(range(9)) for name in ("a.zarr", "b.zarr", "c.zarr")]
    assert codecs[1].equal(codecs[2])
    assert not codecs[0].equal(codecs[1])
    for wrong, said in (
        (["--normalize", "cifar10"], "normalize is 'cifar10'; it must be one of imagenet, cifar, half"),
        (["--mean", "0.3", "0.3", "0.3"], "--mean and --std go together"),
        (["--normalize", "half", "--mean", "1", "1", "1", "--std", "1", "1", "1"], "give it, or --mean and --std"),
        (["--mean", "1", "1", "1", "--std", "0", "1", "1"], "std is [0.0, 1.0, 1.0]"),
    ):
        refused = _run(*build, *wrong, "--out", tmp_path / "d.zarr")
        assert (refused.exit_code, said in refused.stderr) == (2, True)
