"""LeNet-5 as the compression literature counts it (Caffe's variant; Han et al. 2016, arXiv:1510.00149; MIRACLE,
Havasi et al. 2019, arXiv:1810.00440): 20 and 50 kernels of 5x5, 500 units, D = 431,080 weights."""

from torch import Tensor, nn
from torch.nn.functional import max_pool2d


class LeNet5(nn.Module):
    """(N, 1, 28, 28) -> (N, 10) logits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(800, 500)
        self.fc2 = nn.Linear(500, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = max_pool2d(self.conv1(x), 2)  # (N, 20, 12, 12); this variant has no activation between its convolutions
        x = max_pool2d(self.conv2(x), 2)  # (N, 50, 4, 4)
        x = self.fc1(x.flatten(1)).relu()  # (N, 500)
        return self.fc2(x)
