# Every target sets up what it needs: Python 3.11 or newer, make and git are enough.
# The first interpreter that runs and is new enough; `make PYTHON=/path/to/python` names another.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && command -v $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
BASE := $(VENV)/.base
STAMP := $(VENV)/.installed
DEMO_OUT ?= demo_out
RESULTS_OUT ?= results_out
BENCHMARKS_OUT ?= benchmarks_out
# Processes that share the tests; each needs a core and 2 GiB. The tests of one file stay together.
TEST_PROCESSES ?= 2
PYTEST = $(BIN)/python -m pytest -q -n $(TEST_PROCESSES) --dist loadfile
SOURCES := src training dataset_builders benchmarks examples reference_checkpoints tests docs/scripts space

.DEFAULT_GOAL := help
.PHONY: help demo test test-all results benchmarks reference-checkpoints docs lint format clean

help:  ## List the targets.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# Done once, and again when the dependencies or the constraints change: what users need, then what developers need.
$(BASE): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed, none was found: make PYTHON=/path/to/python" >&2; exit 1; }
	@echo "Installing into $(VENV): a few minutes."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	@touch $@

$(STAMP): $(BASE)
	@echo "Installing what tests and checks need."
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(BASE)  ## Run the whole path on simulated recordings (DEMO_OUT=folder, at most 5 minutes on two cores).
	$(BIN)/rpnt demo --out $(DEMO_OUT)

test: $(STAMP)  ## Run the fast tests.
	$(PYTEST) -m "not slow and not network and not gpu"

test-all: $(STAMP)  ## Run every test that needs neither the internet nor a GPU.
	$(PYTEST) -m "not network and not gpu"

EVALUATE = $(BIN)/rpnt evaluate $(1) --data $(RESULTS_OUT)/dataset --out $(RESULTS_OUT)/$(1) --recipe tiny --num-proc 2
HELD_OUT := sub-C_ses-CO-20240128

results: $(STAMP)  ## Evaluate every protocol on simulated recordings (RESULTS_OUT=folder; goes on where it stopped).
	test -e $(RESULTS_OUT)/dataset || $(BIN)/rpnt build synthetic --out $(RESULTS_OUT)/dataset --nwb-dir $(RESULTS_OUT)/nwb --bin-size 0.05
	$(call EVALUATE,within-session) --seeds 0 1 2
	$(call EVALUATE,few-shot) --targets $(HELD_OUT) --amounts 8 16 100% --seeds 0 1 2
	$(call EVALUATE,cross-session) --targets $(HELD_OUT) --seeds 0 1 2
	$(call EVALUATE,cross-subject) --targets $(HELD_OUT) --seeds 0 1 2
	$(call EVALUATE,ablation) --targets $(HELD_OUT) --seeds 0 1 2

reference-checkpoints: $(STAMP)  ## Make the checkpoints that travel with the package again (goes on where it stopped).
	$(BIN)/python reference_checkpoints/make.py

benchmarks: $(STAMP)  ## Print ratios of speed and memory (BENCHMARKS_OUT=folder); wants a quiet machine.
	for script in attention training_step streaming loader build import_time; do \
		$(BIN)/python benchmarks/$$script.py --out $(BENCHMARKS_OUT) || exit 1; done

docs: $(STAMP)  ## Build the documentation in build/site; a warning fails it.
	$(BIN)/mkdocs build --strict

lint: $(STAMP)  ## Check style and types.
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

format: $(STAMP)  ## Rewrite the source in the project's style.
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

clean:  ## Remove what the targets made, the virtual environment included.
	rm -rf $(VENV) build dist $(DEMO_OUT) .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
