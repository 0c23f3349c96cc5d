# `make demo` and `make test` need only git, Python 3.11+ and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-core test-compiled lint compile pure bench bench-tools clients companions clean

# The interpreter is recorded, so that a newer pyproject.toml or another Python installs again.
$(VENV)/.installed-demo: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("SOLLOL needs Python 3.11 or newer: make PYTHON=python3.11 ...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[index]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-demo
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: $(VENV)/.installed-demo
	$(BIN)/sollol demo

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/basedpyright

# Plain Python: a compiled module would hide later edits.
test: pure lint
	$(BIN)/pytest

# The scheduler and its policies alone, in virtual time: a few seconds.
test-core: $(VENV)/.installed-dev
	$(BIN)/pytest -m 'not thorough' tests/core tests/policies tests/workload

# Compile the hot modules in place; `make pure` goes back to plain Python.
compile: $(VENV)/.installed-dev
	$(BIN)/python hatch_build.py

# The same tests against the compiled code.
test-compiled: compile
	$(BIN)/pytest; status=$$?; $(MAKE) --silent pure; exit $$status

pure:
	find src -name '*.so' -delete

bench: $(VENV)/.installed-dev
	$(BIN)/python -m bench

# nginx, Caddy and wrk from Debian's packages, the LiteLLM proxy in an environment of its own.
bench-tools:
	@if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
	  apt-get update -qq && apt-get install -y -qq nginx-light caddy wrk util-linux; \
	else echo "nginx, caddy and wrk are installed by root on Debian; without them their rows are marked as missing"; fi
	$(PYTHON) -m venv .venv-litellm
	.venv-litellm/bin/python -m pip install --quiet --disable-pip-version-check 'litellm[proxy]'

# Programs for SOLLOL 0.9 from the package index, over simulated nodes, in the folder .companions.
companions: $(VENV)/.installed-dev
	$(BIN)/python tools/companions.py

# Compare the answers that other clients get through the gateway with those from a node.
clients: $(VENV)/.installed-dev
	$(PYTHON) -m venv .venv-clients
	.venv-clients/bin/python -m pip install --quiet --disable-pip-version-check litellm llama-index-core \
	  llama-index-llms-ollama llama-index-embeddings-ollama llama-index-llms-openai-like llama-index-embeddings-openai-like
	@if command -v npm >/dev/null; then npm install --prefix .npm-clients --no-save --no-audit --no-fund --silent ollama openai; \
	else echo "npm is not installed; without it its client is skipped"; fi
	$(BIN)/python -m tests.clients
	$(BIN)/python -m tests.clients.ollama_suite

clean: pure
	rm -rf .venv-litellm .venv-clients .npm-clients $(VENV) .mypy_cache .ruff_cache .pytest_cache dist build
