"""What a manifest says of a cache, as frozen dataclasses: `schema.py` reads and writes their JSON."""

from dataclasses import dataclass, field
from typing import Any

from gdkd_cache.codec.fidelity import Fidelity
from gdkd_cache.schema import REST, Absent

Number = int | float
"""Whole numbers of a manifest stay whole, so that its bytes stay as they are."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """The source.

    Attributes:
        name, digest: of the source.
        keys_bytes: length of its key table.
        unlabelled: rows without a label; stored are then the ids of one class more, the last, which is none.
    """

    name: str
    digest: str
    keys_bytes: int
    unlabelled: int = 0


@dataclass(frozen=True, kw_only=True)
class RecipeFacts:
    """A recipe as the manifest holds it; `to_json` of it is what `Recipe.from_json` reads."""

    name: str
    steps: tuple[dict[str, object], ...]
    mix: dict[str, object] | None
    decode_side: int | None


@dataclass(frozen=True, kw_only=True)
class Views:
    """How the views are made.

    Attributes:
        recipe, seed: what they are made with.
        size: height and width, in pixels.
        first: the number of the first view; None, in some old caches, for 0.
        source_checks: whether the cache has a check of every decoded image; version 0.1.0 wrote none.
    """

    recipe: RecipeFacts
    seed: int
    size: tuple[int, ...]
    first: int | None = None
    source_checks: bool = False


@dataclass(frozen=True, kw_only=True)
class TeacherFacts:
    """The teacher.

    Attributes:
        name: of the model; packed logits have a name too.
        weights: checksum of its weights; None for packed logits.
        logits: checksum of packed logits.
        mean, std: channel statistics of its inputs, for pixels in [0, 1].
        accuracy: on held-out images, in [0, 1]; None where its weights do not say.
        size, interpolation: of the images that its library says it was made for; None where no library says so.
        stated_by: who said how it sees images, where that was its library and no card or option.
        output: which of its outputs are the logits, where that had to be said.
        classes: for each number of these logits the class that it is, -1 for none; None where they are the classes.
    """

    name: str
    weights: str | None = None
    logits: str | None = None
    mean: tuple[Number, ...] | None = None
    std: tuple[Number, ...] | None = None
    accuracy: Number | Absent | None = Absent.ABSENT
    size: tuple[int, ...] | None = None
    interpolation: str | None = None
    stated_by: str | None = None
    output: str | None = None
    classes: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Examined:
    """How right a teacher is about rows with labels.

    Attributes:
        rows: how many.
        top1, top5: how often the label is its first class, or among its first five, in [0, 1].
        calibration_error: how far the first class's probability is from how often it is the label: the mean over rows
            of what the means of 15 bins of probability differ by, in [0, 1].
        entropy: mean, in nats.
    """

    rows: int
    top1: Number
    top5: Number
    calibration_error: Number
    entropy: Number


@dataclass(frozen=True, kw_only=True)
class Examination:
    """What was found when a teacher was examined, before a cache was built with it.

    Attributes:
        views: on the calibration rows, in their first view.
        dropped: the mean share of its probability that outputs have which are none of the classes; None where all are.
        data, recipe: other images that it was evaluated on, and what its inputs were made with; None for none.
        evaluated: on these.
    """

    views: Examined
    dropped: Number | None = None
    data: str | None = None
    recipe: str | None = None
    evaluated: Examined | None = None


@dataclass(frozen=True, kw_only=True)
class RequestFacts:
    """What was asked of the codec; `to_json` of it is what `CodecRequest.from_json` reads."""

    spec: str
    fidelity: Number
    losses: tuple[dict[str, object], ...]
    num_top: int


@dataclass(frozen=True, kw_only=True)
class CodecFacts:
    """The codec: `to_json` of it is what the codec itself wrote, and reads.

    Attributes:
        name: of its class.
        num_classes, num_top: C, and how many classes are kept in exact rank order.
        tables_bytes: length of its fitted tables; None for a codec that has none.
        references: how many views, the first ones, the others are predicted from.
        rest: its other fields.
    """

    name: str
    num_classes: int
    num_top: int
    tables_bytes: int | None = None
    references: int = 0
    rest: dict[str, Any] = field(default_factory=dict, metadata=REST)


@dataclass(frozen=True, kw_only=True)
class BuildFacts:
    """What moves a teacher's last bits; None for what is not stated.

    Attributes:
        batch_size: rows that it saw at once.
        device: its kind.
        precision: `float32`, `float16` or `bfloat16`.
        memory_format: of the images, `channels_last` or `contiguous`, where it is not the device's usual one: the
            first on a GPU, the second elsewhere.
        software: versions by name.
    """

    batch_size: int | None = None
    device: str | None = None
    precision: str | None = None
    memory_format: str | None = None
    software: dict[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class PartFacts(BuildFacts):
    """How a run of views was built.

    Attributes:
        first, num_views: which views.
    """

    first: int
    num_views: int

    @property
    def view_numbers(self) -> range:
        return range(self.first, self.first + self.num_views)


@dataclass(frozen=True, kw_only=True)
class Build(BuildFacts):
    """How all views were built, or, where that is not the same for all, each run of them.

    Attributes:
        parts: in the order of the views; empty where one statement holds for all.
    """

    parts: tuple[PartFacts, ...] = ()


LAPLACE = "laplace"


@dataclass(frozen=True, kw_only=True)
class NoiseFacts:
    """Noise that was added to a teacher's probabilities before anything was made of them.

    Attributes:
        mechanism: `laplace`: noise of scale sensitivity / epsilon on each class's probability.
        epsilon: of one view of one image; all views of an image together have so many times that.
        sensitivity: what two distributions differ by at most, in the sum over classes.
    """

    mechanism: str
    epsilon: Number
    sensitivity: Number


@dataclass(frozen=True, kw_only=True)
class Card:
    """What its maker says of a cache, as `make_card` makes it; None for nothing."""

    license: str | None = None
    contact: str | None = None


NO_CARD = Card()
UNFITTED = CodecFacts(name="", num_classes=0, num_top=0)
UNMEASURED = Fidelity(rows=0, gradient_error={}, kl={}, top1_agreement=None, topk_agreement=None, max_error=0.0)
"""Of an identity whose codec the build itself decides."""
