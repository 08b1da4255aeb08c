"""What people call classes whose folders have other names, such as WordNet ids: in a list beside the data."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from gdkd_cache.data.sources.lists import read_list
from gdkd_cache.errors import SourceError

_LISTS = ("LOC_synset_mapping.txt", "words.txt", "classes.txt", "imagenet_class_index.json")
_LIST_BYTES = 2**23
"""Three times WordNet's words.txt."""
_WNID = re.compile(r"n\d{8}")
_IMAGENET = (1000, "n01440764", "n15075141")
"""How many classes ImageNet's have, and the first and last of them in order."""


def class_names(folder: Path, classes: Sequence[str]) -> list[str]:
    """A name for each class, from the first of the lists in the folder that has any, or nothing; a class that a list
    lacks is its own name.

    Lines of LOC_synset_mapping.txt, words.txt and classes.txt are a class, white space and its name;
    imagenet_class_index.json is {number: [class, name]}. Other lines and other classes are passed over.

    Raises:
        SourceError: a list is too large, or no text, or no such JSON.
    """
    known = set(classes)
    for path in (folder / name for name in _LISTS):
        if path.exists():
            names = {one: name for one, name in _pairs(path) if one in known and name}
            if names:
                return [names.get(one, one) for one in classes]
    return []


def worded(names: Sequence[str]) -> list[str]:
    """Names for people, where WordNet ids stand among them: words of torchvision for ImageNet's, else of timm's lists.

    What neither knows, or where timm is not installed, stays as it is.
    """
    names = list(names)
    wnids = sorted({name for name in names if _WNID.fullmatch(name)})
    if not wnids:
        return names
    if (len(wnids), wnids[0], wnids[-1]) == _IMAGENET:
        from torchvision.models import ResNet18_Weights

        words = dict(zip(wnids, ResNet18_Weights.DEFAULT.meta["categories"], strict=True))
    else:
        words = _timm_words(wnids)
    return [words.get(name, name) for name in names]


def _timm_words(wnids: Sequence[str]) -> dict[str, str]:
    try:
        from timm.data.imagenet_info import ImageNetInfo
    except ImportError:
        return {}
    known = ImageNetInfo("imagenet-22k").label_descriptions(as_dict=True)
    assert isinstance(known, dict)
    return {wnid: known[wnid] for wnid in wnids if wnid in known}


def _pairs(path: Path) -> Iterator[tuple[str, str]]:
    text = read_list(path, _LIST_BYTES)
    if path.suffix != ".json":
        for line in text.split("\n"):
            one, _, name = line.strip().replace("\t", " ", 1).partition(" ")
            yield one, name.strip()
        return
    try:
        found = [(one, name) for one, name in json.loads(text).values()]
    except Exception:  # of parsing, or of another form: RecursionError too
        found = None
    if found is None or not all(isinstance(part, str) for pair in found for part in pair):
        raise SourceError(f"list {path} is no {{number: [class, name]}}; copy it again, or remove it")
    yield from found
