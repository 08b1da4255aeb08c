"""`hf://datasets/ORG/NAME@REVISION`: which dataset repository of the Hub, which commit of it, and where in it."""

import re
from dataclasses import dataclass, replace

from gdkd_cache.errors import UsageError
from gdkd_cache.objects.urls import split_url, without_secrets

SCHEME = "hf"
_WORD = r"[A-Za-z0-9](?:[\w.-]{0,94}[A-Za-z0-9_])?"
_REVISION = r"refs/(?:pr|convert)/\w[\w.-]*|\w[\w.+-]*(?:%2F\w[\w.+-]*)*"
_FOLDER = r"\w[\w.-]*(?:/\w[\w.-]*)*"
_PATH = re.compile(
    rf"/(?P<repository>{_WORD}/{_WORD})(?:@(?P<revision>{_REVISION}))?(?:/(?P<folder>{_FOLDER}))?(?:@(?P<last>{_REVISION}))?/?",
    re.ASCII,
)
_COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True, kw_only=True)
class HubPlace:
    """A folder of a dataset repository at a revision.

    Attributes:
        repository: `ORG/NAME`.
        revision: a branch, a tag or a commit; None for the main branch.
        folder: where in it, without slashes at its ends; empty for all of it.
    """

    repository: str
    revision: str | None = None
    folder: str = ""

    @classmethod
    def parse(cls, url: str) -> "HubPlace":
        """Read `hf://datasets/ORG/NAME[@REVISION][/FOLDER]`; the revision may also stand at the end.

        In a revision, `%2F` is a slash.

        Raises:
            UsageError: it is something else, or a token stands in it.
        """
        parts = split_url(url, (SCHEME,))
        found = _PATH.fullmatch(parts.path)
        if parts.netloc != "datasets" or found is None or (found["revision"] and found["last"]):
            raise UsageError(f"{without_secrets(url)}: give hf://datasets/ORG/NAME, @REVISION and /FOLDER if need be")
        repository, folder = found["repository"], found["folder"] or ""
        if "--" in repository or ".." in repository + folder or repository.endswith(".git"):
            raise UsageError(f"{without_secrets(url)}: a name has --, .. or .git, which none on the Hub has")
        revision = found["revision"] or found["last"]
        return cls(repository=repository, revision=revision and revision.replace("%2F", "/"), folder=folder)

    @property
    def is_pinned(self) -> bool:
        """Whether it names a commit, which never changes."""
        return self.revision is not None and _COMMIT.fullmatch(self.revision) is not None

    def at(self, revision: str) -> "HubPlace":
        return replace(self, revision=revision)

    def path(self, name: str | None) -> str:
        """Where an object, or None for the folder itself, lies in the repository."""
        return "/".join(filter(None, (self.folder, name)))

    def __str__(self) -> str:
        revision = "" if self.revision is None else f"@{self.revision}"
        if not revision.startswith("@refs/"):
            revision = revision.replace("/", "%2F")
        folder = f"/{self.folder}" if self.folder else ""
        return f"{SCHEME}://datasets/{self.repository}{revision}{folder}"
