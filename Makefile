# make run | test | setup | lab | notebooks | browser | bench | clean
# PYTHON=python3.12 chooses the interpreter, TORCH_INDEX=ADDRESS a wheel index for another PyTorch build (CUDA, ROCm), JOBS the number of test workers.
PYTHON ?= python3
TORCH_INDEX ?=
JOBS ?= 2
VENV := .venv
ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# one thread a process: workers must not fight over the cores
export OMP_NUM_THREADS ?= 1

.PHONY: run test setup lab notebooks browser bench clean check unit nbval

run: setup
	$(BIN)/mtlearn reproduce --tour

setup: $(VENV)/.run

test: $(VENV)/.test
	$(MAKE) check unit nbval browser BROWSER=--one-per-chapter

lab: setup
	$(BIN)/mtlearn lab

$(VENV)/.run: constraints.txt pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'mtlearn needs Python 3.11 or newer: make PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $$(grep '^torch==' constraints.txt)
	$(PIP) --editable .
	touch $@

$(VENV)/.test: $(VENV)/.run
	$(PIP) --editable ".[test]"
	touch $@

check: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# measured by lines over mtlearn/, the workers and the commands that tests start included
unit: $(VENV)/.test
	$(BIN)/coverage erase
	$(BIN)/python -m pytest tests --ignore tests/browser --numprocesses $(JOBS) --dist worksteal --cov --cov-report=term

nbval: $(VENV)/.test
	$(BIN)/python -m pytest -p no:cacheprovider --nbval notebooks --numprocesses $(JOBS) --dist loadfile

browser: $(VENV)/.test
	$(BIN)/python -m pytest tests/browser $(BROWSER)

# executes every notebook, or those of NOTEBOOKS, and stores what the code printed
notebooks: $(VENV)/.test
	$(BIN)/python notebooks/execute.py $(NOTEBOOKS)

bench: $(VENV)/.test
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

clean:
	rm -rf $(VENV) build report .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
