"""A cache's card: the facts of its identity for people, and the README.md that makes its folder a dataset repository.

Whatever a manifest says may be hostile: each value becomes one bounded, printable line, which stands in a quoted YAML
string or, behind a label, in a fenced block, and can end neither.
"""

import json
from collections.abc import Mapping
from typing import Any

from gdkd_cache.codec.fidelity import Fidelity
from gdkd_cache.errors import UsageError
from gdkd_cache.objects.names import README_NAME
from gdkd_cache.schema import from_json, to_json
from gdkd_cache.store.facts import Card, Examination, Examined, RecipeFacts, TeacherFacts
from gdkd_cache.store.manifest import Identity, canonical_json
from gdkd_cache.store.pictures import FIDELITY_NAME, TEACHER_NAME, pictures
from gdkd_cache.texts import shown

CARD_NAMES = frozenset({README_NAME, TEACHER_NAME, FIDELITY_NAME})
"""What `card_objects` may hold; a cache may lack any of them."""

_LONGEST = 200
_LICENSES = {
    *("agpl-3.0", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "gpl-2.0", "gpl-3.0", "lgpl-3.0", "mit"),
    *("cc-by-3.0", "cc-by-4.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0"),
    *("cc-by-sa-3.0", "cc-by-sa-4.0", "mpl-2.0", "odbl", "odc-by", "openrail", "pddl", "unlicense"),
}
"""The Hub's names of licenses; it wants all others as `other` with a `license_name`."""
_CODEC_FACTS = ("num_top", "step", "num_components", "references", "temperatures", "dtype")
_PAGE = """\
---
{metadata}
---

# A teacher's logits, for distillation

What an image-classification teacher said about seeded augmented views of a dataset, as compressed logits: a cache of
gdkd-cache, readable as Zarr. It holds no images; they come from your own copy of the data, which is checked against it.

{seen}```text
{facts}
```

Check it, and train a student from it with no teacher:

```bash
gdkd-cache verify CACHE --data DATA
gdkd-cache train --loss gdkd --data DATA --cache CACHE --student cnn-s --epochs 8 --out student
```

`gdkd-cache inspect CACHE` prints its digest, which covers every file here, this one too; `--digest sha256:...` then
refuses any other cache.
{hub}"""
_HUB = """
In a dataset repository, CACHE is `hf://datasets/ORG/NAME`; `hf://datasets/ORG/NAME@COMMIT` stays what it is when the
repository changes, and `gdkd-cache pull` makes a folder of it.
"""


def make_card(license: str | None = None, contact: str | None = None) -> Card:
    """What the maker of a cache says of it.

    Raises:
        UsageError: a text that is empty, longer than 200 characters or not one printable line.
    """
    for name, text in (("license", license), ("contact", contact)):
        if text is not None and (text != _line(text) or not text.strip()):
            raise UsageError(f"{name} is {text[:60]!r}; it must be one line of 1 to {_LONGEST} printable characters")
    return Card(license=license, contact=contact)


def card_facts(identity: Identity) -> dict[str, str]:
    """What a cache is, from its identity alone: one printable line a fact."""
    identity = _as_read(identity)
    data, teacher, classes, card = identity.data, identity.teacher, identity.classes, identity.card
    of = "rows of view 0" if identity.views is None else "augmented views"
    said = [teacher.name]
    if isinstance(teacher.accuracy, int | float):
        said.append(f"{teacher.accuracy:.2%} accuracy on held-out images")
    if teacher.classes is not None:
        unused = teacher.classes.count(-1)
        said.append(f"{len(teacher.classes)} outputs mapped to the classes" + (f" ({unused} dropped)" * bool(unused)))
    if teacher.weights is not None:
        said.append(f"weights {teacher.weights}")
    shown = {name: value for name, value in sorted(to_json(identity.codec).items()) if name in _CODEC_FACTS}
    facts = {
        "data": f"{data.name}: {identity.num_rows} rows, {len(classes)} classes ({_some(classes)})",
        "teacher": ", ".join(said),
        **_inputs(teacher),
        **({} if identity.examination is None else {"examined": examination_text(identity.examination, of)}),
        **_views(identity),
        **_noise(identity),
        "codec": f"{identity.codec.name} ({_fields(shown)})",
        "serves": _served(identity.fidelity),
        "license": "not stated" if card.license is None else card.license,
        "contact": "not stated" if card.contact is None else card.contact,
        "made with": _software(identity),
    }
    return {name: _line(text, 2 * _LONGEST) for name, text in facts.items()}


