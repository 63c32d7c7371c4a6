# Needs make and Python 3.11 to 3.13 with venv. Everything is installed into .venv, nothing outside it.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo bench test test-all lint format clean

VENV := .venv
BIN := $(VENV)/bin
CORE := $(VENV)/core.installed
TEST := $(VENV)/test.installed
PEERS := $(VENV)/peers.installed
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet --progress-bar off -c constraints.txt
# A file's tests stay together, as do the models they share.
IN_TWO := --numprocesses=2 --dist=loadfile
IN_RANGE := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))

help: ## say what there is to make
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 18

demo: $(CORE) ## fetch, pretrain, fine-tune, evaluate, export, verify, serve, query
	@$(BIN)/python run.py demo

bench: $(PEERS) ## measure speed beside transformers, PyTorch, KerasHub, ONNX Runtime and OpenVINO
	@$(BIN)/python -m benchmarks.speed

test: lint ## lint, import contracts and all but the slow tests
	@$(BIN)/python -m pytest $(IN_TWO)

test-all: lint ## the same with the slow tests
	@$(BIN)/python -m pytest $(IN_TWO) -m "slow or not slow"

lint: $(TEST) ## ruff and the import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports

format: $(TEST) ## let ruff put the code in order
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean: ## remove .venv and every cache, keep runs/, exported/ and data/
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are written last, so an interrupted step is done again.
$(VENV)/created:
	@python=; for name in $(or $(PYTHON),python3 python3.11 python3.12 python3.13); do \
	    if "$$name" -c '$(IN_RANGE)' 2>/dev/null; then python=$$name; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	    echo "No Python 3.11, 3.12 or 3.13 found. On Debian: apt install python3 python3-venv, or make PYTHON=/path/to/python" >&2; exit 1; \
	fi; \
	if ! "$$python" -c 'import venv, ensurepip' 2>/dev/null; then \
	    echo "$$python has no venv. On Debian: apt install python3-venv" >&2; exit 1; \
	fi; \
	echo "Creating $(VENV) with $$("$$python" --version)"; \
	"$$python" -m venv --clear $(VENV)
	@touch $@

$(CORE): $(VENV)/created setup.cfg pyproject.toml constraints.txt
	@echo "Installing keras_bert_app into $(VENV) (about 2 GB, a few minutes the first time)"
	@$(INSTALL) -e .
	@touch $@

$(TEST): $(CORE)
	@echo "Installing what the tests need"
	@$(INSTALL) -e '.[test]'
	@touch $@

$(PEERS): $(CORE)
	@echo "Installing what speed is measured beside"
	@$(INSTALL) -e '.[peers]'
	@touch $@
