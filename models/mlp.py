"""The fully connected network of Li, Farkhoor, Liu, Yosinski, "Measuring the Intrinsic Dimension of Objective
Landscapes" (arXiv:1804.08838), section 3: 784-200-200-10, D = 199,210 weights, d_int90 = 750 on MNIST."""

from torch import Tensor, nn


class MLP(nn.Module):
    """(N, 1, 28, 28) -> (N, 10) logits."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(784, 200)
        self.fc2 = nn.Linear(200, 200)
        self.fc3 = nn.Linear(200, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x.flatten(1)).relu()  # (N, 200)
        x = self.fc2(x).relu()  # (N, 200)
        return self.fc3(x)
