"""ShuffleV1 and ShuffleV2: ShuffleNets for images of about 32x32.

ShuffleNet (CVPR 2018) with three groups and ShuffleNet V2 (ECCV 2018) of width 1, behind a 1x1 convolution in place of
the strided stem, as CRD (ICLR 2020) and its successors use them.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gdkd_cache.models.zoo.staged import Staged

_STEM = 24
_NUM_BLOCKS = (4, 8, 4)


def _pointwise(channels_in: int, channels_out: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 1, groups=groups, bias=False)


def _depthwise(channels: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)


class _Grouped(nn.Module):
    """ShuffleV1's: 1x1 in groups, shuffled, 3x3 of each channel, 1x1 in groups; added to its input.

    Where the number of channels grows, the resolution is halved and the new channels stand beside the input's.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.halves = channels_in != channels_out
        width = channels_out - channels_in if self.halves else channels_out
        self.groups = 1 if channels_in == _STEM else 3
        self.conv1 = _pointwise(channels_in, width // 4, self.groups)
        self.bn1 = nn.BatchNorm2d(width // 4)
        self.conv2 = _depthwise(width // 4, 2 if self.halves else 1)
        self.bn2 = nn.BatchNorm2d(width // 4)
        self.conv3 = _pointwise(width // 4, width, 3)
        self.bn3 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        # The paper has no ReLU behind the 3x3 convolution; the public network has.
        y = F.relu(self.bn2(self.conv2(F.channel_shuffle(y, self.groups))), inplace=True)
        y = self.bn3(self.conv3(y))
        joined = torch.cat([y, F.avg_pool2d(x, 3, 2, padding=1)], 1) if self.halves else y + x
        return F.relu(joined, inplace=True)


class _Split(nn.Module):
    """ShuffleV2's: one half of the channels as it is, the other through 1x1, 3x3 of each channel and 1x1; shuffled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        width = channels // 2
        self.conv1 = _pointwise(width, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _depthwise(width, 1)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _pointwise(width, width)
        self.bn3 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        kept, y = x.chunk(2, 1)
        y = F.relu(self.bn1(self.conv1(y)), inplace=True)
        y = self.bn2(self.conv2(y))
        y = F.relu(self.bn3(self.conv3(y)), inplace=True)
        return F.channel_shuffle(torch.cat([kept, y], 1), 2)


class _Down(nn.Module):
    """ShuffleV2's that halves the resolution: all channels through 3x3, 1x1, and through 1x1, 3x3, 1x1; shuffled."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        width = channels_out // 2
        self.conv1 = _depthwise(channels_in, 2)
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv2 = _pointwise(channels_in, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _pointwise(channels_in, width)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv4 = _depthwise(width, 2)
        self.bn4 = nn.BatchNorm2d(width)
        self.conv5 = _pointwise(width, width)
        self.bn5 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        left = self.bn1(self.conv1(x))
        left = F.relu(self.bn2(self.conv2(left)), inplace=True)
        right = F.relu(self.bn3(self.conv3(x)), inplace=True)
        right = self.bn4(self.conv4(right))
        right = F.relu(self.bn5(self.conv5(right)), inplace=True)
        return F.channel_shuffle(torch.cat([left, right], 1), 2)


class _ShuffleNet(Staged):
    """A stem and three stages.

    Args:
        down: makes a stage's first block, of channels in and out.
        further: makes a further one, of its channels.
        widths: of the stages.
    """

    linear: nn.Linear

    def __init__(
        self,
        down: Callable[[int, int], nn.Module],
        further: Callable[[int], nn.Module],
        widths: tuple[int, int, int],
    ) -> None:
        super().__init__()
        self.conv1 = _pointwise(3, _STEM)
        self.bn1 = nn.BatchNorm2d(_STEM)

        def stage(channels_in: int, width: int, blocks: int) -> nn.Sequential:
            return nn.Sequential(down(channels_in, width), *(further(width) for _ in range(blocks - 1)))

        channels = (_STEM, *widths)
        self.layer1, self.layer2, self.layer3 = map(stage, channels, widths, _NUM_BLOCKS)

    def stages(self, images: Tensor) -> Iterator[Tensor]:
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        yield x
        for layer in (self.layer1, self.layer2, self.layer3):
            x = layer(x)
            yield x

    def classify(self, pooled: Tensor) -> Tensor:
        return self.linear(pooled)


class ShuffleV1(_ShuffleNet):
    """ShuffleNet: stages of 240, 480 and 960 channels.

    Args:
        num_classes: size of the output.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__(_Grouped, lambda width: _Grouped(width, width), (240, 480, 960))
        self.linear = nn.Linear(960, num_classes)


class ShuffleV2(_ShuffleNet):
    """ShuffleNet V2: stages of 116, 232 and 464 channels, and 1024 behind them.

    Args:
        num_classes: size of the output.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__(_Down, _Split, (116, 232, 464))
        self.conv2 = _pointwise(464, 1024)
        self.bn2 = nn.BatchNorm2d(1024)
        self.linear = nn.Linear(1024, num_classes)

    def pool(self, last: Tensor) -> Tensor:
        return super().pool(F.relu(self.bn2(self.conv2(last)), inplace=True))
