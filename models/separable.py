"""A small convolutional network for 32x32 color images out of depthwise separable convolutions (Howard et al. 2017,
arXiv:1704.04861): few weights for its depth. Each layer is normalized over all of an example's values (Ba et al. 2016,
arXiv:1607.06450, without gains), so that there are no statistics to store. In evaluation it looks at an image and at
its mirror image and sums what it sees."""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn.functional import group_norm, max_pool2d


class Separable(nn.Module):
    """(N, 3, 32, 32) -> (N, 10) logits; `widths`: channels after the first convolution and after each block; `stem`:
    another first convolution, for a class that gives it another input."""

    def __init__(self, widths: tuple[int, ...], stem: nn.Conv2d | None = None) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.stem = stem or nn.Conv2d(3, widths[0], 3, padding=1)
        self.depthwise = nn.ModuleList(nn.Conv2d(a, a, 3, padding=1, groups=a, bias=False) for a, _ in pairs)
        self.pointwise = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in pairs)
        self.fc = nn.Linear(widths[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        return self._look(x) if self.training else (self._look(x) + self._look(x.flip(3))) / 2

    def _look(self, x: Tensor) -> Tensor:
        x = self._first(x)  # (N, widths[0], 16, 16)
        for i, (depthwise, pointwise) in enumerate(zip(self.depthwise, self.pointwise, strict=True)):
            y = group_norm(pointwise(depthwise(x)), 1)
            x = (x + y if x.shape == y.shape else y).relu()
            if i < 2:
                x = max_pool2d(x, 2)  # to 8 x 8, then to 4 x 4
        return self.fc(x.mean((2, 3)))

    def _first(self, x: Tensor) -> Tensor:
        return max_pool2d(group_norm(self.stem(x), 1).relu(), 2)
