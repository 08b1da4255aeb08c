"""VGG networks with batch normalisation for images of about 32x32: vgg8, vgg11, vgg13, vgg16 and vgg19.

Very Deep Convolutional Networks (ICLR 2015), with the mean of the last maps in place of the hidden linear layers, as
CRD (ICLR 2020) and its successors use them.
"""

from collections.abc import Iterator
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from gdkd_cache.models.zoo.staged import Staged, initialise

_WIDTHS = (64, 128, 256, 512, 512)


class Vgg(Staged):
    """Five stages of 3x3 convolutions; 2x2 max pooling between them.

    Args:
        depths: convolutions of each stage.
        num_classes: size of the output.
    """

    def __init__(self, depths: tuple[int, int, int, int, int], num_classes: int) -> None:
        super().__init__()
        channels = 3
        for stage, (width, depth) in enumerate(zip(_WIDTHS, depths, strict=True)):
            layers: list[nn.Module] = []
            for _ in range(depth):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                channels = width
            self.add_module(f"block{stage}", nn.Sequential(*layers))
        self.classifier = nn.Linear(channels, num_classes)
        initialise(self, linear=0.01)

    def stages(self, images: Tensor) -> Iterator[Tensor]:
        x = images
        for stage in range(len(_WIDTHS)):
            # As published: the last two stages have one resolution, but for images of 64 rows.
            if stage in (1, 2, 3) or (stage == 4 and images.shape[2] == 64):
                x = F.max_pool2d(x, 2)
            x = getattr(self, f"block{stage}")(x)
            yield x

    def classify(self, pooled: Tensor) -> Tensor:
        return self.classifier(pooled)


vgg8 = partial(Vgg, (1, 1, 1, 1, 1))
vgg11 = partial(Vgg, (1, 1, 2, 2, 2))
vgg13 = partial(Vgg, (2, 2, 2, 2, 2))
vgg16 = partial(Vgg, (2, 2, 3, 3, 3))
vgg19 = partial(Vgg, (2, 2, 4, 4, 4))
