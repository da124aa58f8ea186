"""Power means and means of exponentials in log space, where no power and no exponential can overflow."""

import math

from torch import Tensor


def power_mean(x: Tensor, p: float | Tensor, log_weights: Tensor | None = None) -> Tensor:
    """(sum over the last dimension of w_i x_i^p)^(1/p).

    Args:
        x: positive values, [..., n].
        p: the exponent, not 0: a number, or a tensor that broadcasts over [...].
        log_weights: log w_i, [..., n] or what broadcasts to it; w_i = 1/n unless given.
    """
    powers = x.log() * (p.unsqueeze(-1) if isinstance(p, Tensor) else p)
    if log_weights is None:
        total = powers.logsumexp(-1) - math.log(x.shape[-1])
    else:
        total = (powers + log_weights).logsumexp(-1)
    return (total / p).exp()


def log_mean_exp(x: Tensor) -> Tensor:
    """log(mean over the last dimension of exp(x_i)).

    logsumexp(x) - log n is rounded to 1e-7 log n, which is all there is left if x is small; log1p and expm1 keep the
    digits of x.
    """
    largest = x.amax(-1, keepdim=True).detach()  # cancels out, so it needs no gradient
    return largest.squeeze(-1) + (x - largest).expm1().mean(-1).log1p()
