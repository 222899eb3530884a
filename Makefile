# `make demo` and `make test` work from a bare clone with Python 3.11; each creates .venv and installs what it needs.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
export OMP_NUM_THREADS ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0
export MLFLOW_DISABLE_TELEMETRY ?= true

.PHONY: demo test lint studies bench chaos audit clean

demo: .venv/installed
	$(BIN)/proxygap run pipelines/quickstart.yaml

test: .venv/installed-dev
	$(BIN)/python -m pytest $(PYTEST)

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

studies: .venv/installed
	for study in pipelines/studies/*.yaml; do $(BIN)/proxygap run $$study || exit $$?; done
	for sweep in pipelines/sweeps/*.yaml; do $(BIN)/proxygap sweep $$sweep || exit $$?; done

bench: .venv/installed-bench .venv/mbrl/installed
	for script in benchmarks/bench_*.py; do echo "== $$script"; $(BIN)/python $$script || exit $$?; done

chaos: .venv/installed-dev
	$(BIN)/python -m pytest -n 0 -m long
	$(BIN)/python -m tests.chaos.long

audit: .venv/installed
	$(PYTHON) -m venv .venv/audit
	.venv/audit/bin/pip install --quiet pip-audit
	.venv/audit/bin/pip-audit --no-deps --requirement requirements.lock

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.venv/installed: pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "ProxyGap needs Python 3.11: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/pip install --quiet --constraint requirements.lock --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/pip install --quiet --constraint requirements.lock --group dev
	touch $@

.venv/installed-bench: .venv/installed
	$(BIN)/pip install --quiet --constraint requirements.lock --group bench
	touch $@

.venv/mbrl/installed: benchmarks/peers/mbrl.txt | .venv/installed
	$(PYTHON) -m venv --clear .venv/mbrl
	.venv/mbrl/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	.venv/mbrl/bin/pip install --quiet --requirement $<
	.venv/mbrl/bin/pip install --quiet --no-deps mbrl==0.2.0
	touch $@
