# kdflow-lab: `make` lists what there is to do. Everything runs in .venv, which `make venv` builds.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH = $(shell sed -n 's/^\(torch==[^ ;]*\).*/\1/p' constraints.txt)
PIP = $(BIN)/python -m pip --disable-pip-version-check install --quiet
QUIETLY = scripts/quietly
# SGLang on the CPU, where there is no GPU: `make venv SGLANG=no` leaves it out.
SGLANG ?= $(if $(wildcard /dev/nvidia0),no,$(if $(filter Linux,$(shell uname -s)),yes,no))
SGLANG_PINS := kdflow_lab/teacher/sglang/requirements-cpu.txt
LAB_ROOT = $(if $(filter 0,$(shell id -u)),--allow-root)

.DEFAULT_GOAL := help
.PHONY: help venv demo lab test check bench soak clean

help: ## list the commands
	@sed -n 's/^\([a-z]*\):.*## /\1:/p' Makefile | awk -F: '{printf "make %-6s %s\n", $$1, $$2}'

venv: $(STAMP) ## create .venv and install everything into it (once)
$(STAMP): pyproject.toml constraints.txt $(SGLANG_PINS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "kdflow-lab needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Pass another one: make venv PYTHON=python3.12")'
	@$(QUIETLY) "Creating $(VENV)" $(PYTHON) -m venv $(VENV)
	@$(QUIETLY) "Installing $(TORCH) (about a minute)" $(PIP) -c constraints.txt $(TORCH)
	@$(QUIETLY) "Installing kdflow-lab and its tools (about a minute)" $(PIP) -c constraints.txt -e '.[dev]'
ifeq ($(SGLANG),yes)
	@$(QUIETLY) "Installing $$(grep '^sglang==' $(SGLANG_PINS)) for the CPU, without its CUDA packages" $(PIP) --no-deps -r $(SGLANG_PINS)
endif
	@touch $@

demo: venv ## run the quickstart notebook headless, results under out/
	@$(BIN)/python scripts/demo.py $(ARGS)

lab: venv ## open JupyterLab on the notebooks (this machine only)
	@$(BIN)/jupyter-lab --ServerApp.ip=127.0.0.1 --ServerApp.root_dir=notebooks \
		--LabApp.default_url=/lab/tree/01_quickstart.ipynb $(LAB_ROOT) $(ARGS)

test: venv ## run all tests; ARGS="tests/unit -k ring" narrows them
	@$(BIN)/python scripts/install_browser.py || [ $$? -eq 3 ]
	@$(BIN)/python -m pytest $(ARGS)

check: venv ## what CI checks beside the tests: style, types, imports, the wheel
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(QUIETLY) "Checking types" $(BIN)/pyright --warnings
	@$(BIN)/python -m pytest -q tests/unit/test_imports.py
	@$(BIN)/python scripts/check_wheel.py

bench: venv ## run benchmarks/*.py; each prints one JSON object last
	@$(BIN)/python scripts/bench.py $(ARGS)

soak: venv ## kill, stop and starve short runs at random; ARGS="--faults 200 --seed 1"
	@$(BIN)/python scripts/soak.py $(ARGS)

clean: ## delete out/, dist/ and caches (.venv and your runs stay)
	@rm -rf out dist build .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
