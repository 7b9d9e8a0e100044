# make demo    movies to map on simulated data: sets everything up, runs the tiny benchmark, writes demo/report.html
# make test    sets everything up and runs all tests
# make lint    ruff and mypy
# make bench   how long imports take; benchmarks/NOTES.md has the commands of the other measurements
# make docs    one page a job type, from the declarations

PYTHON ?= python3
# a worker a core, four at most, each with whole files; PYTEST_ARGS= runs them one after another
PYTEST_ARGS ?= -n auto --maxprocesses 4 --dist loadscope --no-loadscope-reorder
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint bench docs clean

demo: $(READY)
	$(BIN)/verglas bench aldolase --tier tiny --out demo

test: $(READY) relion
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(READY)
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python benchmarks/import_time.py

docs: $(READY)
	$(BIN)/python docs/make_job_pages.py

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# RELION is a peer in the interoperability tests: they are skipped, with the reason, where it cannot be installed.
.PHONY: relion
relion:
	@command -v relion_refine >/dev/null || \
	  { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && \
	    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends relion >/dev/null; } || \
	  echo "RELION is not installed: its interoperability tests will be skipped"

clean:
	rm -rf $(VENV) demo build dist src/*.egg-info .pytest_cache .ruff_cache .mypy_cache
