"""The maximum: y_c = max_c. Published as google/gemini-3.1-pro-preview, agent; it is the baseline `global_max`."""

from torch import nn


class CustomPool(nn.Module):
    """[B, C, H, W] -> [B, C]."""

    def forward(self, x):
        return x.amax((2, 3))
