# Everything here sets up what it needs first: a virtual environment in .venv, the pinned packages,
# the build.

VENV := .venv
BUILD := build
WERROR ?= OFF
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
ARGS ?=

BIN := $(VENV)/bin
RUN := $(BIN)/python
PROGRAM := PYTHONPATH=. $(RUN)
CMAKE := PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/cmake
DEPS := .deps
PACKAGES := $(VENV)/.requirements
LINTERS := $(VENV)/.requirements-dev
# Python's headers, where the system package was unpacked rather than installed.
INCLUDE := $(CURDIR)/$(DEPS)/usr/include
WITH_HEADERS := CPLUS_INCLUDE_PATH="$(INCLUDE):$$(echo $(INCLUDE)/python3*)"
CPP_FILES = $(shell find csrc tests/cpp examples -name '*.cpp' -o -name '*.h')
PYTHON_FILES := setup.py cmake torch_ext tests examples benchmarks

.DEFAULT_GOAL := help
.PHONY: help train context test bench build lint format tidy wheel clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile
	@echo 'Options reach the program through ARGS, as in: make train ARGS="--steps 100"'

# ---- Set-up ------------------------------------------------------------------

$(PACKAGES): requirements.txt
	@PYTHON="$(PYTHON)" tools/set_up.sh $(VENV) requirements.txt
	@touch $@

$(LINTERS): requirements-dev.txt $(PACKAGES)
	@PYTHON="$(PYTHON)" tools/set_up.sh $(VENV) requirements-dev.txt
	@touch $@

# Ninja looks at the sources and at CMakeLists.txt itself; only another torch needs a new configuration.
$(BUILD)/build.ninja: $(PACKAGES)
	@$(CMAKE) -G Ninja -S . -B $(BUILD) -DPython_EXECUTABLE=$(CURDIR)/$(RUN) \
		-DTORCH_EXT_WERROR=$(WERROR)
	@touch $@

build: $(BUILD)/build.ninja ## build torch_ext/libtorch_ext.so
	@$(CMAKE) --build $(BUILD) --parallel $(JOBS) --target torch_ext

# ---- What it is for ----------------------------------------------------------

train: build ## train the language model, then run it in C++ without Python
	@$(CMAKE) --build $(BUILD) --parallel $(JOBS) --target generate
	@rm -f runs/language_model/model.pt
	@status=0; set -x; \
		$(PROGRAM) examples/language_model/train.py $(ARGS) --out runs/language_model || status=1; \
		[ ! -e runs/language_model/model.pt ] || \
		$(BUILD)/generate runs/language_model/model.pt torch_ext/libtorch_ext.so || status=1; \
		exit $$status

context: build ## train the example in which context decides meaning
	$(PROGRAM) examples/context/train.py $(ARGS)

bench: build ## compare with scaled_dot_product_attention
	$(PROGRAM) benchmarks/compare.py $(ARGS)

test: $(BUILD)/build.ninja ## run every test, C++ and Python (ARGS go to pytest)
	@tools/find_googletest.sh $(DEPS)
	@tools/find_python_headers.sh $(RUN) $(DEPS)
	@$(CMAKE) -S . -B $(BUILD) -DTORCH_EXT_TESTS=ON -DTORCH_EXT_WERROR=$(WERROR) \
		-DCMAKE_PREFIX_PATH=$(CURDIR)/$(DEPS)/usr
	@$(CMAKE) --build $(BUILD) --parallel $(JOBS) --target all --target generate
	@status=0; set -x; \
		$(BIN)/ctest --test-dir $(BUILD) --output-on-failure --no-tests=error || status=1; \
		$(WITH_HEADERS) $(RUN) -m pytest $(ARGS) || status=1; \
		exit $$status

# ---- For contributors --------------------------------------------------------

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
	$(BIN)/clang-tidy --quiet -p $(BUILD) $(wildcard csrc/attention/*.cpp csrc/cpu/*.cpp csrc/ops/*.cpp)

wheel: $(PACKAGES) ## make a wheel in dist/ that says which torch it is for
	PATH="$(CURDIR)/$(BIN):$$PATH" $(RUN) -m pip wheel --no-build-isolation --no-deps --wheel-dir dist .

clean: ## remove everything built; the virtual environment stays
	rm -rf $(BUILD) dist runs $(DEPS) *.egg-info torch_ext/libtorch_ext.so torch_ext/_built_for.py
