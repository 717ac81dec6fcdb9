"""MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381), with the names that torchvision's weights have."""

from torch import Tensor, nn

STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Expansion, channels, number of blocks, and the stride of the first block."""


def _layer(a: int, b: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(a, b, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(b), nn.ReLU6())


class Block(nn.Module):
    """An inverted residual: wide inside, narrow outside."""

    def __init__(self, a: int, b: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = a * expansion
        layers: list[nn.Module] = [_layer(a, wide)] if expansion != 1 else []
        layers += [_layer(wide, wide, 3, stride, wide), nn.Conv2d(wide, b, 1, bias=False), nn.BatchNorm2d(b)]
        self.conv = nn.Sequential(*layers)
        self.residual = stride == 1 and a == b

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """(N, 3, H, W) -> (N, classes) logits; 3,504,872 weights with 1,000 classes."""

    def __init__(self, classes: int = 1000, dropout: float = 0.2) -> None:
        super().__init__()
        layers: list[nn.Module] = [_layer(3, 32, 3, 2)]
        width = 32
        for expansion, channels, blocks, stride in STAGES:
            for i in range(blocks):
                layers.append(Block(width, channels, stride if i == 0 else 1, expansion))
                width = channels
        layers.append(_layer(width, 1280))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(1280, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))
