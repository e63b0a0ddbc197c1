# One environment, made from the lock file, for everything below. `make` alone lists the targets.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
OUT ?= build/demo
X86_LINUX := sys_platform == 'linux' and platform_machine == 'x86_64'
BUF := npx --yes @bufbuild/buf@1.75.0

.PHONY: help setup demo test check api floor bench bench-quick eval-quick docs format lock clean

help:
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

setup: $(VENV)/.ready ## make the environment from requirements.lock

$(VENV)/.ready: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13) and "Pocketune needs Python 3.11 to 3.13: make PYTHON=python3.11 …")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

demo: setup ## the main job on the bundled models, for one bundled user
	$(BIN)/pocketune demo --out $(OUT)

test: setup ## all tests, two folders at a time
	$(BIN)/python -m pytest --numprocesses 2

check: setup ## format, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

api: setup ## lint the API, compare it with the last tag's and with the generated code
	mkdir -p build
	$(BIN)/python -m protos.generate --image build/api.binpb
	$(BUF) lint build/api.binpb --path protos/v1
	@if tag=$$(git describe --tags --abbrev=0 2>/dev/null); then \
		rm -rf build/tag && mkdir build/tag && git archive $$tag protos | tar -x -C build/tag && \
		(cd build/tag && $(abspath $(BIN))/python -m protos.generate --image ../tag.binpb) && \
		echo "buf breaking against $$tag" && \
		$(BUF) breaking build/api.binpb --against build/tag.binpb --path protos/v1; \
	else echo "buf breaking: there is no tag to compare the API with"; fi
	$(BIN)/python -m protos.generate
	git diff --exit-code -- protos/v1

floor: setup ## the generated code with the oldest protobuf and gRPC that are allowed
	$(BIN)/python -m protos.floor build/floor

bench: setup ## every benchmark, and the table in docs/benchmarks.md; it builds llama.cpp once
	$(BIN)/python -m benchmarks.suite

bench-quick: setup ## the same on small models with few repeats, into build/
	$(BIN)/python -m benchmarks.suite --quick

eval-quick: setup ## six users of each task of the bundled world, with and without synthetic items
	$(BIN)/pocketune eval --suite pocket --quick --out build/eval

docs: setup ## write the generated pages of docs/
	$(BIN)/python docs/generate.py

format: setup ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: ## resolve requirements.lock anew from pyproject.toml
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet 'torch==2.13.0'
	build/lock/bin/python -m pip install --quiet --editable '.[dev]'
	build/lock/bin/python -m pip freeze --all --exclude-editable --exclude pip | sed "s/+cpu$$//; /^oclgrind/s/$$/ ; $(X86_LINUX)/" > requirements.lock

clean: ## remove the environment and everything built
	rm -rf $(VENV) build *.egg-info
