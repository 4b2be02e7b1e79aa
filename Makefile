# Everything here sets up what it needs first: a virtual environment in .venv, the pinned packages,
# the build.

VENV := .venv
BUILD := build
WERROR ?= OFF
CUDA ?= AUTO
CUDA_ARCHITECTURES ?= 80;90a
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
ARGS ?=

BIN := $(VENV)/bin
RUN := $(BIN)/python
PROGRAM := PYTHONPATH=. $(RUN)
CMAKE := PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/cmake
CONFIGURE := $(CMAKE) -G Ninja -S . -B $(BUILD) -DPython_EXECUTABLE="$(CURDIR)/$(RUN)" \
	-DTORCH_EXT_WERROR=$(WERROR) -DTORCH_EXT_CUDA=$(CUDA) \
	-DTORCH_EXT_CUDA_ARCHITECTURES="$(CUDA_ARCHITECTURES)"
DEPS := .deps
PACKAGES := $(VENV)/.requirements
LINTERS := $(VENV)/.requirements-dev
PEERS := $(VENV)/.requirements-bench
# Python's headers, where the system package was unpacked rather than installed.
INCLUDE := $(CURDIR)/$(DEPS)/usr/include
WITH_HEADERS := CPLUS_INCLUDE_PATH="$(INCLUDE):$$(echo "$(INCLUDE)"/python3*)"
CPP_FILES = $(shell find csrc tests/cpp examples benchmarks -name '*.cpp' -o -name '*.h')
TIDY_FILES = $(shell find csrc -name '*.cpp')
PYTHON_FILES := setup.py cmake tools torch_ext tests examples benchmarks

.DEFAULT_GOAL := help
.PHONY: help train context derivatives test bench bench-check bench-readme tune gpu gpu-docs build \
	registers sanitize lint format tidy wheel clean another-python

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-18s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo 'Variables, as in: make train OUT=runs/short ARGS="--steps 100"'
	@echo '  ARGS    options of the program that the target runs; ARGS=--help lists them'
	@echo '  OUT     folder for what make train or make gpu makes (runs/language_model, runs/gpu)'
	@echo '  PYTHON  interpreter for $(VENV), 3.10 to 3.13 (the first such that is found)'
	@echo '  CXX     C++ compiler (c++); after another one: make clean'
	@echo '  JOBS    files to compile, or tests to run, at once ($(JOBS))'
	@echo '  WERROR  ON: a warning in the C++ code is an error ($(WERROR))'
	@echo '  CUDA    kernels for GPUs: ON, OFF, or AUTO, where there is nvcc ($(CUDA))'
	@echo '  CUDA_ARCHITECTURES  what these are compiled for ($(CUDA_ARCHITECTURES))'

# ---- Set-up ------------------------------------------------------------------

# A PYTHON of another version than the one in .venv calls for another .venv.
version_of = $(shell "$(1)" -c 'import sys; print(sys.version_info[:2])' 2> /dev/null)
ifneq ($(PYTHON),)
ifneq ($(call version_of,$(PYTHON)),$(call version_of,$(RUN)))
$(PACKAGES): another-python
endif
endif

$(PACKAGES): requirements.txt
	@PYTHON="$(PYTHON)" tools/set_up.sh $(VENV) requirements.txt
	@touch $@

$(LINTERS): requirements-dev.txt $(PACKAGES)
	@PYTHON="$(PYTHON)" tools/set_up.sh $(VENV) requirements-dev.txt
	@touch $@

$(PEERS): requirements-bench.txt $(PACKAGES)
	@PYTHON="$(PYTHON)" tools/set_up.sh $(VENV) requirements-bench.txt && touch $@ || true

# Configured each time, in a second or two: torch or WERROR may be another.
build: $(PACKAGES) ## build torch_ext/libtorch_ext.so
	@$(CONFIGURE)
	@$(CMAKE) --build $(BUILD) --parallel $(JOBS) --target torch_ext

# ---- What it is for ----------------------------------------------------------

# train.py leaves with 1 where it saved a model that is not good enough, with more where it saved none.
train: OUT ?= runs/language_model
train: build ## train the language model, then run it in C++ without Python
	@$(CMAKE) --build $(BUILD) --parallel $(JOBS) --target generate
	@$(if $(findstring --out,$(ARGS)),$(error the folder is named by OUT, not in ARGS))
	@status=0; set -x; \
		$(PROGRAM) examples/language_model/train.py --out "$(OUT)" $(ARGS) || status=$$?; \
		[ $$status -le 1 ] || exit $$status; \
		$(if $(filter -h --help,$(ARGS)),exit $$status;) \
		$(BUILD)/generate "$(OUT)/model.pt" torch_ext/libtorch_ext.so || status=1; \
		exit $$status

