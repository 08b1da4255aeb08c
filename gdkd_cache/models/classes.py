"""Which class of the data each output of a teacher is: read from lists as people have them, applied to its logits."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gdkd_cache.errors import ModelError, UsageError
from gdkd_cache.files import read_bounded
from gdkd_cache.limits import MOST_CLASSES
from gdkd_cache.models.trial import check_logits
from gdkd_cache.schema import short

PUBLISHED = "published"
"""The names that the teacher's library has for its outputs."""
NO_CLASS = -1
_KNOWN = ("imagenet-1k", "imagenet-12k", "imagenet-21k", "imagenet-22k")
_LIMIT = 2**23
_WNID = re.compile(r"(n\d{8})(?:[\s,]+(.*))?")
Names = Sequence[Sequence[str]]
"""What each of several outputs, or classes, is called: a WordNet id, a name, a number, or some of these."""


def output_classes(
    spec: str, names: Sequence[Sequence[str]], published: Callable[[], Sequence[str] | None]
) -> list[int]:
    """Find which class each output of a teacher is.

    Args:
        spec: a file of one line an output (a class's id, WordNet id or name; `synset_words.txt`,
            `LOC_synset_mapping.txt`), or of JSON (`imagenet_class_index.json`, a list, or numbers by name); a list by
            name, such as `imagenet-1k`; or `published`.
        names: all that the classes of the data are called: lists with one text a class, in the order of class ids.
        published: gives the names that the teacher's library has for its outputs, None where it has none.

    Returns:
        A class id for each output, -1 where it is none of the data's classes.

    Raises:
        UsageError: no names are published, or a list by name needs a library that is not installed.
        ModelError: the file cannot be read or is no list, a name is of several classes, or a class is no output.
    """
    if spec == PUBLISHED:
        own = published()
        if own is None:
            raise UsageError(f"classes is {spec!r}, and nobody publishes what this teacher's outputs are; name a file")
        outputs: Names = [(name,) for name in own]
    else:
        outputs = _known(spec) if spec in _KNOWN else _read(Path(spec))
    found = match_names(outputs, names)
    for number, (output, ids) in enumerate(zip(outputs, found, strict=True)):
        if len(ids) > 1:
            raise ModelError(
                f"classes {spec}: output {number} is {short(output[0])}, as {len(ids)} classes of the data are called; "
                "give ids, or WordNet ids"
            )
    classes = [next(iter(ids), NO_CLASS) for ids in found]
    twice = next((number for number, count in Counter(classes).items() if number != NO_CLASS and count > 1), None)
    if spec == PUBLISHED and twice is not None:  # of which nobody has said that they are one
        both = [number for number, own in enumerate(classes) if own == twice]
        raise ModelError(
            f"classes {spec}: outputs {both[0]} and {both[1]} are both called as class {short(names[0][twice])} of the "
            "data; give a file of WordNet ids"
        )
    if missing := sorted({*range(len(names[0]))} - {*classes}):
        some = ", ".join(short(names[0][number]) for number in missing[:3])
        raise ModelError(
            f"classes {spec}: {len(missing)} of the data's {len(names[0])} classes are none of the {len(outputs)} "
            f"outputs that it names: {some}{', ...' if len(missing) > 3 else ''}; the first output is "
            f"{short(outputs[0][0])}"
        )
    return classes


def match_names(outputs: Names, names: Sequence[Sequence[str]]) -> list[set[int]]:
    """The ids of the classes that outputs could be, by name: of each none, one, or several that are called the same.

    The first of an output's names that is a class's decides; where none is, its number does, and else the first of
    several names with commas between.
    """
    whole, first = _by_name(names, lambda name: name), _by_name(names, _first)
    number_of = {str(number): {number} for number in range(len(names[0]))}
    tables: tuple[tuple[dict[str, set[int]], Callable[[str], str]], ...]
    tables = ((whole, lambda name: name), (number_of, lambda name: name), (first, _first))
    return [
        next((table[key] for table, cut in tables for name in output if (key := _plain(cut(name))) in table), set())
        for output in outputs
    ]


def _by_name(names: Sequence[Sequence[str]], cut: Callable[[str], str]) -> dict[str, set[int]]:
    ids: defaultdict[str, set[int]] = defaultdict(set)
    for one in names:
        for number, name in enumerate(one):
            ids[_plain(cut(name))].add(number)
    return dict(ids)


def _first(name: str) -> str:
    return name.partition(",")[0]


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def _known(name: str) -> Names:
    try:
        from timm.data.imagenet_info import ImageNetInfo
    except ImportError:
        raise UsageError(
            f"classes is {name!r}, a list that timm has, which is not installed: pip install 'gdkd-cache[timm]', or "
            "name a file"
        ) from None
    return [(wnid,) for wnid in ImageNetInfo(name).label_names()]


