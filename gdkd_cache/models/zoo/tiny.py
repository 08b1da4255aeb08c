"""`cnn-s`, `cnn-l` and `cnn-xl`: plain convolutional networks for tiny images (8x8 to 64x64)."""

from torch import nn


def _block(channels_in: int, channels_out: int) -> list[nn.Module]:
    convolution = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True)]


def _cnn(num_classes: int, widths: list[list[int]]) -> nn.Sequential:
    """Stages of 3x3 convolutions with 2x2 max pooling between them, global average pooling, a linear head."""
    layers: list[nn.Module] = []
    channels = 3
    for stage, stage_widths in enumerate(widths):
        if stage:
            layers.append(nn.MaxPool2d(2))
        for width in stage_widths:
            layers += _block(channels, width)
            channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))


def cnn_s(num_classes: int) -> nn.Module:
    """A student of about 6 thousand parameters (10 classes)."""
    return _cnn(num_classes, [[8], [16], [24]])


def cnn_l(num_classes: int) -> nn.Module:
    """A teacher of about 1.1 million parameters (10 classes)."""
    return _cnn(num_classes, [[64, 64], [128, 128], [256, 256]])


def cnn_xl(num_classes: int) -> nn.Module:
    """A teacher of about 6.5 million parameters (10 classes)."""
    return _cnn(num_classes, [[64, 64], [128, 128], [768, 768]])
