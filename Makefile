# The two commands of the README are `make run` and `make test`; both set up what they need.
VENV_PYTHON := .venv/bin/python
OUTPUT := runs/simulator

.PHONY: run run-cluster test test-all test-quick setup check lock clean

# Simulates users, trains, evaluates, pushes: the whole pipeline, then says how to serve it.
run: setup
	@$(VENV_PYTHON) -m tfx_pipeline run --spec=simulator --output=$(OUTPUT)

# The same, with both Trainers in a local cluster: coordinator, two workers, two parameter servers.
run-cluster: setup
	@$(VENV_PYTHON) -m tfx_pipeline run --spec=simulator --output=runs/simulator-cluster \
	  --cluster=deploy/clusters/local_parameter_server.yaml

# Files of tests three at a time: on two cores 22 minutes, two at a time 25 (2026-11-22).
test: setup
	@$(VENV_PYTHON) -m pytest -n 3 --dist loadfile

test-quick: setup
	@$(VENV_PYTHON) -m pytest -m "not slow and not exhaustive"

# With those marked exhaustive: faults and Kubernetes' commands in real clusters, trainings of
# `compare`, and what is alike another test.
test-all: setup
	@$(VENV_PYTHON) -m pytest -n 3 --dist loadfile -m ""

# .venv with exactly requirements.txt; nothing to do when it already has it.
setup:
	@tools/setup

# Style and types alone; the tests check them too.
check: setup
	@$(VENV_PYTHON) -m ruff check . && $(VENV_PYTHON) -m ruff format --check . && $(VENV_PYTHON) -m mypy

# requirements.in -> requirements.txt, keeping every pin that still fits. Needs uv.
lock:
	uv pip compile --quiet --python-version 3.10 --python-platform x86_64-manylinux_2_28 \
	  --override requirements.overrides --custom-compile-command 'make lock' \
	  requirements.in -o requirements.txt

clean:
	rm -rf .venv runs
