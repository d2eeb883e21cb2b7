# Recipes are one line that calls a tool; logic lives in Python. `make run` and `make test` need Python 3.11+ and make.
.DEFAULT_GOAL := help
.PHONY: help setup run test check fmt fmt-check lint types imports proto proto-lint proto-breaking proto-check \
        proto-accept cov e2e faults bench eval ingest migrate audit secrets lock tools clean

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TOOLS := .tools
BUF := tests/support/tools/node_modules/.bin/buf
GRPCURL_VERSION := v1.9.3
GITLEAKS_VERSION := v8.30.1
# How many tests run at once; 0: all in one process, as a debugger wants it.
WORKERS ?= 2
# One test after the other goes to who is free. (Marks of groups do nothing: pytest-xdist 3.8 loses them in pytest 9.2.)
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup
CODE := agent_service edge_api tests deploy examples/orders

help: ## Show this list
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 14) else "Answerdesk needs Python 3.11 to 3.13, %s is %d.%d: make PYTHON=python3.12 ..." % (sys.executable, *v))'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: requirements/run.txt pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/run.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: requirements/dev.txt pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@ $(VENV)/.run

setup: $(VENV)/.dev ## Install everything that developing needs into .venv

run: $(VENV)/.run ## Serve both services with the sample documents until Ctrl-C
	@$(BIN)/python -m deploy.local

ingest: $(VENV)/.run ## Load documents: make ingest DOCS=path/to/folder
	$(BIN)/python -m agent_service ingest $(or $(DOCS),examples/knowledge)

migrate: $(VENV)/.run ## Bring the edge's database (EDGE_DATABASE_URL) to this version's schema
	@$(BIN)/python -m edge_api migrate

test: $(VENV)/.dev ## Unit, contract and integration tests
	$(PYTEST) -m "not e2e and not faults"

cov: $(VENV)/.dev ## The same with branch coverage and its gate
	$(PYTEST) -m "not e2e and not faults" --durations=20 --cov --cov-report=term --cov-report=xml:build/coverage.xml

e2e: $(VENV)/.dev ## Both processes, real clients
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m e2e --durations=20 tests/e2e

faults: $(VENV)/.dev ## Crashes, signals, restarts
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m faults --durations=20 tests/faults

bench: $(VENV)/.dev ## What streams cost, beside a hand-written peer: make bench [BENCH=--quick]
	$(BIN)/python -m tests.bench $(BENCH)

check: fmt-check lint types imports proto-check cov ## What CI runs first

fmt: $(VENV)/.dev ## Format the code
	$(BIN)/ruff format $(CODE)

fmt-check: $(VENV)/.dev ## Is the code formatted?
	$(BIN)/ruff format --check $(CODE)

lint: $(VENV)/.dev ## ruff
	$(BIN)/ruff check $(CODE)

types: $(VENV)/.dev ## mypy, strict
	$(BIN)/mypy

imports: $(VENV)/.dev ## The import contracts
	$(BIN)/lint-imports

proto: $(VENV)/.dev ## Generate protos/gen from protos/answerdesk
	$(BIN)/python -m tests.support.protos generate

proto-check: $(VENV)/.dev ## Is the committed generated code what the protos say?
	$(BIN)/python -m tests.support.protos check

proto-lint: $(BUF) ## buf lint and buf format
	$(BUF) lint
	$(BUF) format --diff --exit-code

proto-breaking: $(BUF) ## Does the contract break clients of the last accepted one?
	$(BUF) breaking --against protos/baseline.binpb

proto-accept: $(BUF) ## Accept the contract as it is now
	$(BUF) build -o protos/baseline.binpb

tools: $(BUF) $(TOOLS)/bin/grpcurl $(TOOLS)/bin/gitleaks ## buf (npm), grpcurl and gitleaks (go), pinned

$(BUF): tests/support/tools/package-lock.json
	npm install --prefix tests/support/tools
	@touch $@

$(TOOLS)/bin/grpcurl:
	GOBIN=$(CURDIR)/$(TOOLS)/bin go install github.com/fullstorydev/grpcurl/cmd/grpcurl@$(GRPCURL_VERSION)

$(TOOLS)/bin/gitleaks:
	GOBIN=$(CURDIR)/$(TOOLS)/bin go install github.com/zricethezav/gitleaks/v8@$(GITLEAKS_VERSION)

audit: $(VENV)/.dev ## Known vulnerabilities in what is locked
	$(BIN)/python -m tests.support.audit requirements/run.txt

secrets: $(VENV)/.dev $(TOOLS)/bin/gitleaks ## Secrets in the tracked files and in every commit
	$(BIN)/python -m tests.support.secret_scan

eval: $(VENV)/.dev ## Quality of routing and abstention: make eval DATA=folder
	$(BIN)/python -m tests.evals.support $(DATA)

lock: $(VENV)/.dev ## Write requirements/*.txt anew from pyproject.toml
	$(BIN)/python -m tests.support.locks

clean: ## Remove environments, data and caches of this folder
	rm -rf $(VENV) $(TOOLS) .data build tests/support/tools/node_modules .mypy_cache .ruff_cache .pytest_cache .coverage*
