"""A small convolutional network for 28x28 images: three convolutions with pooling, then one linear layer over the nine
places that are left. What remains when few bytes are all there is: no hidden linear layer, whose weights would be most
of the network (LeNet's are 93 %), and nothing whose statistics would have to be stored."""

from torch import Tensor, nn
from torch.nn.functional import max_pool2d


class Conv3(nn.Module):
    """(N, 1, 28, 28) -> (N, 10) logits; `widths`: kernels of the three layers."""

    def __init__(self, widths: tuple[int, int, int]) -> None:
        super().__init__()
        a, b, c = widths
        self.conv1 = nn.Conv2d(1, a, 5, padding=2)
        self.conv2 = nn.Conv2d(a, b, 3, padding=1)
        self.conv3 = nn.Conv2d(b, c, 3, padding=1)
        self.fc = nn.Linear(9 * c, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = max_pool2d(self.conv1(x).relu(), 2)  # (N, a, 14, 14)
        x = max_pool2d(self.conv2(x).relu(), 2)  # (N, b, 7, 7)
        x = max_pool2d(self.conv3(x).relu(), 2)  # (N, c, 3, 3)
        return self.fc(x.flatten(1))
