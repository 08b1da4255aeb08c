"""PSPNet on dilated ResNets: what lies around a cell is seen as means over a pyramid of regions.

Pyramid Scene Parsing Network (Zhao et al., CVPR 2017). The head's width is that of CIRKD's first version, whose
networks the literature distils: 128 channels on 18 layers, 512 on 101, for which `NAME:256` is its second.
"""

import torch
from torch import Tensor, nn

from gdkd_cache.models.cells import upsampled
from gdkd_cache.models.zoo.dilated import Dilated, Trunk, convolved, head_channels

_SIDES = (1, 2, 3, 6)
"""Of the pyramid's grids of regions."""


class _Pyramid(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3, self.conv4 = (
            nn.Sequential(*convolved(channels, channels // len(_SIDES))) for _ in _SIDES
        )

    def forward(self, maps: Tensor) -> Tensor:
        convolutions = (self.conv1, self.conv2, self.conv3, self.conv4)
        means = (nn.functional.adaptive_avg_pool2d(maps, side) for side in _SIDES)
        around = [
            upsampled(apply(mean), (maps.shape[2], maps.shape[3]))
            for apply, mean in zip(convolutions, means, strict=True)
        ]
        return torch.cat([maps, *around], 1)


class _Head(nn.Module):
    def __init__(self, channels_in: int, channels: int, num_classes: int) -> None:
        super().__init__()
        self.psp = _Pyramid(channels_in)
        self.block = nn.Sequential(*convolved(2 * channels_in, channels, 3), nn.Dropout(0.1))
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, maps: Tensor) -> Tensor:
        return self.classifier(self.block(self.psp(maps)))


def _pspnet(depth: int, channels: str, num_classes: int) -> Dilated:
    trunk = Trunk(depth)
    width = head_channels(f"pspnet-resnet{depth}", channels)
    return Dilated(trunk, _Head(trunk.channels, width, num_classes), num_classes)


def pspnet_resnet18(channels: str = "128", *, num_classes: int) -> nn.Module:
    """On 18 layers."""
    return _pspnet(18, channels, num_classes)


def pspnet_resnet101(channels: str = "512", *, num_classes: int) -> nn.Module:
    """On 101 layers."""
    return _pspnet(101, channels, num_classes)
