"""What distillation from a cache costs a training, and a build its teacher."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gdkd_cache as gc
from benches.pictures import photographs, small_images
from benches.timing import Bench, Figure, ratios
from gdkd_cache.building.build import build
from gdkd_cache.building.options import BuildOptions
from gdkd_cache.data.loader import ViewLoader, default_num_workers
from gdkd_cache.data.source import ArraySource, FullSource
from gdkd_cache.data.views import ViewRenderer, requests_for
from gdkd_cache.device import laid_out, memory_formats
from gdkd_cache.models.build import build_model
from gdkd_cache.models.network import Network
from gdkd_cache.models.normalization import normalize_pixels
from gdkd_cache.store.facts import TeacherFacts
from gdkd_cache.threads import in_threads
from gdkd_cache.training.batches import Batches, cached_batches, rendered_batches
from gdkd_cache.training.threads import choose_threads

_LOSS = gc.loss("gdkd:k=5,w2=8,temperature=4")


def teacher_of(name: str, source: ArraySource, device: torch.device) -> Network:
    """A network without training, its logits spread like a trained one's."""
    torch.manual_seed(0)
    model = build_model(name, len(source.classes)).eval().to(device)
    with torch.no_grad():
        some = normalize_pixels(torch.from_numpy(source.images[:64]).to(device), source.mean, source.std)
        factor = 4 / model(some).std()
        for parameter in list(model.parameters())[-2:]:
            parameter.mul_(factor)
    facts = TeacherFacts(name=name, weights=f"sha256:{0:064d}", mean=source.mean, std=source.std)
    network = Network(
        model=model, mean=source.mean, std=source.std, device=device, precision="float32", description=facts
    )
    return network.tried(len(source.classes), (source.images.shape[2], source.images.shape[3]))


@dataclass
class _Epochs:
    """Epochs of a student's training on batches, one a call."""

    student: str
    batches: Batches
    num_classes: int
    device: torch.device

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = build_model(self.student, self.num_classes).to(self.device).train()
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.01, momentum=0.9)
        self.numbers = count()

    def __call__(self) -> None:
        for images, labels, said, _ in self.batches(next(self.numbers)):
            logits = self.model(laid_out(images, memory_formats(self.device, (images.shape[2], images.shape[3]))[0]))
            value = F.cross_entropy(logits, labels)
            if said is not None:
                value = value + _LOSS(logits, said.logits, labels, said.top)
            self.optimizer.zero_grad(set_to_none=True)
            value.backward()
            self.optimizer.step()


def _cache(bench: Bench, source: ArraySource, teacher: Network, recipe: str) -> gc.Cache:
    out = bench.folder / f"{teacher.description.name}-{len(source)}.zarr"
    build(BuildOptions(out=out, num_views=2, recipe=recipe, losses=(_LOSS,), accept_teacher=True), source, teacher)
    return gc.open_cache(out)


def _threads(student: str, source: ArraySource) -> int:
    model = build_model(student, len(source.classes)).train()
    images = torch.zeros(64, *source.images.shape[1:])
    return choose_threads(lambda: model(images).sum().backward())


def _ways(
    bench: Bench, student: str, source: ArraySource, teacher: Network, recipe: str
) -> dict[str, Callable[[], object]]:
    cache = _cache(bench, source, teacher, recipe)
    loading = {"batch_size": 64, "seed": 0, "num_workers": 0, "device": bench.device}
    dataset = cache.dataset(source)
    views = {"view_seed": 0, "views": range(2), **loading}
    ways = {
        "cache": cached_batches(dataset, **loading),
        "cross-entropy": rendered_batches(source, dataset.recipe, **views),
        "live": rendered_batches(source, dataset.recipe, **views, teacher=teacher.logits, num_top=5),
    }
    return {name: _Epochs(student, batches, len(source.classes), bench.device) for name, batches in ways.items()}


def train_overhead(bench: Bench) -> Iterator[Figure]:
    """An epoch of GDKD from the cache against an epoch of cross-entropy: same loader, views, threads."""
    digits = gc.open_source("digits")
    assert isinstance(digits, ArraySource)
    sizes = [("cnn-s", "cnn-l", digits, "crop", "<= 1.25")]
    if not bench.smoke:
        sizes.append(("resnet8x4", "cnn-l", small_images(1024, 100), "crop-flip", "<= 1.02"))
    for student, taught_by, source, recipe, goal in sizes:
        teacher = teacher_of(taught_by, source, bench.device)
        with in_threads(_threads(student, source)):
            ways = _ways(bench, student, source, teacher, recipe)
            times = bench.seconds({name: ways[name] for name in ("cache", "cross-entropy")}, least=1.0)
        where = f"{student} on {source.name}, {len(source.classes)} classes"
        yield Figure(
            what=f"epoch from the cache, {where}",
            against="cross-entropy",
            ratios=ratios(times["cache"], times["cross-entropy"]),
            goal=goal,
        )