def card_objects(identity: Identity) -> dict[str, bytes]:
    """The page of a cache and its pictures, by object name: functions of the identity alone."""
    return {README_NAME: readme(identity), **pictures(_as_read(identity))}


def readme(identity: Identity) -> bytes:
    """The README.md of a cache, with metadata as the Hugging Face Hub reads it: a function of the identity alone.

    Outside the block of facts there is no text of the manifest, only numbers.
    """
    facts = card_facts(identity)
    if identity.teacher.stated_by is None and identity.teacher.output is None:
        facts.pop("sees", None)  # as the pages of earlier versions, whose bytes are in their manifests
    license = identity.card.license
    known = license is not None and license.lower() in _LICENSES
    metadata: dict[str, Any] = {
        "pretty_name": _line(f"Logits of {identity.teacher.name} on {identity.data.name}"),
        "license": "unknown" if license is None else license.lower() if known else "other",
        "task_categories": ["image-classification"],
        "tags": ["gdkd-cache", "knowledge-distillation", "zarr"],
        "size_categories": [_size_category(identity.num_rows)],
        "viewer": False,
    }
    if license is not None and not known:
        metadata["license_name"] = _line(license)
    # JSON of one printable line is YAML.
    lines = (f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in metadata.items())
    table = "\n".join(f"{name:>10}  {text}" for name, text in facts.items())
    # Pages of version 0.1.0, which did not examine teachers, stay as they are in their manifests.
    seen, hub = ("", "") if identity.examination is None else (_seen(identity, identity.examination), _HUB)
    return _PAGE.format(metadata="\n".join(lines), facts=table, seen=seen, hub=hub).encode()


def _seen(identity: Identity, examination: Examination) -> str:
    """The teacher's accuracy and the pictures, at the head of the page."""
    other, accuracy = examination.evaluated, identity.teacher.accuracy
    said = []
    if other is not None:
        said.append(f"**{_share(other.top1)}** of held-out images ({_share(other.top5)} within its first five classes)")
    elif isinstance(accuracy, int | float):
        said.append(f"**{_share(accuracy)}** of held-out images, as its weights say")
    said.append(f"**{_share(examination.views.top1)}** of augmented views like these")
    errors = [error for error in identity.fidelity.gradient_error.values() if 0 <= error < 10]
    kept = f" The gradients of its losses are kept to within **{max(errors):.3f}** (0 is exact)." if errors else ""
    drawn = (
        f"![{text}]({name})\n\n"
        for name, text in ((TEACHER_NAME, "How right the teacher is"), (FIDELITY_NAME, "Gradient error by loss"))
        if name in pictures(identity)
    )
    return f"The teacher is right about {', and about '.join(said)}.{kept}\n\n{''.join(drawn)}"


def _share(number: int | float) -> str:
    return f"{min(max(number, 0), 1):.1%}"


def _as_read(identity: Identity) -> Identity:
    """The identity as it is read from a manifest: the page must not know in which order it was made."""
    return from_json(Identity, json.loads(canonical_json(to_json(identity))))


