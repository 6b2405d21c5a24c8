# Everything a person, a cluster or CI types. `make help` lists it.
.DEFAULT_GOAL := help
.PHONY: help run lab lab-test report docs test test-processors rehearse test-slurm test-mutations test-faults test-fuzz lock lint clean
SHELL := /bin/bash
# threads that wait without spinning, where several processes share the machine; alone it costs a fifth
report test test-processors .venv/tested: export OMP_WAIT_POLICY ?= PASSIVE

PYTHON ?= python3
DATASET ?= demo
EPOCHS ?= 10
# a run's name: that of the data set
RUN ?= $(shell basename '$(DATASET)' | tr -c 'A-Za-z0-9._\n-' '_')
PROFILE ?= smoke
# jobs at a time; EXECUTOR=slurm makes each a job of the cluster
CORES ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
EXECUTOR ?=
OUT = outputs/05_e2i/$(RUN)
BIN = .venv/bin
# 1: the very versions that CI tests, instead of the newest that settings.ini allows
LOCKED ?=
PINS = $(if $(LOCKED),-c tests/constraints.txt)
# Ctrl-C while pip works
STOPPABLE = trap 'echo "Stopped while installing; the same command goes on, and downloads nothing twice."; exit 130' INT
SOURCES = $(wildcard nbs/*.ipynb nbs/library/*.ipynb nbs/library/*/*.ipynb nbs/*.md nbs/guides/*.md nbs/_site/*.py nbs/params/*.yaml synth_nb/*.py synth_nb/*/*.py tests/*.py *.ini *.py *.toml README*.md) Makefile

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 17
	@echo "Variables of run: DATASET=$(DATASET) EPOCHS=$(EPOCHS) RUN=<name of the data set>; of report: PROFILE=$(PROFILE) CORES=$(CORES) EXECUTOR=$(EXECUTOR); of all: PYTHON=$(PYTHON) LOCKED=$(LOCKED)"

.venv/pip:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else f"synth_nb needs Python 3.11 or newer, $(PYTHON) is {sys.version.split()[0]}: make PYTHON=python3.11 …")'
	@echo "making .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv && touch $@

.venv/notebooks: settings.ini setup.py | .venv/pip
	@$(STOPPABLE); if [ -f .venv/dev ] && [ .venv/dev -nt settings.ini ] && [ .venv/dev -nt setup.py ]; then touch $@; else \
	echo "installing synth_nb and what it needs (a few minutes the first time)" && \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[notebooks]' && touch $@; fi

.venv/dev: settings.ini setup.py | .venv/pip
	@echo "installing synth_nb and what its tests need (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PINS) -e '.[dev]'
	@touch $@

.venv/docs: settings.ini setup.py | .venv/pip
	@if [ -f .venv/dev ] && [ .venv/dev -nt settings.ini ] && [ .venv/dev -nt setup.py ]; then touch $@; else \
	echo "installing synth_nb and what its site needs (a few minutes the first time)" && \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]' && touch $@; fi

run: .venv/notebooks  ## make synthetic tissue: the e2i notebook by papermill, on DATASET for EPOCHS
	@$(BIN)/python -m synth_nb.tools.story 05_e2i '$(OUT)' -p epochs $(EPOCHS) -r run_name '$(RUN)' $(if $(filter-out demo,$(DATASET)),-r dataset '$(DATASET)')

lab: .venv/notebooks  ## JupyterLab on the notebooks
	$(BIN)/jupyter lab --notebook-dir=nbs

.venv/grid: settings.ini setup.py | .venv/pip
	@$(STOPPABLE); if [ -f .venv/dev ] && [ .venv/dev -nt settings.ini ] && [ .venv/dev -nt setup.py ]; then touch $@; else \
	echo "installing synth_nb and what its grids need (a few minutes the first time)" && \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[grid]' && touch $@; fi

report: .venv/grid  ## all experiments of PROFILE (smoke, offline, recommended, reported) and one page about them
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m synth_nb.tools.grid report $(PROFILE) $(CORES) $(EXECUTOR)

docs: .venv/docs  ## the site in _docs/, from the notebooks as they are; warnings are errors
	$(BIN)/sphinx-build -W --keep-going -q -j auto -c nbs/_site nbs _docs
	@echo "open _docs/index.html in a browser"

lab-test: .venv/dev  ## every panel in JupyterLab, in a browser (`make test` tries one)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest tests/test_lab.py --all-panels

lint: .venv/dev  ## notebooks clean, library exported from them, words of the glossary, ruff
	$(BIN)/python tests/drift.py
	$(BIN)/python tests/undefined.py
	$(BIN)/python tests/words.py
	$(BIN)/ruff check .

test: .venv/tested  ## lint, tests in the notebooks, tests in tests/; nothing if nothing changed
	@echo "all tests passed on $$(date -r .venv/tested '+%F %T'), nothing changed since (rm .venv/tested runs them again)"

.venv/tested: $(SOURCES) | .venv/dev
	@$(MAKE) --no-print-directory lint
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tests/run.py
	@touch $@

test-processors: .venv/dev  ## all tests on stand-ins for other processors (hours); SETTINGS="default-1 native-4" for some
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tests/processors.py $(SETTINGS)

test-slurm: .venv/dev  ## jobs cancelled, requeued and two at once on a Slurm of its own; skipped without slurm-wlm and munge
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -q -n0 -rs tests/slurm.py

test-faults: .venv/dev  ## every notebook's training killed 20 times at random moments, each bit for bit (half an hour); ONLY="05_e2i" for some
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tests/faults.py $(ONLY)

rehearse: .venv/dev  ## every profile on the CPU with its true networks and made-up data (hours); ONLY="05_e2i.reported 07_emnist" for some
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tests/rehearse.py $(ONLY)

test-fuzz: .venv/dev  ## damaged inputs for every reader, 10,000 of them (10 minutes); INPUTS=1000 for fewer
	$(BIN)/python tests/fuzz.py $(INPUTS)

test-mutations: .venv/dev  ## plants 87 bugs, one at a time, and says which test catches each (half an hour)
	$(BIN)/python tests/mutations.py

lock: .venv/dev  ## write the versions that are installed, once all tests passed with them, into tests/constraints.txt
	$(BIN)/python -m pip freeze --exclude-editable > tests/constraints.txt

clean:  ## remove .venv and what can be computed again; runs stay
	rm -rf .venv outputs/cache _docs _proc build dist *.egg-info
