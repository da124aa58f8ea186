"""Stage `join`: the images of the pieces that have come, side by side."""

from __future__ import annotations

from pathlib import Path

from benchmarks.rental import pieces
from benchmarks.rental.settings import from_argv

if __name__ == "__main__":
    print(*pieces.join(Path(from_argv().data).parent), sep="\n")
