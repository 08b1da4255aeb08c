"""Wide residual networks for images of about 32x32: wrn_16_1, wrn_16_2, wrn_40_1 and wrn_40_2.

Wide Residual Networks (BMVC 2016): depth and widening in the name, normalisation before each convolution, no dropout.
"""

from collections import OrderedDict
from collections.abc import Iterator
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from gdkd_cache.models.zoo.staged import Staged, initialise


class _Block(nn.Module):
    """Two 3x3 convolutions, each normalised before; a projection takes the normalised input, the identity the raw."""

    def __init__(self, channels_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.convShortcut = None if channels_in == width else nn.Conv2d(channels_in, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        normal = F.relu(self.bn1(x), inplace=True)
        y = F.relu(self.bn2(self.conv1(normal)), inplace=True)
        return self.conv2(y) + (x if self.convShortcut is None else self.convShortcut(normal))


class WideResNet(Staged):
    """A stem of 16 channels and three stages of (depth - 4) / 6 blocks, of 16, 32 and 64 channels times `widen`.

    Args:
        depth: 6n + 4.
        widen: factor of the channels.
        num_classes: size of the output.
    """

    def __init__(self, depth: int, widen: int, num_classes: int) -> None:
        super().__init__()
        blocks = (depth - 4) // 6

        def stage(channels_in: int, width: int, stride: int) -> nn.Sequential:
            others = [_Block(width, width, 1) for _ in range(blocks - 1)]
            return nn.Sequential(OrderedDict(layer=nn.Sequential(_Block(channels_in, width, stride), *others)))

        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.block1 = stage(16, 16 * widen, 1)
        self.block2 = stage(16 * widen, 32 * widen, 2)
        self.block3 = stage(32 * widen, 64 * widen, 2)
        self.bn1 = nn.BatchNorm2d(64 * widen)
        self.fc = nn.Linear(64 * widen, num_classes)
        initialise(self)
        nn.init.zeros_(self.fc.bias)

    def stages(self, images: Tensor) -> Iterator[Tensor]:
        x = self.conv1(images)
        yield x
        for block in (self.block1, self.block2, self.block3):
            x = block(x)
            yield x

    def pool(self, last: Tensor) -> Tensor:
        return super().pool(F.relu(self.bn1(last), inplace=True))

    def classify(self, pooled: Tensor) -> Tensor:
        return self.fc(pooled)


wrn_16_1 = partial(WideResNet, 16, 1)
wrn_16_2 = partial(WideResNet, 16, 2)
wrn_40_1 = partial(WideResNet, 40, 1)
wrn_40_2 = partial(WideResNet, 40, 2)
