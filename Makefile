# `make demo` and `make test` need git, make and Python 3.11 or newer; everything else they bring themselves.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test soak test-oldest check chaos lock clean

demo: .venv/.installed
	$(BIN)/python run_sweep.py --space quickstart.yaml

# In two processes, a file's tests in one of them; only tests/test_sweep.py starts Ray.
PYTEST := python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: .venv/.installed
	$(BIN)/$(PYTEST)

check: .venv/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	# Files are UTF-8, whatever the locale; these two read /proc, and JSON in ASCII.
	$(BIN)/ruff check --preview --select PLW1514 --exclude tests .
	$(BIN)/pyright
	$(BIN)/lint-imports

# What takes long and tries rare paths: kills, machines that are lost, hosts in namespaces, two minutes of chaos.
soak: .venv/.installed
	$(BIN)/python -m pytest -m soak

# Sweeps of 60 trials under a monkey that kills something every few seconds, until it has done so 100 times: half an hour.
chaos: .venv/.installed
	$(BIN)/python -m tests.chaos

# Installed once, and again when the lock changes.
.venv/.installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.lock
	touch $@

# The tests with the lowest versions that pyproject.toml allows, which have wheels for Python 3.11 and 3.12. Without
# --no-config, uv would keep to the versions that the lock is compiled for.
test-oldest: .venv-oldest/.installed
	.venv-oldest/bin/$(PYTEST)

.venv-oldest/.installed: pyproject.toml
	$(PYTHON) -m venv --clear .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check uv
	.venv-oldest/bin/uv pip install --quiet --no-config --compile-bytecode --python .venv-oldest/bin/python \
		--resolution lowest-direct -r pyproject.toml --extra dev --extra cluster
	touch $@

lock: .venv/.installed
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-header --extra dev --extra cluster --upgrade pyproject.toml -o requirements.lock

clean:
	rm -rf .venv .venv-oldest runs