def _read(path: Path) -> Names:
    try:
        text = read_bounded(path, _LIMIT, "classes", ModelError).decode().removeprefix("\ufeff").rstrip()
    except UnicodeDecodeError:
        raise ModelError(f"classes {path} is no text in UTF-8") from None
    try:
        outputs = _of_json(json.loads(text)) if text[:1] in ("{", "[") else list(map(_of_line, text.splitlines()))
    except (ValueError, RecursionError):
        outputs = None
    if outputs is None:
        raise ModelError(
            f"classes {path} is no list of classes: it must have one line an output, or be JSON of names in order, of "
            'names by number ({"0": ["n01440764", "tench"], ...}) or of numbers by name'
        )
    if not 2 <= len(outputs) <= MOST_CLASSES:
        raise ModelError(f"classes {path} names {len(outputs)} outputs; it must name 2 to {MOST_CLASSES}")
    return outputs


def _of_line(line: str) -> tuple[str, ...]:
    line = line.strip()
    found = _WNID.fullmatch(line)
    return tuple(filter(None, found.groups())) if found else (line,)


def _of_json(stored: Any) -> Names | None:
    """The outputs of any of the forms that JSON lists of classes have; None for another."""
    if isinstance(stored, dict):
        if all(type(number) is int for number in stored.values()):
            stored = {str(number): name for name, number in stored.items()}
        stored = [stored.get(str(number)) for number in range(len(stored))]
    if not isinstance(stored, list):
        return None
    outputs = [[output] if isinstance(output, str) else output for output in stored]
    fits = all(isinstance(output, list) and output and _are_texts(output) for output in outputs)
    return [tuple(output) for output in outputs] if fits else None


def _are_texts(values: Iterable[object]) -> bool:
    return all(isinstance(value, str) for value in values)


def check_order(what: str, published: Sequence[str], names: Sequence[Sequence[str]]) -> None:
    """Refuse a teacher whose outputs, by the names that are published of them, are the classes in another order.

    Args:
        what: the teacher, for messages.
        published: a name for each output.
        names: as for `output_classes`; names that are none of these say nothing.

    Raises:
        ModelError: an output is another class than its number's.
    """
    for number, ids in enumerate(match_names([(name,) for name in published], names)):
        if len(ids) == 1 and number not in ids:
            raise ModelError(
                f"output {number} of {what} is {short(published[number])}, and class {number} of the data is "
                f"{short(names[0][number])}: say which output is which class with --classes {PUBLISHED}, or a file"
            )


class ClassLogits(nn.Module):
    """A network whose outputs are other classes, or in another order: it gives logits of the data's classes.

    A class that is several outputs has the logarithm of the sum of their exponentials, so that its share of the
    probability is the sum of theirs; outputs that are no class are dropped, and the others share what they had.

    Args:
        model: gives float outputs [batch, output], or is dense: [batch, output, height, width], or several by name.
        classes: for each output its class id, -1 for none; each of the data's classes is one at least.

    Attributes:
        drops: whether some outputs are none.
    """

    def __init__(self, model: nn.Module, classes: Sequence[int]) -> None:
        super().__init__()
        self.model, self._num_outputs = model, len(classes)
        outputs: defaultdict[int, list[int]] = defaultdict(list)
        for output, number in enumerate(classes):
            if number != NO_CLASS:
                outputs[number].append(output)
        self._num_classes, self.drops = len(outputs), NO_CLASS in classes
        by_size = sorted(outputs.items(), key=lambda one: (len(one[1]), one[0]))
        # Classes of equally many outputs at once: their ids, and the outputs of each.
        self._groups = [
            (torch.tensor([number for number, _ in group]), torch.tensor([own for _, own in group]))
            for group in (list(group) for _, group in groupby(by_size, key=lambda one: len(one[1])))
        ]

    def forward(self, images: Tensor) -> Tensor | dict[str, Tensor]:
        outputs = self.model(images)
        return (
            {name: self._of(one) for name, one in outputs.items()}
            if isinstance(outputs, Mapping)
            else self._of(outputs)
        )

    def _of(self, outputs: Tensor) -> Tensor:
        check_logits("the teacher", outputs)
        outputs = outputs.movedim(1, -1)
        if outputs.shape[-1] != self._num_outputs:
            raise ModelError(
                f"the teacher has {outputs.shape[-1]} outputs; --classes says of {self._num_outputs} what they are"
            )
        return self.joined(outputs).movedim(-1, 1)

    def joined(self, outputs: Tensor) -> Tensor:
        """Float32 logits [batch, class] of outputs [batch, output]."""
        outputs = outputs.float()
        logits = outputs.new_empty(*outputs.shape[:-1], self._num_classes)
        for numbers, own in self._groups:
            logits[..., numbers.to(logits.device)] = outputs[..., own.to(logits.device)].logsumexp(-1)
        return logits

    def dropped(self, outputs: Tensor) -> Tensor:
        """The share [batch] of the probability, in [0, 1], of outputs [batch, output] that are no class."""
        return 1 - (self.joined(outputs).logsumexp(-1) - outputs.float().logsumexp(-1)).exp()
