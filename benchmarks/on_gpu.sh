#!/usr/bin/env bash
# What a GPU is asked before it is given a sweep, in one call: the tests that need one; what a training step costs, eager,
# as a CUDA graph and in packs; and the plain loop beside it. Each has a time of its own, 430 s in all at most, and
# what has been measured is in OUT, even if the call is cut.
#
#     benchmarks/on_gpu.sh OUT [SECONDS FOR THE PACKS]
#
# Needs torch, torchvision, pyarrow, pandas, pydantic, pyyaml, scikit-learn, rich, hypothesis and pytest; neither Ray nor images.
set -uo pipefail
out=$(realpath -m "$1")
seconds=${2:-100}
cd "$(dirname "$0")/.." || exit
mkdir -p "$out"
python=${PYTHON:-python3}
export PYTHONUNBUFFERED=1
failed=0

timeout 60 "$python" -m pytest tests/test_kernels.py -q --junitxml "$out/kernels.xml" 2>&1 | tee "$out/kernels.txt" || failed=1
timeout 150 "$python" -m pytest tests/test_gpu.py -m gpu -q --durations 5 --junitxml "$out/tests.xml" 2>&1 | tee "$out/tests.txt" || failed=1
timeout $((seconds + 30)) "$python" -m benchmarks.packs --time-budget "$seconds" --output "$out/packs.json" 2>&1 | tee "$out/packs.txt" || failed=1
timeout 90 "$python" -m benchmarks.throughput --precision tf32 --images 12800 --rounds 2 --workers 8 --output "$out/throughput.json" 2>&1 | tee "$out/throughput.txt" || failed=1
exit "$failed"
