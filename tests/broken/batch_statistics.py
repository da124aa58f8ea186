"""batch-independence on resnet56: batch norm that normalises by the batch in evaluation too."""

from torch import nn


class CustomPool(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(1, track_running_stats=False)

    def forward(self, x):
        return self.norm(x.mean((2, 3))[:, None, :, None]).flatten(1)
