import os
from collections.abc import Sequence

from benchmarks.rental import jobs
from benchmarks.rental.settings import Rows, Settings


def some(_: Settings) -> Sequence[jobs.Job]:
    def fails(_: Rows) -> None:
        raise RuntimeError("out of resources")

    return [
        ("first", lambda rows: rows.add({"job": "first"})),
        ("dies", lambda _: os._exit(139)),
        ("fails", fails),
        ("last", lambda rows: rows.add({"job": "last"})),
    ]


if __name__ == "__main__":
    jobs.run("jobs.json", some)