context: build ## train the example in which context decides meaning
	$(PROGRAM) examples/context/train.py $(ARGS)

derivatives: build ## train with a gradient penalty, against PyTorch's math path
	$(PROGRAM) examples/second_derivatives/train.py $(ARGS)

# Peers that do not install are left out, and flex_attention where Python's headers are missing.
bench: build $(PEERS) ## measure against scaled_dot_product_attention and others
	@tools/find_python_headers.sh $(RUN) $(DEPS) || true
	$(WITH_HEADERS) $(PROGRAM) -m benchmarks.run $(ARGS)

bench-check: build ## look for ratios that fell below the stored ones
	$(PROGRAM) -m benchmarks.check $(ARGS)

tune: build ## try other numbers than those of csrc/cpu/choices.h
	$(PROGRAM) -m benchmarks.tune $(ARGS)

bench-readme: $(PACKAGES) ## write the README's performance section from runs/benchmark
	$(PROGRAM) -m benchmarks.readme $(ARGS)

# With the Python and the torch that the machine has, not those of .venv.
gpu: OUT ?= runs/gpu
gpu: ## on a machine with a GPU: build, test and measure with its own Python and torch
	@$(if $(findstring --out,$(ARGS)),$(error the folder is named by OUT, not in ARGS))
	"$(or $(PYTHON),python3)" -m benchmarks.gpu --out "$(OUT)" $(ARGS)

gpu-docs: $(PACKAGES) ## write the measurements of docs/cuda.md from runs/gpu
	$(PROGRAM) -m benchmarks.gpu.docs $(ARGS)

# The Python tests run in several processes, each with threads of its own; with ARGS, which mostly name
# a few tests, in one.
test: TESTS = $(or $(ARGS),--numprocesses $(JOBS) --maxprocesses 8 --dist worksteal)
test: $(PACKAGES) ## run every test, C++ and Python (ARGS go to pytest)
	@tools/find_googletest.sh $(DEPS)
	@tools/find_python_headers.sh $(RUN) $(DEPS)
	@$(CONFIGURE) -DTORCH_EXT_TESTS=ON -DCMAKE_PREFIX_PATH="$(CURDIR)/$(DEPS)/usr"
	@$(CMAKE) --build $(BUILD) --parallel $(JOBS) --target all --target generate
	@status=0; set -x; \
		$(BIN)/ctest --test-dir $(BUILD) --parallel $(JOBS) --output-on-failure \
			--no-tests=error || status=1; \
		$(WITH_HEADERS) $(RUN) -m pytest $(TESTS) || status=1; \
		exit $$status

# ---- For contributors --------------------------------------------------------

registers: build ## list the registers of the CUDA kernels; fail where they do not suffice
	$(RUN) tools/check_spills.py --list $(BUILD)

sanitize: $(PACKAGES) ## run the CUDA kernels on the CPU under address and undefined sanitizers
	@tools/find_googletest.sh $(DEPS)
	@$(CONFIGURE) -B $(BUILD)/sanitize -DTORCH_EXT_CUDA=OFF -DTORCH_EXT_TESTS=ON \
		-DTORCH_EXT_SANITIZE=ON -DCMAKE_PREFIX_PATH="$(CURDIR)/$(DEPS)/usr"
	@$(CMAKE) --build $(BUILD)/sanitize --parallel $(JOBS) --target cuda_tests
	$(BIN)/ctest --test-dir $(BUILD)/sanitize --tests-regex cuda_tests --parallel $(JOBS) \
		--output-on-failure --no-tests=error

lint: $(LINTERS) ## check formatting, style and types
	$(BIN)/ruff check $(PYTHON_FILES)
	$(BIN)/ruff format --check $(PYTHON_FILES)
	$(BIN)/clang-format --dry-run -Werror $(CPP_FILES)
	$(BIN)/mypy

format: $(LINTERS) ## format all files
	$(BIN)/ruff check --fix-only $(PYTHON_FILES)
	$(BIN)/ruff format $(PYTHON_FILES)
	$(BIN)/clang-format -i $(CPP_FILES)

tidy: build $(LINTERS) ## let clang-tidy look at the C++ sources (minutes)
	$(BIN)/clang-tidy --quiet -p $(BUILD) $(TIDY_FILES)

wheel: $(PACKAGES) ## make a wheel in dist/ that says which torch it is for
	PATH="$(CURDIR)/$(BIN):$$PATH" $(RUN) -m pip wheel --no-build-isolation --no-deps --wheel-dir dist .

clean: ## remove everything built; the virtual environment and runs stay
	rm -rf $(BUILD) dist $(DEPS) *.egg-info torch_ext/libtorch_ext.so torch_ext/_built_for.py
