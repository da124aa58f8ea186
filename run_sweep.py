"""`python run_sweep.py --space pools.yaml`. No logic here: Ray pickles what __main__ defines by value."""

import sys

from orchestrator.cli import main

if __name__ == "__main__":
    sys.exit(main())
