"""The convolutional network of Li et al. 2018 (arXiv:1804.08838) for CIFAR-10: their LeNet with three input channels,
5x5 kernels, max pooling and 6, 16, 120, 84 units; D = 62,006 weights, d_int90 = 2,900."""

from torch import Tensor, nn
from torch.nn.functional import max_pool2d


class CifarLeNet(nn.Module):
    """(N, 3, 32, 32) -> (N, 10) logits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(400, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = max_pool2d(self.conv1(x).relu(), 2)  # (N, 6, 14, 14)
        x = max_pool2d(self.conv2(x).relu(), 2)  # (N, 16, 5, 5)
        x = self.fc1(x.flatten(1)).relu()  # (N, 120)
        x = self.fc2(x).relu()  # (N, 84)
        return self.fc3(x)
