"""The gate: every pool of a grid validated in every architecture before anything is asked of a GPU."""

from trainer.gate.report import Report
from trainer.gate.validate import Gate

__all__ = ["Gate", "Report"]
