"""DeepLabV3 on dilated ResNets: what lies around a cell is seen at several rates at once.

Rethinking Atrous Convolution for Semantic Image Segmentation (Chen et al., 2017). The head's width is that of CIRKD's
first version, whose networks the literature distils: 128 channels on 18 layers, 256 on 101; `NAME:512` is its second.
"""

import torch
from torch import Tensor, nn

from gdkd_cache.models.cells import upsampled
from gdkd_cache.models.zoo.dilated import Dilated, Trunk, convolved, head_channels

_RATES = (12, 24, 36)


class _Rate(nn.Module):
    def __init__(self, channels_in: int, channels: int, rate: int) -> None:
        super().__init__()
        self.block = nn.Sequential(*convolved(channels_in, channels, 3, rate))

    def forward(self, maps: Tensor) -> Tensor:
        return self.block(maps)


class _Whole(nn.Module):
    """The mean over the image, in every cell."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.gap = nn.Sequential(nn.AdaptiveAvgPool2d(1), *convolved(channels_in, channels))

    def forward(self, maps: Tensor) -> Tensor:
        return upsampled(self.gap(maps), (maps.shape[2], maps.shape[3]))


class _Pyramid(nn.Module):
    """Atrous spatial pyramid pooling: a cell, what lies around it at three rates, and the image, joined."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.b0 = nn.Sequential(*convolved(channels_in, channels))
        self.b1, self.b2, self.b3 = (_Rate(channels_in, channels, rate) for rate in _RATES)
        self.b4 = _Whole(channels_in, channels)
        self.project = nn.Sequential(*convolved(5 * channels, channels), nn.Dropout(0.5))

    def forward(self, maps: Tensor) -> Tensor:
        return self.project(torch.cat([part(maps) for part in (self.b0, self.b1, self.b2, self.b3, self.b4)], 1))


class _Head(nn.Module):
    def __init__(self, channels_in: int, channels: int, num_classes: int) -> None:
        super().__init__()
        self.aspp = _Pyramid(channels_in, channels)
        self.block = nn.Sequential(
            *convolved(channels, channels, 3), nn.Dropout(0.1), nn.Conv2d(channels, num_classes, 1)
        )

    def forward(self, maps: Tensor) -> Tensor:
        return self.block(self.aspp(maps))


def _deeplabv3(depth: int, channels: str, num_classes: int) -> Dilated:
    trunk = Trunk(depth)
    width = head_channels(f"deeplabv3-resnet{depth}", channels)
    return Dilated(trunk, _Head(trunk.channels, width, num_classes), num_classes)


def deeplabv3_resnet18(channels: str = "128", *, num_classes: int) -> nn.Module:
    """On 18 layers."""
    return _deeplabv3(18, channels, num_classes)


def deeplabv3_resnet101(channels: str = "256", *, num_classes: int) -> nn.Module:
    """On 101 layers."""
    return _deeplabv3(101, channels, num_classes)
