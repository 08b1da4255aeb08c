"""The signal of a network's features: of each class their mean and their mean norm, over the images of a cache."""

import numpy as np
import torch

from gdkd_cache.building.options import SignalOptions
from gdkd_cache.cache.cache import Cache
from gdkd_cache.cache.rows import match_rows
from gdkd_cache.cache.signal import FEATURES, NORMS, Signal, pack_signal
from gdkd_cache.data.loader import ViewLoader, default_num_workers
from gdkd_cache.data.recipes.presets import open_recipe
from gdkd_cache.data.recipes.stated import stated_recipe
from gdkd_cache.data.source import Source, settle
from gdkd_cache.data.views import ViewRenderer, image_size, requests_for
from gdkd_cache.errors import MismatchError, ModelError
from gdkd_cache.files import require_free
from gdkd_cache.limits import NO_LABEL
from gdkd_cache.models.heads import reading_features
from gdkd_cache.models.network import Network
from gdkd_cache.progress import progress


def class_features(options: SignalOptions, cache: Cache, source: Source, network: Network) -> Signal:
    """Run a network over the labelled images of a cache, and write what its last linear layer reads.

    Its arrays are `features`, float32 [class, d], the mean of the features f of each class's images, and `norms`,
    float32 [class], the mean of ||f||.

    Args:
        options: which features, and where they go.
        cache: of whose data the signal is.
        source: its images, all of them.
        network: whose features; the teacher, mostly.

    Raises:
        MismatchError: source and cache do not belong together, a class has no image, or the file exists.
        ModelError: the network has no last linear layer, or its features are not finite vectors.
        SourceError: an image cannot be read.
        OSError: the file cannot be written.
    """
    require_free(options.out, force=options.force)
    source = settle(source)
    match_rows(cache, source)
    counts = np.bincount(source.labels[source.labels != NO_LABEL], minlength=len(source.classes))
    if source.has_masks or not counts.all():
        missing = "masks" if source.has_masks else f"no labelled image of class {int(counts.argmin())}"
        raise MismatchError(f"source {source.name} has {missing}; features are of classes with images")
    recipe = options.recipe or stated_recipe(network.eval_recipe, network.description.name)
    opened = open_recipe(recipe, *image_size(source))
    renderer = ViewRenderer(source, opened, seed=0, device=network.device)
    workers = default_num_workers(source) if options.num_workers is None else options.num_workers
    requests = requests_for(0, np.flatnonzero(source.labels != NO_LABEL), options.batch_size)
    what = f"teacher {network.description.name}"
    total, norms = torch.zeros(len(counts), 0, dtype=torch.float64), torch.zeros(len(counts), dtype=torch.float64)
    with (
        reading_features(network.model, len(network.description.classes or counts), what) as seen,
        progress("features", len(source), "images") as advance,
    ):
        for batch in ViewLoader(renderer, num_workers=workers).stream(requests):
            network.logits(batch.pixels)
            features, labels = seen.pop().double().cpu(), batch.targets.labels
            if features.ndim != 2 or len(features) != len(labels) or not features.isfinite().all():
                raise ModelError(f"{what} gives its last layer {list(features.shape)}; features are finite [batch, d]")
            if not total.shape[1]:
                total = total.new_zeros(len(counts), features.shape[1])
            total.index_add_(0, labels, features)
            norms.index_add_(0, labels, features.norm(dim=1))
            advance(len(labels))
    number = torch.from_numpy(counts)
    about = f"mean features of {network.description.name} {network.description.weights or ''}, recipe {recipe}"
    arrays = {FEATURES: total / number[:, None], NORMS: norms / number}
    return pack_signal(options.out, cache, arrays, per="class", about=about, force=options.force)
