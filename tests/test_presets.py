"""Presets: the published settings are there, as published; files of users are checked; the command line wins."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from gdkd_cache_cli.main import main
from on_disk import cifar, cub200, imagenet, tiny_imagenet
from torchvision.datasets import CIFAR100

from gdkd_cache import open_source
from gdkd_cache.building.build import BuildOptions, build
from gdkd_cache.errors import UsageError
from gdkd_cache.models.build import build_model
from gdkd_cache.models.card import ModelCard
from gdkd_cache.models.opening import open_network
from gdkd_cache.models.weights import load_card, save_weights
from gdkd_cache.training.options import TrainOptions
from gdkd_cache.training.presets.preset import open_preset, open_preset_file, preset_files

_ALL = [f"{file.name}/{pair}/{loss}" for file in preset_files() for pair in file.pairs for loss in file.losses(pair)]


def _run(*args: str | Path) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def test_the_list_is_complete() -> None:
    pairs = {file.name: list(file.pairs) for file in preset_files()}
    imagenets = ["ResNet34-ResNet18", "ResNet50-MobileNetV1"]
    assert pairs == {
        "camvid": ["deeplabv3-r101-deeplabv3-r18", "deeplabv3-r18-seg-s"],
        "cifar100": [
            "resnet56-resnet20",
            "resnet110-resnet32",
            "resnet32x4-resnet8x4",
            "resnet32x4-ShuffleV1",
            "resnet32x4-ShuffleV2",
            "ResNet50-MobileNetV2",
            "vgg13-vgg8",
            "vgg13-MobileNetV2",
            "wrn_40_2-wrn_16_2",
            "wrn_40_2-wrn_40_1",
            "wrn_40_2-ShuffleV1",
        ],
        "cityscapes": ["deeplabv3-r101-deeplabv3-r18", "deeplabv3-r101-pspnet-r18"],
        "cub200": imagenets,
        "imagenet": imagenets,
        "imagenet-transformers": ["resnet50-swin_t"],
        "tiny-imagenet": imagenets,
    }
    for pair in pairs["cifar100"]:
        assert open_preset_file("cifar100").losses(pair) == ["gdkd", "gdkd3", "dkd", "kd", "lskd", "ls_gdkd", "ce"]
    shown = _run("presets").stdout
    for name, own in pairs.items():
        assert all(f"{name}/{pair}" in shown for pair in own)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        (
            "cifar100/resnet32x4-resnet8x4",
            {
                "loss": "gdkd:k=5,w0=1,w1=2,w2=8,temperature=4",
                "lr": 0.05,
                "warmup": 20,
                "schedule": "multistep:at=150/180/210",
            },
        ),
        ("cifar100/wrn_40_2-ShuffleV1/dkd", {"loss": "dkd:alpha=1,beta=8,temperature=4", "lr": 0.01, "epochs": 240}),
        ("cifar100/vgg13-vgg8/kd", {"loss": "kd:temperature=4", "ce_weight": 0.1, "distillation_weight": 0.9}),
        ("cifar100/vgg13-vgg8/lskd", {"loss": "kd:temperature=2,standardize=true", "distillation_weight": 9.0}),
        ("cifar100/vgg13-vgg8/gdkd3", {"loss": "gdkd3:k=4,w0=1,w1=1,w2=6,temperature=4", "warmup": 20}),
        ("imagenet/ResNet50-MobileNetV1", {"loss": "gdkd:k=5,w0=0.5,w1=2,w2=2,temperature=1", "batch_size": 512}),
        ("imagenet/ResNet34-ResNet18/lskd", {"ce_weight": 1.0, "distillation_weight": 9.0, "lr": 0.2}),
        (
            "tiny-imagenet/ResNet34-ResNet18/dkd",
            {"loss": "dkd:alpha=1,beta=0.5,temperature=1", "schedule": "multistep:at=30/60"},
        ),
        ("cub200/ResNet34-ResNet18/kd", {"lr": 0.0025, "weight_decay": 1e-3, "schedule": "multistep:at=40/80"}),
        (
            "imagenet-transformers/resnet50-swin_t/kd",
            {"schedule": "cosine:least=1e-5", "no_norm_decay": True, "label_smoothing": 0.1, "clip_grad_norm": 5.0},
        ),
        ("imagenet-transformers/resnet50-swin_t", {"loss": "gdkd3:k=5,w0=1,w1=1,w2=1,temperature=1"}),
        (
            "cityscapes/deeplabv3-r101-pspnet-r18",
            {
                "loss": "gdkd:k=3,w0=1,w1=1,w2=2,temperature=1",
                "lr": 0.02,
                "weight_decay": 5e-4,
                "batch_size": 16,
                "schedule": "polynomial:power=0.9,least=1e-4",
                "schedule_by": "step",
                "aux_weight": 0.4,
            },
        ),
    ],
)
def test_published_values(name: str, settings: dict[str, Any]) -> None:
    found = open_preset(name).settings
    assert {key: found[key] for key in settings} == settings


def test_losses_have_their_own_settings_alone() -> None:
    """A warm-up of one loss is none of another's; a pair's learning rate is that of all its losses."""
    assert "warmup" not in open_preset("cifar100/vgg13-MobileNetV2/kd").settings
    assert open_preset("cifar100/vgg13-MobileNetV2/kd").settings["lr"] == 0.01


@pytest.mark.parametrize("name", _ALL)
def test_every_preset_is_a_training(name: str, tmp_path: Path) -> None:
    """Its settings make options and a loss; printed as a file of its own, it is the same."""
    preset = open_preset(name)
    options = TrainOptions(**preset.settings, out=tmp_path)
    assert (options.distillation is None) == name.endswith("/ce")
    shown = _run("presets", name)
    assert shown.exit_code == 0, shown.output
    (tmp_path / "mine.toml").write_text(shown.stdout)
    mine = open_preset(str(tmp_path / "mine.toml"))
    assert (mine.settings, mine.teacher, mine.recipe) == (preset.settings, preset.teacher, preset.recipe)


@pytest.mark.parametrize("name", sorted({f"{name.split('/')[0]}/{name.split('/')[1]}" for name in _ALL}))
def test_every_network_is_known(name: str) -> None:
    preset = open_preset(name)
    for network in (str(preset.teacher), preset.settings["student"]):
        with torch.device("meta"):
            build_model(network, 7)


def test_a_file_is_printed_as_it_is() -> None:
    shown = _run("presets", "cifar100").stdout
    assert shown == open_preset_file("cifar100").text
    assert "# Oddities:" in shown
    assert tomllib.loads(shown)["pairs"]["vgg13-vgg8"]["student"] == "vgg8"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("learning_rate = 1", "setting is 'learning_rate'; it must be one of teacher, recipe"),
        ("batchsize = 1", "setting is 'batchsize'; did you mean batch_size?"),
        ("out = 'x'", "setting is 'out'"),
        ("force = true", "setting is 'force'"),
        ("epochs = '8'", "epochs is '8'; it must be a whole number"),
        ("epochs = 0", "epochs is 0; it must be int in 1.."),
        ("lr = nan", "lr is nan; it must be above 0 and at most 1000000000 and finite"),
        ("lr = true", "lr is True; it must be a number"),
        ("precision = 'int8'", "precision is 'int8'; it must be one of float32, tf32"),
        ("report_to = 3", "report_to is 3; it must be a list"),
        ("report_to = [3]", "report_to is 3; it must be a text"),
        ("milestones = [3]", "setting is 'milestones'"),
        ("loss = 3", "loss is 3; it must be a text"),
        ("losses = 3", "losses is 3; it must hold tables"),
        ("losses.kd = 3", "it must hold tables, as in [losses.NAME]"),
        ("losses.kd.warmpu = 3", "losses.kd: setting is 'warmpu'; did you mean warmup?"),
        ("pairs.a.studnet = 'x'", "pairs.a: setting is 'studnet'; did you mean student?"),
        ("pairs.a.losses.kd.pairs = 3", "pairs.a, losses.kd: setting is 'pairs'"),
        ("pairs.a.lr = 1", "pair is missing; it must be one of a"),
        ("summary = 3", "summary is 3; it must be a text"),
        ("lr = ", "cannot be read: "),
        ("x = " + "[" * 5000, "cannot be read: "),
        ("student = 'os:system'", "student is 'os:system', code that no file may load; leave it out there"),
        ("teacher = 'os:system'", "teacher is 'os:system', code"),
        ("loss = 'os:system'", "loss is 'os:system', code"),
        ("schedule = 'os:system'", "schedule is 'os:system', code that no file may load"),
        ("recipe = 'compat:os:system'", "recipe is 'compat:os:system', code"),
        ("eval_recipe = 'compat:os:system'", "name it yourself with --eval-recipe"),
    ],
)
def test_wrong_files(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        open_preset(str(path))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cifar10", "preset is 'cifar10'; did you mean cifar100?"),
        ("", "preset is missing; it must be one of camvid, cifar100"),
        ("../presets/cifar100", "preset is '..'; it must be one of"),
        ("nowhere.toml", "preset nowhere.toml does not exist"),
        ("cifar100", "pair is missing; it must be one of resnet56-resnet20"),
        ("cifar100/resnet32x4-resnet8x3", "pair is 'resnet32x4-resnet8x3'; did you mean resnet32x4-resnet8x4?"),
        ("cifar100/vgg13-vgg8/gdkd5", "loss is 'gdkd5'; did you mean gdkd?"),
        ("cifar100/vgg13-vgg8/kd/more", "without more"),
    ],
)
def test_wrong_names(name: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_preset(name)
    assert said in str(caught.value)
    run = _run("train", "--preset", name, "--data", "digits", "--out", "x")
    assert (run.exit_code, run.stderr.count("\n")) == (2, 1)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    """It may have pairs and losses, too; what stands for one of them wins."""
    path = tmp_path / "mine.toml"
    path.write_text("lr = 1\nepochs = 3\nlosses.kd = { loss = 'kd', warmup = 2 }\nlosses.ce.loss = 'ce'\n")
    assert open_preset(f"{path}").settings == {"lr": 1, "epochs": 3, "loss": "kd", "warmup": 2}
    assert open_preset(f"{path}/ce").settings == {"lr": 1, "epochs": 3, "loss": "ce"}
    path.write_text("lr = 1\nlosses.kd.lr = 2\n[pairs.a]\nlr = 3\nlosses.kd.lr = 4\n[pairs.b]\n")
    assert [open_preset(f"{path}/{pair}/kd").settings["lr"] for pair in "ab"] == [4, 2]


def test_the_command_line_wins(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        "student = 'cnn-xl'\nepochs = 9\nlr = 0.25\nloss = 'ce'\nschedule = 'multistep:at=1/2'\nrecipe = 'none'\n"
    )
    run = _run(
        "train", "--epochs", "1", "--preset", path, "--data", "digits", "--student", "cnn-s", "--out", tmp_path / "o"
    )
    assert run.exit_code == 0, run.output
    (line,) = (tmp_path / "o" / "metrics.jsonl").read_text().splitlines()
    assert '"lr": 0.25' in line
    card = load_card(tmp_path / "o" / "best.safetensors")
    assert card is not None
    assert card.name == "cnn-s"


def _few(kind: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A few images of a dataset as it lies on disk; its spec."""
    if kind == "cifar100":
        return f"cifar100:{cifar(CIFAR100, root, monkeypatch)}"
    makers: dict[str, Callable[[Path, int], Path]] = {"tiny-imagenet": tiny_imagenet, "cub200": cub200}
    return f"{kind}:{makers.get(kind, imagenet)(root, 7)}"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("cifar100/resnet56-resnet20", "cifar100"),
        ("imagenet/ResNet34-ResNet18", "imagefolder"),
        ("tiny-imagenet/ResNet34-ResNet18/lskd", "tiny-imagenet"),
        ("cub200/ResNet34-ResNet18/kd", "cub200"),
        ("imagenet-transformers/resnet50-swin_t", "imagefolder"),
    ],
)
def test_a_preset_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str) -> None:
    """From a cache with the preset's views, of another teacher than the preset's, which would take long."""
    spec = _few(kind, tmp_path, monkeypatch)
    source, preset = open_source(spec), open_preset(name)
    torch.manual_seed(0)
    weights, num_classes = tmp_path / "teacher.safetensors", len(source.classes)
    card = ModelCard(name="cnn-s", num_classes=num_classes, size=(32, 32), mean=source.mean, std=source.std)
    save_weights(build_model("cnn-s", num_classes), card, weights)
    teacher = open_network("cnn-s", weights, num_classes, device="cpu")
    options = BuildOptions(
        out=tmp_path / "c.zarr", num_views=1, recipe=str(preset.recipe), codec="dense", num_workers=0
    )
    build(options, source, teacher)
    smaller = [] if kind == "cifar100" else ["--size", "64"]
    own = ["--data", spec, "--cache", tmp_path / "c.zarr", "--epochs", "1", "--workers", "0", "--device", "cpu"]
    run = _run(
        "train", "--preset", name, *own, *smaller, "--batch-size", "4", "--threads", "1", "--out", tmp_path / "student"
    )
    assert run.exit_code == 0, run.output
    trained = load_card(tmp_path / "student" / "best.safetensors")
    assert trained is not None
    assert trained.name == preset.settings["student"]
