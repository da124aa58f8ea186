"""Self-attention, then average: y = mean over positions of x_i + A(N(x))_i, with N a layer normalisation over channels.

Vaswani et al., Attention Is All You Need (NeurIPS 2017); A is multi-head attention among all positions. It knows no
positions: a map and any shuffle of it give the same y. At 1x1 it is a linear layer with a residual.
"""

from torch import Tensor, nn

from trainer.pools._checks import whole
from trainer.pools._tokens import Attention, tokens


class SelfAttentionPool(nn.Module):
    """[B, C, H, W] -> [B, C]: one pre-norm attention layer with a residual, then the average.

    Args:
        width: dimension of all heads together, from 1 up, at most C; 64 keeps it at 332,000 parameters at C = 1280.
        heads: from 1 up; the largest divisor of the width that is not above it is taken. 8 in the paper.
    """

    def __init__(self, channels: int, width: int = 64, heads: int = 8):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.attention = Attention(channels, channels, whole("width", width), whole("heads", heads))

    def forward(self, x: Tensor) -> Tensor:
        points = tokens(x)
        normed = self.norm(points)
        return (points + self.attention(normed, normed)).mean(dim=1).to(x.dtype)
