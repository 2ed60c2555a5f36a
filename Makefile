# Everything that people, pre-commit and CI run. Needs python3 (3.10 or newer), pip and make; one .venv serves all.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
QUICK := not slow and not real

.PHONY: demo test test-all test-faults fuzz check docs bench clean
.DELETE_ON_ERROR:

demo: .venv/.core
	$(BIN)/cuvee demo

test: .venv/.test
	$(BIN)/python -m pytest -n 2 -m "$(QUICK)"

test-all: .venv/.test
	$(BIN)/python -m pytest -n 2

test-faults: .venv/.test
	$(BIN)/python tests/faults/harness.py

# 100,000 inputs by hypothesis; as many more by atheris where it can be installed (Linux and macOS).
fuzz: .venv/.test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check atheris || true
	$(BIN)/python tests/fuzz/run.py 100000 --table docs/fuzzing-table.md

check: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check

docs: .venv/.core
	$(BIN)/python docs/generate.py

bench: .venv/.core
	$(BIN)/python benchmarks/speed.py

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests docs examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# Debian's python3 comes without ensurepip unless python3-venv is installed; the machine's own pip then brings pip in.
.venv/bin/python:
	$(PYTHON) -m venv .venv >/dev/null 2>&1 || ( rm -rf .venv && $(PYTHON) -m venv --without-pip .venv \
		&& $(PYTHON) -m pip --python .venv/bin/python install --quiet pip )

# Editable, so that a second run sees changed sources without installing again.
.venv/.core: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) -e .
	touch $@

# torch first and by itself: a CPU build that is at hand is then taken before anything asks for another one.
.venv/.test: .venv/.core
	$(INSTALL) torch==2.13.0
	$(INSTALL) -e '.[test]'
	touch $@

.venv/.dev: .venv/.core
	$(INSTALL) -e '.[dev]'
	touch $@
