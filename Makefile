# diffkit: `make demo` on an empty machine makes the environment, trains the default recipe and draws with it.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
STAMP := $(VENV)/.diffkit-setup
DEMO := runs/demo

.PHONY: help setup demo test test-slow test-floors check bench gallery docs clean

help:
	@echo "make setup        the environment, in $(VENV)"
	@echo "make demo         train the embedded digits for a few minutes and draw some"
	@echo "make test         the tests (no network, minutes)"
	@echo "make test-slow    the long ones: kill and resume, several processes, real data"
	@echo "make test-floors  the tests with the lowest versions allowed, in .venv-floors (an old torch: gigabytes)"
	@echo "make check        format, lint, types, tests: the gate"
	@echo "make bench        timings, as JSON"
	@echo "make gallery      the README's pictures, by the model inside the package"
	@echo "make docs         the documentation, in site/: open site/index.html (no network once its tools are there)"
	@echo "make clean        what demo and the tools wrote; not the environment"

setup: $(STAMP)

# Made again where a requirement changed. An environment that is there already is kept and brought up to date.
$(STAMP): pyproject.toml $(CONSTRAINTS)
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit("diffkit needs Python 3.11 or newer; try: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c $(CONSTRAINTS) -e '.[dev]'
	@touch $@

demo: setup
	$(BIN)/diffkit train --out $(DEMO)
	$(BIN)/diffkit sample $(DEMO) --class 0,1,2,3,4,5,6,7,8,9 -n 50 --guidance 2 --out $(DEMO)/demo
	@echo
	@echo "The digits that the network drew:   $(DEMO)/demo/"
	@echo "How they came about while training: $(DEMO)/samples/"
	@echo "The loss, and the model's card:     $(DEMO)/loss.png, $(DEMO)/README.md"
	@echo "More: $(BIN)/diffkit sample $(DEMO) --class 7 -n 16 --guidance 2 --gif"

# One thread in each process: two workers with all cores' threads each would slow one another down.
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test: setup
	$(PYTEST)

test-slow: setup
	$(PYTEST) -m slow

# In an environment of its own. Meant for the lowest Python too, 3.11: not all of these versions have wheels for a newer one.
test-floors:
	$(MAKE) test VENV=.venv-floors CONSTRAINTS=constraints-floors.txt

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST)

bench: setup
	$(BIN)/python benchmarks/startup.py

gallery: setup
	$(BIN)/python docs/gallery.py

docs: $(VENV)/.diffkit-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --clean
	@echo "site/index.html"

$(VENV)/.diffkit-docs: $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c $(CONSTRAINTS) -e '.[docs]'
	@touch $@

clean:
	rm -rf $(DEMO) build dist site .pytest_cache .mypy_cache .ruff_cache
