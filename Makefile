# Every target sets up what it needs, once. `make study` and `make test` are all that a fresh machine needs.
PYTHON ?= python3
SCALE ?= quick
DATASET ?=
OUT ?= runs/study-$(SCALE)
ONLY ?=
# How many artifacts of the study are computed at a time. Empty: one per core.
WORKERS ?=
MODEL ?=
# Which tests `make test-all` runs, by their markers (see pyproject.toml).
TESTS ?= not reference
# The address of a package index that holds the PyTorch build you want (PyTorch publishes one per CPU and CUDA
# version). Empty: whatever the default index gives, which on Linux is a CUDA build of several gigabytes.
TORCH_INDEX ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
EXTRAS := .venv-extras/bin/python -m pip --disable-pip-version-check install --quiet
PEERS := .venv-peers/bin/python -m pip --disable-pip-version-check install --quiet

.PHONY: study play test test-all test-extras lint site audit release bench reference clean help
.DEFAULT_GOAL := help

help:  ## show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

study: .venv/.ready  ## run the study and write its report (SCALE=smoke|quick|medium|paper|full DATASET= ONLY="E1 E2" OUT= WORKERS=)
	$(BIN)/casemate study --scale $(SCALE) --out $(OUT) $(if $(DATASET),--dataset $(DATASET)) $(if $(ONLY),--only $(ONLY)) $(if $(WORKERS),--workers $(WORKERS))

play: .venv/.ready-play  ## show the playground in the browser (PORT=)
	$(BIN)/casemate play $(if $(PORT),--port $(PORT))

test: .venv/.ready-dev  ## run the quick tests: units, oracles, properties, one small study (about 10 minutes on 2 cores)
	$(BIN)/python -m pytest

test-all: .venv/.ready-dev  ## run all tests: also kills, wheels, whole studies, programs of their own
	$(BIN)/python -m pytest -m '$(TESTS)'

test-extras: .venv-extras/.ready  ## test models of other formats: ONNX, timm, Hugging Face, Keras (6 GB)
	.venv-extras/bin/python -m pytest -rs -m "extras and not slow"

lint: .venv/.ready-dev  ## check style, types, which module imports which, and the words
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/basedpyright
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/python tools/vocabulary.py

site: .venv/.ready-dev  ## build the site of the documentation into build/site/html
	$(BIN)/python tools/site.py

audit: .venv/.ready-dev  ## compare the pinned versions with published vulnerabilities (needs a network)
	$(PIP) pip-audit
	$(BIN)/python -m pip_audit --no-deps --disable-pip --requirement constraints.txt

release: .venv/.ready-dev  ## build sdist and wheel into dist/ and check them (CANDIDATE=1: also where the changelog has no date)
	$(PIP) --editable '.[release]'
	$(BIN)/python tools/release.py $(if $(CANDIDATE),--candidate)

reference: .venv/.ready-dev .venv-peers/.ready  ## compare FGSM and BIM with torchattacks and Foolbox (MODEL=checkpoint)
	$(if $(MODEL),$(BIN)/python benchmarks/peers/compare.py --model $(MODEL),$(BIN)/python -m pytest -m reference)

bench: .venv/.ready-dev .venv-peers/.ready  ## race other libraries and the machine's limit (AUTOATTACK_SRC=clone), write docs/performance.md
	-$(BIN)/python benchmarks/speed/bench.py
	$(BIN)/python benchmarks/speed/page.py

campaign: .venv/.ready-dev  ## break what can break: kills, full disks, damaged files, wrong clocks, visitors (QUICK=1 SEED=), write docs/reliability.md
	$(BIN)/python -m benchmarks.campaign $(if $(QUICK),--quick) $(if $(SEED),--seed $(SEED))

clean:  ## remove the environments and run outputs (the store of results, outside the checkout, stays)
	rm -rf .venv .venv-peers .venv-extras runs dist build .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "casemate needs Python 3.11 or newer; try make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv .venv || { echo "Python's venv module is missing; on Debian: apt-get install python3-venv" >&2; exit 2; }
	@touch $@

.venv/.ready: .venv/.python pyproject.toml constraints.txt
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$$(grep '^torch==' constraints.txt)"
	$(PIP) --editable '.[study,fast,tables]'
	@touch $@

.venv/.ready-play: .venv/.ready
	$(PIP) --editable '.[play]'
	@touch $@

.venv/.ready-dev: .venv/.ready
	$(PIP) --editable '.[dev]'
	@touch $@

# The pair of PyTorch and torchvision that fit each other; onnx2torch and timm need the latter.
.venv-extras/.ready: .venv/.python pyproject.toml
	$(PYTHON) -m venv .venv-extras
	$(EXTRAS) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.14.1 torchvision==0.29.1
	$(EXTRAS) --editable '.[onnx,timm,hf,keras,study,tables,fast,dev]'
	@touch $@

.venv-peers/.ready: .venv/.python benchmarks/peers/constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv-peers
	$(PEERS) --constraint benchmarks/peers/constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$$(grep '^torch==' benchmarks/peers/constraints.txt)"
	$(PEERS) --no-deps -r benchmarks/peers/constraints.txt
	$(PEERS) --no-deps --editable .
	@touch $@
