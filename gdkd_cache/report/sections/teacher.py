"""The teacher: how right it is, how sure, what it confuses, and which images it finds hard."""

from collections.abc import Sequence

from gdkd_cache.report.base import Facts, Part
from gdkd_cache.report.inputs import Inputs
from gdkd_cache.report.numbers.calibration import Reliability, reliability
from gdkd_cache.report.numbers.said import Said, summarise
from gdkd_cache.report.sections.teacher_classes import class_table, confused_table
from gdkd_cache.report.sections.teacher_figures import agreement_drawing, reliability_drawing, sureness_drawings
from gdkd_cache.report.sections.teacher_images import image_parts


class _Teacher:
    title = "The teacher"
    reading = (
        "How right and how sure the teacher is, which classes it takes for each other, and where views change its mind."
    )

    def parts(self, inputs: Inputs) -> Sequence[Part]:
        sample = inputs.sample
        said = summarise(sample.logits, sample.labels)
        views = inputs.cache.manifest.identity.views
        if views is not None and views.recipe.mix is not None:
            return [_facts(inputs, said, None), *sureness_drawings(said, None, inputs.cache.num_classes)]
        is_right = said.first == sample.labels
        calibrated = reliability(said.confidence, is_right)
        parts: list[Part | None] = [
            _facts(inputs, said, calibrated),
            reliability_drawing(calibrated),
            *sureness_drawings(said, is_right, inputs.cache.num_classes),
            agreement_drawing(said) if len(sample.views) > 1 else None,
            confused_table(inputs, said),
            class_table(inputs, said),
            *image_parts(inputs, said),
        ]
        return [part for part in parts if part is not None]


TEACHER = _Teacher()


def _facts(inputs: Inputs, said: Said, calibrated: Reliability | None) -> Facts:
    cache, sample = inputs.cache, inputs.sample
    read = f"{len(sample.rows):,} of {cache.num_rows:,} images in {len(sample.views):,} of {cache.num_views:,} views"
    lines = {"read": "all images and views" if sample.is_whole else f"{read}, spread evenly"}
    if calibrated is None:
        lines["left out"] = "all that asks for one right class: each view of this recipe mixes two images"
    else:
        lines["right"] = f"{(said.first == sample.labels).mean():.1%} of views have the label as their first class"
        lines["calibration error"] = f"{calibrated.error:.3f} (15 bins; 0 is best)"
    lines["confidence"] = f"{said.confidence.mean():.1%} is the mean probability of the first class"
    if calibrated is not None and len(sample.views) > 1:
        lines["agreement of views"] = f"{said.agreement.mean():.1%} of pairs of an image's views have one first class"
        lines["divergence of views"] = (
            f"{said.divergence.mean():.3f} nats (Jensen-Shannon, mean over images; 0 is alike)"
        )
    if cache.manifest.identity.codec.name == "topk":
        lines["kept"] = (
            f"the first {cache.manifest.identity.codec.num_top} classes and how much the others hold together, so what "
            "is told of the others one by one is their mean"
        )
    if cache.manifest.identity.examination is None:
        lines["labels"] = "the cache does not tell whether they come from elsewhere than the logits"
    return Facts(
        title="In short",
        reading="Of the teacher as the cache gives it back, on views, not on whole images.",
        lines=lines,
    )
