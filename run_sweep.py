"""`python run_sweep.py --space pools.yaml`. No logic here: Ray pickles what __main__ defines by value."""

import sys

from search_spaces import process

if __name__ == "__main__":
    process.prepare()
    from orchestrator.cli import main

    sys.exit(main())
