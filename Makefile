# `make demo` and `make test` need a Python >= 3.10 and nothing else; both make their own .venv.
#
#   PYTHON=python3.12   which Python to make .venv with (default: the first one >= 3.10 found)
#   TORCH_INDEX=URL     a further index to take torch from, for instance PyTorch's own of CPU builds
#   OUT=DIR             where `make demo` writes
#   ARGS="-k images"    further arguments for `make test`
#   TRANSFORMERS=DIR    a clone of transformers for `make peer-tests`

PYTHON ?=
VENV ?= .venv
OUT ?= vlmflow-demo
ARGS ?=
TORCH_INDEX ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
DECLARED := pyproject.toml constraints.txt
LMMS_VENV := build/lmms-eval-venv
LMMS_PIP := $(LMMS_VENV)/bin/python -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.PHONY: help demo test hard-tests peer-tests lmms-eval lint format docs

help:
	@echo "make demo         explain one answer of the bundled model and write $(OUT)/report.html"
	@echo "make test         run the tests"
	@echo "make hard-tests   run all hard tests, of which 'make test' runs a part"
	@echo "make peer-tests   run transformers' own tests of generation inside a truncation that keeps all"
	@echo "make lmms-eval    run a task of lmms-eval end to end, in an environment of its own (2.4 GB)"
	@echo "make lint         check format, lint and types"
	@echo "make format       put the code in format"
	@echo "make docs         build the documentation into build/site (needs Python 3.11 or newer)"

demo: $(VENV)/.installed-core
	$(BIN)/vlmflow demo --out "$(OUT)"

# One process more than cores, since some wait for browsers and servers, each with one thread: torch
# gains nothing from more on tests' models.
test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $$(($$(getconf _NPROCESSORS_ONLN) + 1)) --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

hard-tests: $(VENV)/.installed-test
	VLMFLOW_HARD_TESTS=all $(BIN)/python -m pytest tests/hard tests/app tests/studies/test_ray.py tests/scenes/test_bundled_model.py $(ARGS)

peer-tests: $(VENV)/.installed-test
	@test -n "$(TRANSFORMERS)" || { echo "Name a clone of transformers: make peer-tests TRANSFORMERS=DIR" >&2; exit 2; }
	@$(PIP) install parameterized
	$(BIN)/python benchmarks/peer_tests.py "$(TRANSFORMERS)"

lmms-eval: $(LMMS_VENV)/.installed
	OMP_NUM_THREADS=1 $(LMMS_VENV)/bin/python benchmarks/lmms_eval/check.py build/lmms-eval

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict src

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-docs
	$(BIN)/python -m docsite.build

# One stamp per set of extras: a second run installs nothing until the declarations change.
$(VENV)/.installed-core: EXTRAS :=
$(VENV)/.installed-test: EXTRAS := [test]
$(VENV)/.installed-dev: EXTRAS := [dev]
$(VENV)/.installed-docs: EXTRAS := [docs]

# torch goes first and by its pin alone, so that no range of another package picks its build.
$(VENV)/.installed-%: $(DECLARED) | $(BIN)/python
	@echo "Installing vlmflow$(EXTRAS) into $(VENV); torch is large, so the first time takes a while."
	@$(PIP) install $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -c constraints.txt torch
	@$(PIP) install -c constraints.txt --editable ".$(EXTRAS)"
	@touch $@

# lmms-eval asks for other versions than ours of much that it brings along, so that only what answers
# is pinned, and filelock, of which it imports a module that 4.3.1 does not have any more. It also
# brings a torchvision that does not fit every build of torch; ours needs none.
$(LMMS_VENV)/.installed: $(DECLARED) | $(BIN)/python
	@echo "Installing lmms-eval and vlmflow into $(LMMS_VENV): 2.4 GB."
	@$(BIN)/python -m venv --clear $(LMMS_VENV)
	@grep -E '^(torch|transformers|tokenizers|numpy|pillow|pandas|pyarrow|filelock)==' constraints.txt > $(LMMS_VENV)/pins.txt
	@$(LMMS_PIP) install $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -c constraints.txt torch
	@$(LMMS_PIP) install -c $(LMMS_VENV)/pins.txt lmms-eval==0.7.3 --editable .
	@$(LMMS_PIP) uninstall --yes torchvision timm
	@touch $@

$(BIN)/python:
	@for python in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11 python3.10); do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then \
	    echo "Making $(VENV) with $$("$$python" --version)"; \
	    "$$python" -m venv --clear "$(VENV)" && exit 0; \
	    rm -rf "$(VENV)"; \
	    echo "$$python cannot make a virtual environment; on Debian: apt install python3-venv" >&2; \
	    exit 1; \
	  fi; \
	done; \
	echo "vlmflow needs Python 3.10 or newer; $(or $(PYTHON),python3) here is:" \
	  "$$($(or $(PYTHON),python3) --version 2>&1 || echo missing)." >&2; \
	echo "Install a newer one, or name it: make demo PYTHON=/path/to/python3.12" >&2; \
	exit 1
