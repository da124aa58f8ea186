"""`python -m trainer.examine`: examinations on request, in a process that a pool may well break.

Says in a line of JSON what torch finds on this machine, then answers each line of stdin, {pool, arch, precision}, with
one. What a pool writes to stdout does not get between them.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from pathlib import Path

import torch

from trainer import contract, cost, likeness, pool
from trainer.examination import Examination
from trainer.pool import Pool
from trainer.subject import Subject


def examine(pool: Pool, arch: str, precision: str = "fp32") -> Examination:
    """All about a pool in an architecture; of one that is refused, only why. Runs the pool's code."""
    subject = Subject(pool, arch, half=precision == "bf16")
    with contextlib.redirect_stdout(io.StringIO()), torch.random.fork_rng(devices=[]):
        findings = tuple(contract.check(subject))
        if any(finding.refused for finding in findings):
            return Examination(pool, arch, findings)
        outputs, parting = likeness.function(subject)
        return Examination(pool, arch, findings, cost.measure(subject), tuple(outputs), tuple(parting))


def main() -> None:
    torch.set_num_threads(1)
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1) as answers, Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
        # The first examination imports 800 modules, 3 s of them, and 10 where no bytecode is kept: no pool's own time.
        examine(pool.expand("gap")[0], "resnet20")
        bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
        answers.write(json.dumps({"gpus": torch.cuda.device_count(), "cpu_bf16": bf16}) + "\n")
        for line in sys.stdin:
            asked = json.loads(line)
            found = examine(Pool.from_dict(asked["pool"]), asked["arch"], asked["precision"])
            answers.write(json.dumps(found.found_dict()) + "\n")


if __name__ == "__main__":
    main()
