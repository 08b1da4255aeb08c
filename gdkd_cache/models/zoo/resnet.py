"""ResNets for images of about 32x32: resnet8 to resnet110, resnet8x4, resnet32x4; ResNet18 and ResNet50.

Deep Residual Learning (CVPR 2016). The first have three stages (section 4.2) with projection shortcuts and, for the x4
networks, a stem of 32 and stages of 64, 128, 256 channels, as CRD (ICLR 2020) and its successors use them. ResNet18 and
ResNet50 have the four stages of ImageNet's (section 4.1) behind a 3x3 convolution.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from gdkd_cache.models.zoo.staged import Staged, initialise


class Basic(nn.Module):
    """Two 3x3 convolutions of some dilations past a shortcut, which is kept as `shortcut` says."""

    expansion = 1

    def __init__(
        self, channels_in: int, width: int, stride: int, shortcut: str, dilations: tuple[int, int] = (1, 1)
    ) -> None:
        super().__init__()
        first, second = dilations
        self.conv1 = nn.Conv2d(channels_in, width, 3, stride, padding=first, dilation=first, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=second, dilation=second, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self._shortcut = shortcut
        self.add_module(shortcut, _shortcut(channels_in, width, stride))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        return F.relu(y + getattr(self, self._shortcut)(x), inplace=True)


class Bottleneck(nn.Module):
    """A 3x3 convolution, of the first dilation, between two of 1x1, past a shortcut, kept as `shortcut` says."""

    expansion = 4

    def __init__(
        self, channels_in: int, width: int, stride: int, shortcut: str, dilations: tuple[int, int] = (1, 1)
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=dilations[0], dilation=dilations[0], bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self._shortcut = shortcut
        self.add_module(shortcut, _shortcut(channels_in, 4 * width, stride))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        return F.relu(y + getattr(self, self._shortcut)(x), inplace=True)


def _shortcut(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    """The identity, or a projection where the shapes differ."""
    if stride == 1 and channels_in == channels_out:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out))


class ResNet(Staged):
    """A stem and stages of residual blocks, the first stage at the images' resolution.

    Args:
        block: `Basic` or `Bottleneck`.
        blocks: of each stage.
        widths: channels of the stem and of the stages, before a block's expansion.
        names: of a block's shortcut and of the classifier, as the public networks have them.
        num_classes: size of the output.
    """

    def __init__(
        self,
        block: type[Basic] | type[Bottleneck],
        blocks: Sequence[int],
        widths: Sequence[int],
        names: tuple[str, str],
        num_classes: int,
    ) -> None:
        super().__init__()
        channels, *stages = widths
        shortcut, self._classifier = names
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self._layers = [f"layer{stage}" for stage in range(1, len(stages) + 1)]
        for layer, width, num_blocks in zip(self._layers, stages, blocks, strict=True):
            made = nn.Sequential()
            for number in range(num_blocks):
                made.append(block(channels, width, 2 if layer != "layer1" and not number else 1, shortcut))
                channels = block.expansion * width
            self.add_module(layer, made)
        self.add_module(self._classifier, nn.Linear(channels, num_classes))
        initialise(self)

    def stages(self, images: Tensor) -> Iterator[Tensor]:
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        yield x
        for layer in self._layers:
            x = getattr(self, layer)(x)
            yield x

    def classify(self, pooled: Tensor) -> Tensor:
        return getattr(self, self._classifier)(pooled)


class CifarResNet(ResNet):
    """Three stages of (depth - 2) / 6 basic blocks each.

    Args:
        depth: 6n + 2.
        widths: channels of the stem and of the three stages.
        num_classes: size of the output.
    """

    def __init__(self, depth: int, widths: tuple[int, int, int, int], num_classes: int) -> None:
        super().__init__(Basic, [(depth - 2) // 6] * 3, widths, ("downsample", "fc"), num_classes)

    @property
    def older_names(self) -> dict[str, str]:
        """As version 0.1.0 named its tensors, with their names of today."""
        older = {"conv1": "features.0", "bn1": "features.1", "fc": "head"}
        blocks = [f"{layer}.{number}" for layer in self._layers for number in range(len(getattr(self, layer)))]
        older |= {block: f"features.{number}" for number, block in enumerate(blocks, 3)}
        return {
            f"{older[today]}.{name.replace('downsample', 'shortcut')}": f"{today}.{name}"
            for today in older
            for name in self.get_submodule(today).state_dict()
        }


_NARROW = (16, 16, 32, 64)
_WIDE = (32, 64, 128, 256)
resnet8 = partial(CifarResNet, 8, _NARROW)
resnet14 = partial(CifarResNet, 14, _NARROW)
resnet20 = partial(CifarResNet, 20, _NARROW)
resnet32 = partial(CifarResNet, 32, _NARROW)
resnet44 = partial(CifarResNet, 44, _NARROW)
resnet56 = partial(CifarResNet, 56, _NARROW)
resnet110 = partial(CifarResNet, 110, _NARROW)
resnet8x4 = partial(CifarResNet, 8, _WIDE)
resnet32x4 = partial(CifarResNet, 32, _WIDE)

_FOUR = (64, 64, 128, 256, 512)
_FOUR_NAMES = ("shortcut", "linear")
ResNet18 = partial(ResNet, Basic, (2, 2, 2, 2), _FOUR, _FOUR_NAMES)
ResNet50 = partial(ResNet, Bottleneck, (3, 4, 6, 3), _FOUR, _FOUR_NAMES)
