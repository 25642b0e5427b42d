# make study: set everything up and run the main job.  make test: set everything up and pass the tests.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
READY_DEV := .venv/.ready-dev
DEFAULT := examples/tickets

.PHONY: study test check docs format clean

study: $(READY) $(DEFAULT)/tickets.csv
	$(BIN)/leanwatt run $(DEFAULT)/study.yaml

test: check

check: $(READY_DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --skip-covered
	$(MAKE) docs

# The documentation as a site in build/site; a broken link stops it.
docs: $(READY_DEV)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

format: $(READY_DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(DEFAULT)/tickets.csv: | $(READY)
	$(BIN)/leanwatt simulate $@

# torch comes first and by its exact version: where a CPU build is at hand it is taken, and no CUDA is pulled.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'leanwatt needs Python 3.11 or newer; use make PYTHON=...')"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(READY_DEV): $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf .venv runs build dist .coverage* .mypy_cache .pytest_cache .ruff_cache
