# The two commands of a newcomer are `make demo` and `make test`. Each creates .venv if it is missing, installs and builds.

VENV ?= .venv
# A shim may stand in for a Python that is not there, so each candidate is asked to run.
PYTHON ?= $(shell for p in python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && { echo $$p; break; }; done)
BIN := $(VENV)/bin
NATIVE := CMakeLists.txt $(wildcard csrc/* kernels/*/*.h kernels/*/*.cpp kernels/*/*.cu kernels/*/*.cuh)
BUILD_TOOLS := setuptools wheel pybind11 ninja cmake

.PHONY: help demo test lint format bench gpu-check clean

help:
	@echo "make demo               animate a portrait; prints where the video and the contact sheet are"
	@echo "make test               every test that this machine can run"
	@echo "make lint               ruff, mypy, clang-format"
	@echo "make bench              the benchmark table; rows go to benchmarks/data"
	@echo "make gpu-check OUT=dir  build, GPU tests, selftest and benchmarks on a machine with a GPU; rows go to dir"
	@echo "make format             let ruff and clang-format rewrite what they can"

demo: $(VENV)/.built
	$(BIN)/fastface animate -o demo/astronaut.mp4 --contact-sheet demo/astronaut.png

test: $(VENV)/.built
	$(BIN)/python -m pytest -n auto $(PYTEST_ARGS)

lint: $(VENV)/.built
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES)

format: $(VENV)/.built
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

bench: $(VENV)/.built
	$(BIN)/python -m fastface bench --csv benchmarks/data

# Runs offline and in whatever environment has torch with CUDA; it makes none of its own.
gpu-check:
	@test -n "$(OUT)" || { echo "usage: make gpu-check OUT=dir"; exit 2; }
	$(or $(GPU_PYTHON),python3) benchmarks/gpu_check.py --out $(OUT)

clean:
	rm -rf build dist *.egg-info fastface/_c*.so fastface/_build_stamp.json

CXX_SOURCES = $(wildcard csrc/*.h csrc/*.cpp csrc/*.cuh kernels/*/*.h kernels/*/*.cpp kernels/*/*.cu kernels/*/*.cuh)

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "fastface needs Python 3.11 or 3.12; set PYTHON=/path/to/it"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.tools: constraints.txt $(BIN)/python
	@$(BIN)/python -m pip install -q --upgrade -c constraints.txt pip $(BUILD_TOOLS)
	@touch $@

$(VENV)/.built: $(VENV)/.tools pyproject.toml setup.py $(NATIVE)
	@echo "installing and building; what pip says goes to $(VENV)/install.log"
	@PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pip install -v --no-build-isolation -c constraints.txt -e ".[dev]" \
		>$(VENV)/install.log 2>&1 || { tail -n 40 $(VENV)/install.log; exit 1; }
	@grep -h "^ *fastface: " $(VENV)/install.log || true
	@touch $@
