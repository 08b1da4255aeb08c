"""Weights in several files, which an index names: `model.safetensors.index.json`, as large models are saved."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Collection
from contextlib import ExitStack
from io import BufferedReader
from pathlib import Path

from torch import Tensor

from gdkd_cache.errors import ModelError
from gdkd_cache.files import open_plain, read_bounded
from gdkd_cache.models.described import WeightsFile
from gdkd_cache.schema import check_json, short

INDEX_SUFFIX = ".index.json"
_LIMIT = 2**22
_MOST_FILES = 1000


class WeightsShards:
    """An index and the open files beside it that it names.

    Attributes:
        described: the tensors of them all.

    Raises:
        ModelError: the index or one of its files is missing, or too large.
        ValueError: it is no index, names files elsewhere, or tensors that they do not hold.
    """

    def __init__(self, path: Path, opened: ExitStack, open_file: Callable[[BufferedReader, Path], WeightsFile]) -> None:
        """Open them.

        Args:
            path: of the index.
            opened: closes the files.
            open_file: reads what a file holds.
        """
        index = json.loads(read_bounded(path, _LIMIT, "index of weights", ModelError))
        check_json("index", index, {"weight_map": {str: str}, str: object})
        places: dict[str, str] = index["weight_map"]
        names = sorted(set(places.values()))
        if len(names) > _MOST_FILES:
            raise ValueError(f"it names {len(names)} files, more than {_MOST_FILES}")
        if elsewhere := [name for name in names if Path(name).name != name or name.startswith(".")]:
            raise ValueError(f"it names {short(elsewhere[0])}, which is no file beside it")
        self._files: dict[str, WeightsFile] = {}
        for name in names:
            beside = path.with_name(name)
            self._files[name] = open_file(opened.enter_context(open_plain(beside, "weights", ModelError)), beside)
        self.described = {}
        for tensor, name in places.items():
            if tensor not in self._files[name].described:
                raise ValueError(f"it says that {name} holds {short(tensor)}, which it does not")
            self.described[tensor] = self._files[name].described[tensor]
        self._places = places

    def read(self, names: Collection[str]) -> dict[str, Tensor]:
        wanted: dict[str, list[str]] = defaultdict(list)
        for name in names:
            wanted[self._places[name]].append(name)
        return {name: value for place, some in wanted.items() for name, value in self._files[place].read(some).items()}

    @property
    def num_bytes(self) -> int:
        return sum(file.num_bytes for file in self._files.values())

    def checksum(self) -> str:
        """`sha256:...` of the files' checksums, a line each, in the order of their names."""
        lines = (f"{file.checksum()}\n" for _, file in sorted(self._files.items()))
        return f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"
