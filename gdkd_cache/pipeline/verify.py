"""Is this cache whole, and do these images belong to it?"""

from dataclasses import dataclass
from pathlib import Path

from gdkd_cache.cache import Replay, check_replay, match_rows, open_cache
from gdkd_cache.data import Recipe, Source, check_source
from gdkd_cache.errors import CacheError, MismatchError
from gdkd_cache.pipeline.progress import progress


@dataclass(frozen=True, kw_only=True)
class VerifyResult:
    """What a verification found.

    Attributes:
        digest: of the manifest.
        num_objects: objects whose size and checksum were compared.
        problems: one line each; empty when all is well.
        replay: what the probes said; None without a source or when it failed.
    """

    digest: str
    num_objects: int
    problems: tuple[str, ...]
    replay: Replay | None


def verify(
    path: str | Path,
    *,
    digest: str | None = None,
    source: Source | None = None,
    recipe: Recipe | None = None,
    strict: bool = False,
) -> VerifyResult:
    """Compare every object with the manifest and, given the images, every probe of every view.

    Args:
        path: the cache folder, or a URL.
        digest: refuse a cache with another digest.
        source: the images; decodes every probed image and renders its views again.
        recipe: what the views are made with, where the manifest's word is not enough (`compat:`).
        strict: also count a difference by rounding as a problem.

    Raises:
        CacheError: there is no cache, or its manifest is damaged.
        MismatchError: another digest.
    """
    cache = open_cache(path, digest=digest)
    problems: list[str] = []
    replay = None
    with progress("verify", len(cache.manifest.objects), "objects") as advance:
        for _, problem in cache.reader.problems():
            advance(1)
            if problem is not None:
                problems.append(problem)
    if source is not None and not problems:
        try:
            check_source(source)
            rows = match_rows(cache.reader, source, cache.keys, cache.labels)
            views = cache.view_numbers
            replay = check_replay(cache.reader, source, rows, cache.keys, views, recipe=recipe, strict=strict)
        except (CacheError, MismatchError) as error:
            problems.append(str(error))
    return VerifyResult(
        digest=cache.manifest.digest,
        num_objects=len(cache.manifest.objects),
        problems=tuple(problems),
        replay=replay,
    )
