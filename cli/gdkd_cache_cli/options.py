"""Options that several commands share, and what they open."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gdkd_cache.data.sources import registry as sources
from gdkd_cache.fields import check_fields, option
from gdkd_cache.limits import PRECISIONS
from gdkd_cache.models.normalization import NAMED, named_normalization
from gdkd_cache.models.registry import MODEL_HELP
from gdkd_cache.registry import use

if TYPE_CHECKING:
    from gdkd_cache.cache.cache import Cache
    from gdkd_cache.data.recipes.recipe import Recipe
    from gdkd_cache.data.source import FullSource
    from gdkd_cache.models.network import Network

PLACE_HELP = (
    "A cache lies in a folder, in an object store (s3://BUCKET/PATH, gs://BUCKET/PATH, az://CONTAINER/PATH), in a "
    "dataset repository of the Hugging Face Hub (hf://datasets/ORG/NAME[@REVISION][/FOLDER]) or, to read only, on a "
    "web server (https://HOST/PATH). Credentials come from the environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, "
    "AWS_REGION, AWS_ENDPOINT_URL; GOOGLE_APPLICATION_CREDENTIALS; AZURE_STORAGE_ACCOUNT_NAME, "
    "AZURE_STORAGE_ACCOUNT_KEY; HF_TOKEN, or the login of hf auth login; or from the machine's own role."
)

_SOURCES = f"{', '.join(sources.SOURCES.summaries())} (`gdkd-cache sources` says what each reads)"


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """The images."""

    data: str = option(help=f"The images: {_SOURCES}, or package.module:name for a source of your own.", metavar="SPEC")
    stream: bool = option(
        False,
        "Leave images of wds shards where they lie until they are needed; training then shuffles shard by shard.",
    )
    download: bool = option(False, "Let the data fetch its files, where it can.")
    local_copy: Path | None = option(
        None,
        "Keep what is read of remote wds shards, or of a remote cache, in this folder; without it, --stream fetches "
        "shards in every pass.",
        metavar="DIR",
    )
    subset: str | None = option(
        None,
        "Take some of the images only: so many, always the same, or those of a file's keys, one a line (./100 for a "
        "file whose name is a number).",
        metavar="N|KEYS.txt",
    )

    @property
    def is_remote(self) -> bool:
        """Whether the images lie in an object store or on a web server."""
        return self.data is not None and "://" in self.data

    @property
    def has_shards(self) -> bool:
        """Whether the images lie in shards, which sidecars can lie beside."""
        return sources.takes(self.data, "stream")

    def streamed(self) -> "DataOptions":
        """The same images, left where they lie."""
        return dataclasses.replace(self, stream=True)

    def for_evaluation(self, data: str | None) -> "DataOptions":
        """What is evaluated on: other images, or the test split of these.

        Raises:
            click.UsageError: these have none.
        """
        if data is None and not sources.takes(self.data, "split"):
            raise click.UsageError(f"{self.data} has no test split: name images to evaluate on with --eval-data")
        evaluated = self.data if data is None else data
        return dataclasses.replace(
            self,
            data=evaluated,
            download=self.download and data is None,
            subset=None,
            stream=self.stream and sources.takes(evaluated, "stream"),
        )

    @property
    def _copy(self) -> Path | None:
        """The folder for remote images."""
        return self.local_copy

    def open(self, split: str = "train") -> "FullSource":
        """The source that was named."""
        from gdkd_cache.data.sources.registry import open_source

        return open_source(
            self.data,
            split=split,
            download=self.download,
            stream=self.stream,
            local_copy=self._copy,
            subset=self.subset,
        )


@dataclass(frozen=True, kw_only=True)
class CachedDataOptions(DataOptions):
    """The images of a cache; `--local-copy` may be for the cache alone."""

    @property
    def _copy(self) -> Path | None:
        return self.local_copy if self.is_remote else None


@dataclass(frozen=True, kw_only=True)
class KnownDataOptions(CachedDataOptions):
    """The images of a cache, for commands that do without, too."""

    data: str | None = option(  # pyright: ignore[reportIncompatibleVariableOverride, reportGeneralTypeIssues]
        None, f"The images that the cache was built from: {_SOURCES}.", metavar="SPEC"
    )

    def opened(self) -> "FullSource | None":
        """The source, where one was named.

        Raises:
            click.UsageError: a part is asked for of none.
        """
        if self.data is None and self.subset is not None:
            raise click.UsageError("--subset goes with --data")
        return None if self.data is None else self.open()


@dataclass(frozen=True, kw_only=True)
class UseOptions:
    """The user's own code that caches may mention; it is imported when this is made."""

    use: tuple[str, ...] = option(
        (),
        "Code of your own that a cache or a recipe file mentions, a codec, a loss or a step as package.module:name; "
        "may be repeated. What a file names itself is never loaded.",
        metavar="NAME",
        rare=True,
    )

    def __post_init__(self) -> None:
        for name in self.use:
            use(name)


@dataclass(frozen=True, kw_only=True)
class CacheOptions(UseOptions):
    """Which cache may be read."""

    digest: str | None = option(None, "Refuse any other cache.", metavar="sha256:...")

    def open(self, cache: str, local_copy: Path | None = None) -> "Cache":
        """The cache in a place."""
        from gdkd_cache.cache.cache import open_cache

        return open_cache(cache, digest=self.digest, local_copy=self.copy_of(cache, local_copy))

    @staticmethod
    def copy_of(cache: str, local_copy: Path | None) -> Path | None:
        """The folder that keeps what is read of a cache: only a remote one is kept."""
        return local_copy if "://" in cache else None


@dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """What a cache's views are made with, where its own word is not enough."""

    recipe: str | None = option(
        None,
        "The recipe of the cache's views, where it has code of your own (compat:, your steps); another is refused.",
        metavar="SPEC",
    )

    def check(self, data: DataOptions) -> None:
        """Refuse a recipe without data.

        Raises:
            click.UsageError: there are none.
        """
        if self.recipe is not None and data.data is None:
            raise click.UsageError("--recipe goes with --data")

    def opened(self, source: "FullSource | None") -> "Recipe | None":
        """The recipe, where one was named."""
        from gdkd_cache.data.recipes.presets import open_recipe
        from gdkd_cache.data.views import image_size

        return None if self.recipe is None or source is None else open_recipe(self.recipe, *image_size(source))


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """How a network sees images, and where it runs.

    Raises:
        UsageError: mean without std, an unknown name, or numbers out of range.
    """

    weights: str | None = option(
        None,
        "The weights: a file (.safetensors, the .index.json of several, or a torch file, of which only tensors are "
        "read), or what the model's library calls its own: IMAGENET1K_V2, DEFAULT (torchvision), pretrained (timm).",
        unset="those that an hf:FOLDER, or a callable of yours, brings",
        metavar="FILE|NAME",
    )
    weights_key: str | None = option(
        None, "Which of several in one file, such as model_ema.", unset="the only one that fits", metavar="KEY"
    )
    output: str | None = option(
        None,
        "Which of several outputs are the logits.",
        unset="the one named logits, or the only one of that shape",
        metavar="NAME|INDEX",
    )
    normalize: str | None = option(
        None,
        f"How its inputs are normalised: {', '.join(NAMED)}.",
        unset="as the weights' card, or the model itself, says",
    )
    mean: tuple[float, float, float] | None = option(
        None, "The same in numbers, for pixels in 0..1; with --std.", metavar="R G B"
    )
    std: tuple[float, float, float] | None = option(None, "Deviations to --mean.", metavar="R G B")
    classes: str | None = option(
        None,
        "Which class of the data each of its outputs is: a file of one class a line (its id, WordNet id or name; "
        "imagenet_class_index.json, LOC_synset_mapping.txt and synset_words.txt are such), imagenet-1k (of timm), or "
        "published (the names that its library has). Outputs of one class are joined, those of none dropped.",
        unset="the classes in their order",
        metavar="FILE|NAME",
    )
    device: str = option("auto", "Where it runs: auto, cpu, cuda or cuda:N.")

    def __post_init__(self) -> None:
        check_fields(self)
        named_normalization(self.normalize, self.mean, self.std)

    def output_classes(self, name: str | None, source: "FullSource") -> "list[int] | None":
        """The class of each output of the network of that name; None where they are the classes in their order."""
        from gdkd_cache.models.classes import output_classes
        from gdkd_cache.models.opening import published_classes

        if self.classes is None:
            return None
        return output_classes(
            self.classes, source.class_names, lambda: None if name is None else published_classes(name, self.weights)
        )

    def load(self, name: str | None, source: "FullSource", precision: str) -> "Network":
        """The network of that name with its weights, for a source's classes."""
        from gdkd_cache.models.opening import open_network

        normalization = named_normalization(self.normalize, self.mean, self.std)
        network = open_network(
            name,
            self.weights,
            len(source.classes),
            normalization=normalization,
            weights_key=self.weights_key,
            output=self.output,
            classes=self.output_classes(name, source),
            class_names=source.class_names,
            device=self.device,
            precision=precision,
        )
        return _keeping_memory(network)


@dataclass(frozen=True, kw_only=True)
class TeacherOptions(NetworkOptions):
    """The teacher of a build."""

    teacher: str = option(help=f"The teacher: {MODEL_HELP}", metavar="MODEL")
    precision: str = option("auto", "In which precision it runs; part of the digest.", choices=PRECISIONS)

    def open(self, source: "FullSource") -> "Network":
        """The teacher, for a source's classes."""
        return self.load(self.teacher, source, self.precision)


@dataclass(frozen=True, kw_only=True)
class KnownTeacherOptions(NetworkOptions):
    """The teacher that a cache was built with, for commands that do without, too."""

    teacher: str | None = option(None, f"The teacher that the cache was built with: {MODEL_HELP}", metavar="MODEL")

    def check(self, data: DataOptions) -> None:
        """Refuse a teacher without data, and weights without a teacher.

        Raises:
            click.UsageError: it names what is missing.
        """
        if (self.teacher is None and self.weights is not None) or (self.teacher is not None and data.data is None):
            raise click.UsageError("--teacher needs --data (and mostly --weights), and --weights needs --teacher")

    def opened(self, cache: "Cache", source: "FullSource | None") -> "Network | None":
        """The teacher, where one was named; fed as the manifest says, where nobody says otherwise."""
        from gdkd_cache.models.opening import open_teacher

        if self.teacher is None or source is None:
            return None
        teacher = open_teacher(
            cache.manifest.identity.teacher,
            self.teacher,
            self.weights,
            len(source.classes),
            normalization=named_normalization(self.normalize, self.mean, self.std),
            weights_key=self.weights_key,
            output=self.output,
            classes=self.output_classes(self.teacher, source),
            device=self.device,
        )
        return _keeping_memory(teacher)


def _keeping_memory(network: "Network") -> "Network":
    """The network; on a CPU, this process keeps the memory that it frees."""
    from gdkd_cache import allocator

    if network.device.type == "cpu":
        allocator.keep_memory()
    return network
