"""The options of a build."""

from dataclasses import dataclass, field
from pathlib import Path

from gdkd_cache.codec.choose import CodecRequest
from gdkd_cache.data.recipes.recipe import Recipe
from gdkd_cache.errors import UsageError
from gdkd_cache.store.arrays import SHARD_ROWS
from gdkd_cache.store.card import make_card
from gdkd_cache.store.manifest import MOST_VIEWS


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What to build.

    Attributes:
        out: the cache folder, or the URL of an object store.
        num_views: views of each image, at least 1.
        recipe: a spec such as `crop-flip`, or a recipe.
        first_view: number of the first view; teams that build 0..19 and 20..39 can merge them.
        seed: the views' seed.
        request: the codec, or the gradient error that it shall meet for the declared losses.
        codec_from: a finished cache, a folder or a URL, of the same data, teacher, recipe and seed, whose
            codec is taken as it is, instead of `request`.
        batch_size: rows the teacher sees at once; part of the cache's identity, as it moves a teacher's last bits.
        num_workers: processes that render; None takes 0 for images in memory, else one a core (at most 8).
        force: replace another cache in `out`.
        shard_rows: rows a shard, the unit of commit and resume.
        license, contact: what you say of the cache, one line each: part of its identity and shown by `inspect`.

    Raises:
        UsageError: a number out of range, or a license or contact that is no short line.
    """

    out: str | Path
    num_views: int
    first_view: int = 0
    recipe: str | Recipe = "crop-flip"
    seed: int = 0
    request: CodecRequest = field(default_factory=CodecRequest)
    codec_from: str | Path | None = None
    batch_size: int = 256
    num_workers: int | None = None
    force: bool = False
    shard_rows: int = SHARD_ROWS
    license: str | None = None
    contact: str | None = None

    def __post_init__(self) -> None:
        for name, least in (
            ("num_views", 1),
            ("first_view", 0),
            ("batch_size", 1),
            ("num_workers", 0),
            ("shard_rows", 1),
        ):
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.first_view + self.num_views > MOST_VIEWS:
            raise UsageError(f"first_view + num_views is {self.first_view + self.num_views}; at most {MOST_VIEWS}")
        make_card(self.license, self.contact)
