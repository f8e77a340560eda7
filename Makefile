# A machine needs Python 3.11 or newer, with pip and venv, and make. Everything else is installed under .venv,
# and the small model is made under .models.

PORT ?= 8000
HOST ?= 127.0.0.1
SMOLLM2 := .models/SmolLM2-135M-Instruct
EXAMPLE := examples/smollm2.yaml
SERVICE ?= $(EXAMPLE)
# A worker without a service.yaml, when one of these is given.
MODEL ?=
ARGS ?=
PYTEST_ARGS ?=
# Two files at a time, the long ones first; one after the other where they would share a GPU.
PYTEST_WORKERS ?= $(if $(shell command -v nvidia-smi),0,2)
# OpenMP's threads would spin while they wait, and take the cores from the other processes of a test.
export OMP_WAIT_POLICY ?= PASSIVE

# The first of these that is new enough makes the environment.
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)
BIN := .venv/bin
INSTALLED := .venv/installed

.DELETE_ON_ERROR:
.PHONY: help environment model serve test e2e bench lint clean

help: ## This list.
	@echo "make serve   a small real model on this machine, from nothing (PORT=$(PORT) HOST=$(HOST) SERVICE=$(SERVICE))"
	@echo "             or a worker for MODEL=DIR with ARGS='--max-seq-len 4096', without a service.yaml"
	@echo "make test    every test that needs neither a GPU nor a cluster (PYTEST_ARGS='-k NAME')"
	@echo "make e2e     the tests against the cluster of KUBECONFIG"
	@echo "make bench   measure: on a GPU the standard set beside its floor and other engines (MODEL=Qwen3-14B ARGS=...)"
	@echo "make lint    formatting, lint, types, the order of imports"
	@echo "make model   only the small model, in $(SMOLLM2)"
	@echo "make clean   remove what was installed and made"

environment: $(INSTALLED)

# The stamp is written last: an installation that was interrupted is taken up again.
$(INSTALLED): pyproject.toml requirements.lock
	@test -n "$(PYTHON)" || { echo "make: error: Python 3.11 or newer is needed; name it with PYTHON=..." >&2; exit 1; }
	@echo "environment: installing into .venv with $$($(PYTHON) --version) (two minutes the first time)"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { rm -rf .venv && $(PYTHON) -m venv .venv; }
	@$(BIN)/python -m pip install --disable-pip-version-check -c requirements.lock -e '.[worker,operator,dev]'
	@touch $@

model: $(INSTALLED)
	@$(BIN)/python examples/smollm2.py $(SMOLLM2)

# A given MODEL must exist, or be an id on the Hugging Face Hub; the small one is made where it is what is served.
DIRECT := $(strip $(MODEL)$(ARGS))
serve: $(INSTALLED) $(if $(DIRECT),$(if $(MODEL),,model),$(if $(filter $(EXAMPLE),$(SERVICE)),model))
	@exec $(if $(DIRECT),\
		$(BIN)/python -m minisgl --model '$(or $(MODEL),$(SMOLLM2))' --host $(HOST) --port $(PORT) $(ARGS),\
		$(BIN)/minisgl-operator local -f '$(SERVICE)' --host $(HOST) --port $(PORT))

test: $(INSTALLED) model
	@$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

# Needs KUBECONFIG of a cluster for tests; tests/e2e/conftest.py says what else, tests/e2e/kind how to get one.
e2e: $(INSTALLED)
	@$(BIN)/python -m pytest tests/e2e $(PYTEST_ARGS)

# Without MODEL: Qwen3-0.6B's dimensions on a GPU, else the small model.
bench: $(INSTALLED) $(if $(MODEL)$(shell command -v nvidia-smi),,model)
	@$(BIN)/python -m bench suite --model '$(MODEL)' $(ARGS)

lint: $(INSTALLED)
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check
	$(BIN)/python -m mypy
	$(BIN)/lint-imports

clean:
	rm -rf .venv .models .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache \
		build dist *.egg-info worker/*.egg-info
	find worker operator tests bench examples -name __pycache__ -type d -prune -exec rm -rf {} +