def train_live(bench: Bench) -> Iterator[Figure]:
    """An epoch of GDKD with a live teacher against one from the cache; the goal is 0.9 of what the FLOPs say."""
    student, taught_by = ("cnn-s", "cnn-l") if bench.smoke else ("resnet8x4", "resnet32x4")
    source = small_images(128 if bench.smoke else 512, 100)
    teacher = teacher_of(taught_by, source, bench.device)
    ways = _ways(bench, student, source, teacher, "crop-flip")
    times = bench.seconds({name: ways[name] for name in ("live", "cache")}, least=0)
    # A training step is three forward passes of the student; the live teacher adds one of its own.
    saved = 1 + _flops(teacher.model, source) / (3 * _flops(build_model(student, 100), source))
    yield Figure(
        what=f"epoch with live {taught_by} -> {student}",
        against="from the cache",
        ratios=ratios(times["live"], times["cache"]),
        goal=f">= {0.9 * saved:.2f}",
    )


def _flops(model: nn.Module, source: ArraySource) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    device = next(model.parameters()).device
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, *source.images.shape[1:], device=device))
    return counter.get_total_flops()


def build_overhead(bench: Bench) -> Iterator[Figure]:
    """A build, everything included, against the bare teacher's forward passes over views rendered before.

    Of JPEG files also against the rendering alone: a GPU's forward runs beside it, a CPU's shares its cores.
    """
    source = small_images(256 if bench.smoke else 2048, 100)
    teacher = teacher_of("cnn-l" if bench.smoke else "resnet20", source, bench.device)
    times = bench.seconds(_built(bench, "memory", source, teacher, "crop-flip"), least=0)
    what = f"build of 2 views of {len(source)} images of 32x32 in memory, {teacher.description.name}"
    yield Figure(what=what, against="the bare forward", ratios=ratios(times["build"], times["forward"]), goal="<= 1.05")

    name, size = ("cnn-s", 32) if bench.smoke else ("torchvision:resnet18", 128)
    files = photographs(bench.jpegs, 16 if bench.smoke else 256)
    teacher = teacher_of(name, small_images(64, len(files.classes), size), bench.device)
    times = bench.seconds(_built(bench, "files", files, teacher, f"imagenet:size={size}"), least=0)
    what = f"build of 2 views of {len(files)} JPEG files, {size}x{size}, {name}"
    alone = [max(both) for both in zip(times["rendering"], times["forward"], strict=True)]
    yield Figure(
        what=what,
        against="the larger of rendering and forward",
        ratios=ratios(times["build"], alone),
        goal="<= 1.1" if bench.device.type == "cuda" else "",
    )
    both = [sum(both) for both in zip(times["rendering"], times["forward"], strict=True)]
    yield Figure(
        what=what,
        against="rendering, then forward",
        ratios=ratios(times["build"], both),
        goal="" if bench.device.type == "cuda" else "<= 1.1",
    )


def _built(
    bench: Bench, name: str, source: FullSource, teacher: Network, recipe: str
) -> dict[str, Callable[[], object]]:
    """A build of two views in batches of 256, and what it consists of: each view rendered, and shown to the teacher."""
    numbers = count()

    def built() -> Path:
        out = bench.folder / f"{name}-{next(numbers)}"
        options = BuildOptions(
            out=out, num_views=2, recipe=recipe, codec="dense", batch_size=256, images_in_memory=0, accept_teacher=True
        )
        build(options, source, teacher)
        return out

    renderer = ViewRenderer(source, gc.open_cache(built()).dataset(source).recipe, 0)

    def rendering() -> list[Tensor]:
        requests = requests_for((0, 1), np.arange(len(source)), 64)
        loader = ViewLoader(renderer, num_workers=default_num_workers(source))
        return [batch.pixels for batch in loader.stream(requests)]

    pixels = torch.cat(rendering()).split(256)
    size = (pixels[0].shape[2], pixels[0].shape[3])

    def forward() -> None:
        for some in pixels:
            with torch.inference_mode():
                images = normalize_pixels(some.to(bench.device), teacher.mean, teacher.std)
                teacher.model(laid_out(images, memory_formats(bench.device, size)[0])).float()

    things: dict[str, Callable[[], object]] = {"build": built, "forward": forward}
    return things if source.images is not None else things | {"rendering": rendering}


def startup(bench: Bench) -> Iterator[Figure]:
    """The time from nothing to the first step with a cache of 100 views against one of 1 view."""
    source = small_images(512 if bench.smoke else 4096, 10, 8)
    teacher = teacher_of("cnn-s", source, bench.device)
    places = {}
    for num_views in (1, 8 if bench.smoke else 100):
        out = bench.folder / f"views-{num_views}"
        build(
            BuildOptions(out=out, num_views=num_views, recipe="crop", codec="dense", accept_teacher=True),
            source,
            teacher,
        )
        places[f"{num_views} views"] = out

    def first_batch(out: Path) -> Tensor:
        loader = gc.open_cache(out).dataset(source).loader(0, batch_size=64, shuffle=True)
        return next(iter(loader))[0]

    logging.getLogger("gdkd_cache").setLevel(logging.WARNING)
    times = bench.seconds({name: lambda out=out: first_batch(out) for name, out in places.items()})
    one, many = times
    yield Figure(
        what=f"to the first batch, {many}", against="1 view", ratios=ratios(times[many], times[one]), goal="<= 1.1"
    )
