"""What a training takes of memory, with a teacher and without."""

from collections.abc import Iterator

from benches.pictures import small_images
from benches.process import measured
from benches.timing import Bench, Figure
from benches.training import teacher_of
from gdkd_cache.building.build import build
from gdkd_cache.building.options import BuildOptions

_LOSS = "gdkd:k=5,w2=8,temperature=4"


def train_memory(bench: Bench) -> Iterator[Figure]:
    """The most memory that training a student takes: from a cache, with live teachers, with cross-entropy alone.

    Each is measured once, in a process of its own, on the CPU, where all that it takes can be seen; what Python and
    torch take by themselves is left out.
    """
    student, teachers = ("cnn-s", ("cnn-l",)) if bench.smoke else ("resnet8x4", ("resnet32x4", "torchvision:vit_l_16"))
    source = small_images(128, 100)
    cache = bench.folder / "cache.zarr"
    options = BuildOptions(out=cache, num_views=1, recipe="crop-flip", losses=(_LOSS,), accept_teacher=True)
    build(options, source, teacher_of(teachers[0], source, bench.device))
    alone = _bytes(student, "-")
    for what, read in (("from the cache", cache), *((f"with live {name}", name) for name in teachers)):
        yield Figure(
            what=f"most memory, {student} {what}",
            against=f"cross-entropy, {alone / 2**20:.0f} MiB",
            ratios=[_bytes(student, read) / alone],
        )


def _bytes(student: str, read: object) -> float:
    return measured("measure_training", student, read, _LOSS)["bytes"]
