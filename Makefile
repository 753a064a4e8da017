# Everything a newcomer needs: `make demo`, `make test`. Needs Python 3.11 or newer and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PYTHONUNBUFFERED = 1

.DEFAULT_GOAL := help
.PHONY: help demo demo-large demo-shell wheel browser test test-slow test-images test-all chaos lint format docs lock audit clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

demo:  ## set everything up and run the whole job on real images (5 to 6 minutes)
	@started=$$(date +%s); $(MAKE) --no-print-directory $(VENV)/demo.installed && \
	DEMO_STARTED=$$started $(BIN)/python -m cluster.demo

demo-large: $(VENV)/demo.installed  ## small defects in large images: solar modules of 1,200 pixels
	@$(BIN)/python -m cluster.large_demo

demo-shell:  ## a shell beside what the demo left, with its S3 server: ask, look, review
	@$(BIN)/python -m cluster.demo --shell

# Only with what is in the sources now: setuptools would pack what an earlier build left.
wheel: $(BIN)/python  ## build dist/fcdd_at_scale-*.whl, which one line of pip installs anywhere
	@rm -rf build dist
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	@rm -rf build
	@ls dist/*.whl

# Pages are tested in a real browser. Where there is none and we may install one, Debian's is.
browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || \
	{ test "$$(id -u)" = 0 && command -v apt-get >/dev/null && echo "installing chromium, for the tests of our pages" && \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; } || \
	echo "note: there is no chromium, so the tests in a browser are skipped; install Debian's package chromium to run them"

PYTEST = $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: browser $(VENV)/test.installed  ## set everything up and run the tests
	$(PYTEST) -m "not slow and not chaos and not images"

test-slow: browser $(VENV)/test.installed  ## the tests that `make test` leaves out: dying processes, clusters, trainings
	$(PYTEST) -m "slow and not chaos and not images"

test-images: $(VENV)/test.installed  ## what the container images install, in an environment of its own (gigabytes)
	$(BIN)/python -m pytest -m images

test-all: test test-slow  ## both

chaos: $(VENV)/test.installed  ## every request of a run failed once with every fault, and random kills (about an hour)
	$(BIN)/python -m pytest -m chaos -s

audit: $(VENV)/dev.installed  ## known holes in what the images install (needs the network)
	$(BIN)/pip-audit --require-hashes --disable-pip --requirement cluster/image/requirements-gpu.txt

lint: $(VENV)/dev.installed  ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/dev.installed  ## format and fix in place
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/dev.installed  ## write docs/options.md and the table of shell completion from the settings classes
	$(BIN)/python -m tests.option_tables > docs/options.md
	$(BIN)/python -m tests.option_tables --completion > jobs/shell/options.json

# What the images hold, to the byte: for GPUs all of it, for CPUs all but torch, which has an index of its own for them, and
# OpenVINO with the default network's weights.
LOCK = $(BIN)/uv pip compile pyproject.toml --quiet --extra aws --extra cluster --generate-hashes --no-header --no-annotate \
	--no-emit-index-url --upgrade --python-version 3.11 --python-platform x86_64-manylinux_2_28

lock: $(VENV)/dev.installed  ## pin anew what the container images install
	$(LOCK) --output-file cluster/image/requirements-gpu.txt
	$(LOCK) --extra cpu --constraint cluster/image/requirements-gpu.txt --output-file cluster/image/requirements-cpu.txt $$(sed -En 's/^(torch|torchvision|triton|nvidia-[a-z0-9-]+|cuda-[a-z]+)==.*/--no-emit-package \1/p' cluster/image/requirements-gpu.txt)
	sed -En 's/^(torch|torchvision)==([^ ]+).*/\1==\2/p' cluster/image/requirements-gpu.txt > cluster/image/torch-cpu.txt

clean:  ## remove the environment and everything the demo left
	rm -rf $(VENV) demo-output build dist *.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "error: needs Python 3.11 or newer, $(PYTHON) is older; try: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)

# One stamp per extra: the environment is brought up to date when the dependencies change.
$(VENV)/%.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@
