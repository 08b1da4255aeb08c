"""A branch of a dataset repository of the Hugging Face Hub, to write: what changes together is one commit."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from gdkd_cache.errors import StoreError, UsageError
from gdkd_cache.objects.hub import Hub, HubFile, git_hash
from gdkd_cache.objects.hub_library import KIND, find_commit, open_api, told, without_bars
from gdkd_cache.objects.hub_place import HubPlace
from gdkd_cache.objects.names import README_NAME, check_name
from gdkd_cache.objects.record import ObjectRecord

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

_MOST_FILES = 1000
"""Of one commit: the most that huggingface_hub's own uploads of large folders put into one."""
_MOST_BYTES = 64 * 2**20
"""Of one commit's small files, which it brings itself; large ones go before it, to the Hub's store of large files."""
_NOTHING_IGNORED = "# all of it is data\n"
"""Instead of a .gitignore in the repository, for which the Hub would leave objects out without a word."""


class HubBranch:
    """A `Repository`."""

    def __init__(self, url: str) -> None:
        """Look at nothing yet.

        Raises:
            UsageError: no such URL, a commit, which cannot be changed, or huggingface_hub is not installed.
        """
        self._place = HubPlace.parse(url)
        if self._place.is_pinned:
            raise UsageError(f"{self._place} is a commit, which nothing can change; name a branch, or none for main")
        self.location = str(self._place)
        self._api, self._parent = open_api(), ""
        self._additions: dict[str, CommitOperationAdd] = {}
        self._sent: dict[str, HubFile] = {}

    def opened(self) -> Hub | None:
        commit = find_commit(self._api, self._place)
        if commit is None:
            return None
        self._parent = commit
        return Hub(str(self._place.at(commit)))

    def create(self) -> None:
        with told(self.location):
            self._api.create_repo(self._place.repository, repo_type=KIND, private=True, exist_ok=True)

    @property
    def is_full(self) -> bool:
        held = [one.path_or_fileobj for one in self._additions.values()]  # of large files that were sent, nothing
        size = sum(len(data) for data in held if isinstance(data, bytes))
        return len(held) >= _MOST_FILES or size >= _MOST_BYTES

    def stage(self, objects: Mapping[str, bytes]) -> None:
        from huggingface_hub import CommitOperationAdd

        additions = {}
        for name, data in objects.items():
            check_name(self.location, name)
            additions[name] = CommitOperationAdd(self._place.path(name), data)
            self._sent[name] = HubFile(len(data), ObjectRecord.of(data).sha256, git_hash(data))
        with told(self.location):
            without_bars(
                lambda: self._api.preupload_lfs_files(
                    self._place.repository,
                    additions.values(),
                    repo_type=KIND,
                    revision=self._place.revision,
                    free_memory=True,
                    gitignore_content=_NOTHING_IGNORED,
                )
            )
        if README_NAME in additions:  # whose metadata the library has checked before it commits
            additions[README_NAME].path_or_fileobj = objects[README_NAME]
        self._additions |= additions

    def commit(self, message: str, delete: Iterable[str] = ()) -> Hub:
        from huggingface_hub import CommitOperationDelete

        deletions = [CommitOperationDelete(self._place.path(name), is_folder=False) for name in delete]
        with told(self.location):
            made = without_bars(
                lambda: self._api.create_commit(
                    self._place.repository,
                    [*self._additions.values(), *deletions],
                    commit_message=message,
                    repo_type=KIND,
                    revision=self._place.revision,
                    parent_commit=self._parent,
                )
            )
        self._parent = made.oid
        hub = Hub(str(self._place.at(made.oid)))
        files = hub.files()
        for name in self._additions:
            sent, found = self._sent[name], files.get(name)
            stands = found is not None and (found.sha256 or found.git_hash) in (sent.sha256, sent.git_hash)
            if found is None or found.size != sent.size or not stands:
                raise StoreError(f"{hub.location}/{name}: the Hub holds something else than was sent; push it again")
        self._additions.clear()
        self._sent.clear()
        return hub
