import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.rental import checks
from benchmarks.rental.settings import Row, Settings
from search_spaces import kernels


def some(*_: Any) -> Iterator[tuple[str, Callable[[], Row]]]:
    yield "before", lambda: {"ok": True}
    yield "dies", lambda: {"ok": True} if "sgd" in kernels.off() else os._exit(139)
    yield "after", lambda: {"ok": True, "off_here": sorted(kernels.off())}


if __name__ == "__main__":
    checks.all_checks = some
    checks.check(Settings.from_json(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
