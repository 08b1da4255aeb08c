"""The options of a build; loads no torch, as the command line reads them for help."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gdkd_cache.codec.registry import AUTO, CODECS
from gdkd_cache.data.options import MemoryOptions, RenderOptions
from gdkd_cache.data.recipes.registry import RECIPES
from gdkd_cache.errors import UsageError
from gdkd_cache.fields import check_fields, option
from gdkd_cache.limits import LARGEST_BATCH, LARGEST_FACTOR, LARGEST_SEED, MOST_VIEWS
from gdkd_cache.losses.registry import LOSSES

if TYPE_CHECKING:
    from gdkd_cache.codec.request import CodecRequest
    from gdkd_cache.data.recipes.recipe import Recipe
    from gdkd_cache.losses.base import Loss


@dataclass(frozen=True, kw_only=True)
class CodecChoice:
    """What a cache shall serve, and how closely.

    Raises:
        UsageError: a number out of range.
    """

    codec: str = option(
        AUTO,
        f"How logits are kept: {AUTO} (the smallest that meets --fidelity), {', '.join(CODECS)}, with settings as in "
        "topk:k=16 (`gdkd-cache codecs` lists them), or package.module:name for your own.",
        metavar="SPEC",
    )
    fidelity: float = option(
        0.1,
        "The largest gradient error allowed, for each declared loss: ||G_cache - G_full|| / ||G_full||.",
        above=0,
    )
    losses: "tuple[str | Loss, ...]" = option(
        ("gdkd",),
        f"A loss that the cache shall serve: {', '.join(LOSSES)}, each with settings as in gdkd:w2=8,temperature=1 "
        "(`gdkd-cache losses` lists them), or package.module:name for your own. May be repeated: all must meet the "
        "fidelity.",
        flag="--for",
        metavar="LOSS",
    )
    num_top: int = 8  # classes kept in exact rank order, where neither the codec nor a loss wants more

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def request(self) -> "CodecRequest":
        """What is asked of the codec, its losses parsed.

        Raises:
            UsageError: an unknown loss or setting, or a value out of range.
        """
        from gdkd_cache.codec.request import CodecRequest
        from gdkd_cache.losses.base import parse_loss

        losses = tuple(dict.fromkeys(map(parse_loss, self.losses)))
        return CodecRequest(spec=self.codec, fidelity=self.fidelity, losses=losses, num_top=self.num_top)


@dataclass(frozen=True, kw_only=True)
class CardOptions:
    """What the maker of a cache says of it, one line each."""

    license: str | None = option(
        None,
        "The license that you give the cache, such as cc-by-4.0; in its digest and its README.md.",
        metavar="TEXT",
    )
    contact: str | None = option(
        None,
        "Who to ask about the cache, such as a name and an address; in its digest and its README.md.",
        metavar="TEXT",
    )


@dataclass(frozen=True, kw_only=True)
class PlanOptions(CodecChoice, RenderOptions):
    """What would be built.

    Raises:
        UsageError: a number out of range.
    """

    num_views: int = option(
        help="Views of each image: training uses one an epoch.", least=1, most=MOST_VIEWS, flag="--views"
    )
    recipe: "str | Recipe" = option(
        "crop-flip",
        f"What is done to the images: {', '.join(RECIPES)}, each with settings as in crop-flip:size=32,padding=4 "
        "(`gdkd-cache recipes` lists them); a .json or .toml file of steps (`gdkd-cache steps`); or compat:module:name "
        "for a torchvision v2 transform of your own.",
        metavar="SPEC",
    )
    seed: int = option(0, "Seed of the views.", least=-LARGEST_SEED, most=LARGEST_SEED)
    batch_size: int = option(256, "Images the teacher sees at once; part of the digest.", least=1, most=LARGEST_BATCH)
    noise: float | None = option(
        None,
        "Add Laplace noise to the teacher's probabilities: what is kept of a view is then EPS-differentially private, "
        "of N views of an image N times EPS. Images, keys and labels are not protected, nor, beyond that, what the "
        "teacher was trained on. The noise's seed is secret and is deleted at the end, so no two builds are alike; the "
        "teacher is not examined.",
        least=1e-6,
        most=LARGEST_FACTOR,
        metavar="EPS",
        unset="none",
        rare=True,
    )
    accept_teacher: bool = option(
        False, "Take a teacher that is right no more often than chance, or would be far more often in another way."
    )

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """Where a build is computed that is given to Ray.

    Raises:
        UsageError: a number out of range, or one without Ray.
    """

    ray: str | None = option(
        None,
        "Build on a Ray cluster: the one of RAY_ADDRESS or of this machine, or else a new one of this machine alone; "
        "local is always that, and HOST:PORT one that runs elsewhere.",
        metavar="[ADDRESS]",
        alone="auto",
        outcome=False,
    )
    teachers: int | None = option(
        None,
        "Teachers on the cluster, each with a GPU where it has any.",
        least=1,
        unset="one a GPU, or for each two cores without any",
        outcome=False,
    )
    renderers: int | None = option(
        None,
        "Cores of the cluster that render at once; 0 leaves it to the teachers' processes.",
        least=0,
        unset="0 for images in memory, else all cores but the teachers'",
        outcome=False,
    )

    def __post_init__(self) -> None:
        check_fields(self)
        given = [name for name in ("teachers", "renderers") if getattr(self, name) is not None]
        if given and self.ray is None:
            raise UsageError(f"--{given[0]} goes with --ray")


@dataclass(frozen=True, kw_only=True)
class BuildOptions(PlanOptions, MemoryOptions, CardOptions):
    """What to build.

    Raises:
        UsageError: a number out of range.
    """

    out: str | Path = option(help="The cache: a folder, or a URL: s3://, gs://, az://.")
    first_view: int = option(
        0, "Number of the first view: teams that build views 0-19 and 20-39 can merge them.", least=0
    )
    codec_from: str | Path | None = option(
        None,
        "Take the codec of this cache, of the same data, teacher, recipe and seed, so that both can be merged.",
        metavar="CACHE",
    )
    force: bool = option(False, "Replace another cache or build there; refused beside other files.")
    shard_rows: int | None = None  # the unit of commit and resume; None is what so many rows usually have

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shard_rows is not None and self.shard_rows < 1:
            raise UsageError(f"shard_rows is {self.shard_rows}; it must be at least 1")
        if self.first_view + self.num_views > MOST_VIEWS:
            raise UsageError(f"first_view + num_views is {self.first_view + self.num_views}; at most {MOST_VIEWS}")


@dataclass(frozen=True, kw_only=True)
class SignalOptions(RenderOptions):
    """Which features of a network are kept beside a cache, and where."""

    recipe: str | None = option(
        None,
        "What makes the network's inputs of the images, without augmentation.",
        unset="what its card or library says, else none",
        metavar="SPEC",
    )
    batch_size: int = option(256, "Images the network sees at once.", least=1, most=LARGEST_BATCH)
    out: Path = option(help="The file to write.", outcome=False)
    force: bool = option(False, "Replace a file of that name.", outcome=False)
