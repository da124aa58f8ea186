"""What a batch is trained by and counted by: cross-entropy, its gradient, and hits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, labels: Tensor, *, fused: bool) -> tuple[Tensor, Tensor | None]:
    """Return the sum of the losses and the number of hits, [2] float64; and the gradient of the losses' mean.

    The gradient is like the logits, and None if they need none. All is computed in fp32 at least.

    Args:
        logits: [B, K].
        labels: [B] int64.
        fused: on a GPU, by one kernel: see `kernels.loss`.
    """
    if fused and logits.dtype in (torch.bfloat16, torch.float32):
        from trainer.device import kernels

        logits = logits.contiguous()
        gradient = torch.empty_like(logits) if logits.requires_grad else None
        return kernels.loss.cross_entropy(logits.detach(), labels, gradient), gradient
    exact = logits.detach()
    exact = exact.float() if exact.dtype == torch.bfloat16 else exact
    hits = (exact.argmax(1) == labels).sum()
    if not logits.requires_grad:
        return _pair(F.cross_entropy(exact, labels, reduction="sum"), hits), None
    loss = F.cross_entropy(exact.requires_grad_(), labels)
    (gradient,) = torch.autograd.grad(loss, exact)
    return _pair(loss.detach() * len(labels), hits), gradient.to(logits.dtype)


def _pair(loss: Tensor, hits: Tensor) -> Tensor:
    return torch.stack((loss.double(), hits.double()))