def _line(text: object, longest: int = _LONGEST) -> str:
    return shown(text, longest, "...")  # as in the pages of earlier versions


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _fields(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {f'{v:.4g}' if isinstance(v, float) else v}" for name, v in values.items())


def _inputs(teacher: TeacherFacts) -> dict[str, str]:
    """How the teacher saw images; nothing of logits that were computed elsewhere."""
    if teacher.mean is None or teacher.std is None:
        return {}
    numbers = (" ".join(f"{value:.4g}" for value in values) for values in (teacher.mean, teacher.std))
    said = ["mean {}, std {}".format(*numbers)]
    if teacher.size is not None:
        said.append(f"made for {'x'.join(map(str, teacher.size))}")
    if teacher.interpolation is not None:
        said.append(teacher.interpolation)
    if teacher.output is not None:
        said.append(f"output {teacher.output}")
    by = teacher.stated_by or "its card, an option or the model itself"
    return {"sees": f"{', '.join(said)} (as said by {by})"}


def examined_text(examined: Examined) -> str:
    """The figures of a teacher in words."""
    return (
        f"top-1 {examined.top1:.2%}, top-5 {examined.top5:.2%}, calibration error {examined.calibration_error:.3f}, "
        f"entropy {examined.entropy:.3f} nats"
    )


def examination_text(examination: Examination, of: str) -> str:
    """How right a teacher is in words; `of` says what the first figures are of, in the plural."""
    said = [f"{examined_text(examination.views)} on {examination.views.rows} {of}"]
    if (other := examination.evaluated) is not None:
        said.append(
            f"{examined_text(other)} on {other.rows} images of {examination.data} (recipe {examination.recipe})"
        )
    if examination.dropped is not None:
        said.append(f"{examination.dropped:.2%} of its probability dropped with outputs that are no class")
    return "; ".join(said)


def _noise(identity: Identity) -> dict[str, str]:
    """What was added to what the teacher said, and what that hides."""
    noise = identity.noise
    if noise is None:
        return {}
    together = noise.epsilon * identity.num_views
    return {
        "noise": f"{noise.mechanism} on probabilities, scale {noise.sensitivity / noise.epsilon:.4g}: what is kept of "
        f"a view is {noise.epsilon:.4g}-differentially private, of the {identity.num_views} views of an image "
        f"{together:.4g}; images, keys, labels and the teacher's training data are not protected"
    }


def _views(identity: Identity) -> dict[str, str]:
    views, numbers = identity.views, identity.view_numbers
    if views is None:
        return {"views": f"{len(numbers)}, of logits computed elsewhere"}
    height, width = views.size
    part = f" ({numbers[0]} to {numbers[-1]})" if numbers[0] else ""
    said = f"{len(numbers)}{part} of {height}x{width}, recipe {views.recipe.name}, seed {views.seed}"
    return {"views": said, "recipe": _steps(views.recipe)}


def _steps(recipe: RecipeFacts) -> str:
    steps = [dict(step) for step in recipe.steps]
    said = [f"{step.pop('step')} ({_fields(step)})".removesuffix(" ()") for step in steps]
    if recipe.mix is not None:
        said.append(f"mix ({_fields(recipe.mix)})")
    return ", ".join(said) or "the images as they are"


def _served(fidelity: Fidelity) -> str:
    errors = [f"{loss}: gradient error {error:.3f}" for loss, error in fidelity.gradient_error.items()]
    if not errors:
        return "none of the declared losses"
    return f"{'; '.join(errors)} (on {fidelity.rows} held-out rows; top classes exact)"


def _software(identity: Identity) -> str:
    made = (part.software or {} for part in identity.parts)
    return "; ".join(", ".join(f"{name} {number}" for name, number in software.items()) for software in made)


def _size_category(num_rows: int) -> str:
    """The Hub's name of a magnitude: n<1K, 1K<n<10K, ..., 100B<n<1T, n>1T."""
    bounds = [*(f"{10**i}{unit}" for unit in "KMB" for i in range(3)), "1T"]
    magnitude = max(len(str(num_rows)) - 3, 0)
    if magnitude == 0:
        return "n<1K"
    return f"{bounds[magnitude - 1]}<n<{bounds[magnitude]}" if magnitude < len(bounds) else "n>1T"
