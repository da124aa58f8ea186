"""What keeps a step from being recorded, where that can be seen without a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from trainer.device import graphs


class Bounded(nn.Module):
    """A weight that is kept within bounds, in one of two ways."""

    def __init__(self, *, anew: bool) -> None:
        super().__init__()
        self.weight, self.anew = nn.Parameter(torch.ones(3)), anew

    def forward(self, x: Tensor) -> Tensor:
        if self.anew:
            self.weight.data = self.weight.data.clamp(0.5, 2.0)
        else:
            self.weight.data.clamp_(0.5, 2.0)
        return x * self.weight


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda _: None)


def test_a_parameter_whose_data_are_bound_anew_is_refused() -> None:
    """The parameter stays the same object: a replay would train the memory that it had when it was recorded."""
    module = Bounded(anew=True)
    with pytest.raises(graphs.RecordError, match="changes what Python holds: weight"):
        graphs._refuse_host_work(lambda: module(torch.ones(3)), module)


def test_a_parameter_that_changes_in_place_is_not() -> None:
    module = Bounded(anew=False)
    graphs._refuse_host_work(lambda: module(torch.ones(3)), module)
