"""What the dense networks of the segmentation literature share: a ResNet at stride 8, a head on it, an auxiliary one.

The trunk's last two stages are dilated in place of their strides (Yu et al., "Dilated Residual Networks", CVPR 2017),
and its stem is three convolutions. Tensors have the names and shapes of CIRKD's (CVPR 2022), so that its checkpoints
load, and those of what follows it.
"""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from gdkd_cache.errors import UsageError
from gdkd_cache.models.cells import MAIN
from gdkd_cache.models.zoo.resnet import Basic, Bottleneck
from gdkd_cache.models.zoo.staged import initialise

_BLOCKS: dict[int, tuple[type[Basic] | type[Bottleneck], tuple[int, int, int, int]]] = {
    18: (Basic, (2, 2, 2, 2)),
    101: (Bottleneck, (3, 4, 23, 3)),
}
_STAGES = ((64, 1, 1), (128, 2, 1), (256, 1, 2), (512, 1, 4))
"""Of each stage: its width, before a block's expansion; its stride; its dilation."""


def convolved(channels_in: int, channels_out: int, kernel: int = 1, dilation: int = 1) -> list[nn.Module]:
    """A convolution that keeps the size, batch normalisation and ReLU."""
    padding = dilation * (kernel // 2)
    convolution = nn.Conv2d(channels_in, channels_out, kernel, padding=padding, dilation=dilation, bias=False)
    return [convolution, nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True)]


class Trunk(nn.Module):
    """A ResNet whose last three stages all have stride 8.

    Args:
        depth: 18 or 101.

    Attributes:
        channels: of the last stage; the one before it has half of them.
    """

    def __init__(self, depth: int) -> None:
        super().__init__()
        block, counts = _BLOCKS[depth]
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 3, 2, padding=1, bias=False), nn.BatchNorm2d(64)
        self.conv2, self.bn2 = nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64)
        self.conv3, self.bn3 = nn.Conv2d(64, 128, 3, padding=1, bias=False), nn.BatchNorm2d(128)
        channels = 128
        for stage, (count, (width, stride, dilation)) in enumerate(zip(counts, _STAGES, strict=True), 1):
            made = nn.Sequential()
            for number in range(count):
                # A stage's first convolution sees as the stage before it.
                dilations = (dilation if number else max(dilation // 2, 1), dilation)
                made.append(block(channels, width, 1 if number else stride, "downsample", dilations))
                channels = block.expansion * width
            self.add_module(f"layer{stage}", made)
        self.channels = channels
        initialise(self)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The maps of the last two stages, of float images [batch, 3, height, width]."""
        x = images
        for number in (1, 2, 3):
            x = F.relu(getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(x)), inplace=True)
        x = F.max_pool2d(x, 3, 2, padding=1)
        before = x
        for stage in range(1, len(_STAGES) + 1):
            before, x = x, getattr(self, f"layer{stage}")(x)
        return before, x


class _Auxiliary(nn.Module):
    """A head on the stage before the last: a 3x3 convolution and a classifier."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        between = channels // 4
        self.block = nn.Sequential(
            *convolved(channels, between, 3), nn.Dropout(0.1), nn.Conv2d(between, num_classes, 1)
        )

    def forward(self, maps: Tensor) -> Tensor:
        return self.block(maps)


class Dilated(nn.Module):
    """A trunk, a head on its last stage, and an auxiliary one on the stage before.

    Published weights see pixels of 0 to 255 less their mean, blue first; images come in red first, as for all networks,
    and are turned round here.

    Args:
        trunk: gives maps.
        head: of the last ones makes [batch, class, height, width].
        num_classes: C.
    """

    outputs: ClassVar[tuple[str, ...]] = (MAIN, "aux")
    mean: ClassVar[tuple[float, ...]] = (122.67891434 / 255, 116.66876762 / 255, 104.00698793 / 255)
    std: ClassVar[tuple[float, ...]] = (1 / 255, 1 / 255, 1 / 255)

    def __init__(self, trunk: Trunk, head: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.pretrained, self.head = trunk, head
        self.auxlayer = _Auxiliary(trunk.channels // 2, num_classes)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits [batch, class, height / 8, width / 8], rounded up, of float images [batch, 3, height, width]."""
        before, last = self.pretrained(images.flip(1))
        return {MAIN: self.head(last), "aux": self.auxlayer(before)}


def head_channels(model: str, given: str) -> int:
    """The channels of a head that a model's spec names after its colon.

    Raises:
        UsageError: it is no number of channels.
    """
    if not (given.isdecimal() and len(given) < 5 and int(given) > 0):
        raise UsageError(f"model {model}:{given}: {given!r} is no number of channels of its head, 1 to 9999")
    return int(given)
