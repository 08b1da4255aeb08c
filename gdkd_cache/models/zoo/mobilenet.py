"""MobileNetV1 for ImageNet, and MobileNetV2 of half width for images of about 32x32.

MobileNetV1: Efficient Convolutional Neural Networks for Mobile Vision Applications (arXiv 1704.04861), the student of
ResNet50 on ImageNet. MobileNetV2: Inverted Residuals and Linear Bottlenecks (CVPR 2018), as CRD (ICLR 2020) and its
successors use it: half of the channels but for the last 1280, ReLU in place of ReLU6, and four of the five halvings of
the resolution.
"""

from collections.abc import Iterator

from torch import Tensor, nn

from gdkd_cache.models.zoo.staged import Staged, initialise

_STAGES = (  # expansion, channels, blocks, stride
    (1, 8, 1, 1),
    (6, 12, 2, 1),
    (6, 16, 3, 2),
    (6, 32, 4, 2),
    (6, 48, 3, 1),
    (6, 80, 3, 2),
    (6, 160, 1, 1),
)
_LAST = 1280
_V1_STAGES = (  # channels and stride of each block
    ((64, 1), (128, 2), (128, 1)),
    ((256, 2), (256, 1)),
    ((512, 2), (512, 1), (512, 1), (512, 1), (512, 1), (512, 1)),
    ((1024, 2), (1024, 1)),
)


def _conv(channels_in: int, channels_out: int, side: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(channels_in, channels_out, side, stride, padding=side // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(channels_out)]


class MobileNetV1(Staged):
    """The network of full width: a 3x3 convolution of each channel, then a 1x1 one, thirteen times.

    Args:
        num_classes: size of the output.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        channels = 32
        self.model = nn.Sequential(nn.Sequential(*_conv(3, channels, 3, stride=2), nn.ReLU(inplace=True)))
        for stage in _V1_STAGES:
            for width, stride in stage:
                each = [*_conv(channels, channels, 3, stride, groups=channels), nn.ReLU(inplace=True)]
                self.model.append(nn.Sequential(*each, *_conv(channels, width, 1), nn.ReLU(inplace=True)))
                channels = width
        self.fc = nn.Linear(channels, num_classes)

    def stages(self, images: Tensor) -> Iterator[Tensor]:
        """Maps of the stem, and behind each block after which the resolution is halved."""
        stem, *blocks = self.model
        x = stem(images)
        yield x
        for stage in _V1_STAGES:
            for _ in stage:
                x = blocks.pop(0)(x)
            yield x

    def classify(self, pooled: Tensor) -> Tensor:
        return self.fc(pooled)


class _Inverted(nn.Module):
    """Wider by 1x1, a 3x3 convolution of each channel, narrower by 1x1; past an identity where the shapes allow it."""

    def __init__(self, channels_in: int, channels_out: int, expansion: int, stride: int) -> None:
        super().__init__()
        width = channels_in * expansion
        self.residual = stride == 1 and channels_in == channels_out
        self.conv = nn.Sequential(
            *_conv(channels_in, width, 1),
            nn.ReLU(inplace=True),
            *_conv(width, width, 3, stride, groups=width),
            nn.ReLU(inplace=True),
            *_conv(width, channels_out, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(Staged):
    """The network of half width.

    Args:
        num_classes: size of the output.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        channels = 16
        self.conv1 = nn.Sequential(*_conv(3, channels, 3, stride=2), nn.ReLU(inplace=True))
        self.blocks = nn.ModuleList()
        for expansion, width, num_blocks, stride in _STAGES:
            stage = nn.Sequential()
            for number in range(num_blocks):
                stage.append(_Inverted(channels, width, expansion, 1 if number else stride))
                channels = width
            self.blocks.append(stage)
        self.conv2 = nn.Sequential(*_conv(channels, _LAST, 1), nn.ReLU(inplace=True))
        self.classifier = nn.Sequential(nn.Linear(_LAST, num_classes))
        initialise(self, linear=0.01)

    def stages(self, images: Tensor) -> Iterator[Tensor]:
        """Maps of the stem, and behind the groups of blocks whose maps the public network gives."""
        x = self.conv1(images)
        yield x
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in (1, 2, 4, 6):
                yield x

    def pool(self, last: Tensor) -> Tensor:
        return super().pool(self.conv2(last))

    def classify(self, pooled: Tensor) -> Tensor:
        return self.classifier(pooled)
