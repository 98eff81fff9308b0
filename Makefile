# The commands that the README names. `make setup` is done once and again when a requirement changes.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.cleanai-setup
PYTHON ?= $(shell command -v python3.11 || command -v python3)

export RAY_USAGE_STATS_ENABLED := 0

.PHONY: setup quickstart test test-all test-lower-bounds dist lint lint-style lint-types docs format clean

# A quarter of what lies in an environment is compiled when it is imported, if ever.
SELDOM := /tests?/|/transformers/models/

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "make setup: '$(PYTHON)' is not Python 3.10 or newer; name one with make setup PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' \
		|| { echo "make setup: '$(PYTHON)' cannot make virtual environments; on Debian: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e '.[dev,docs,onnx,detection,language,huggingface,timm,tracking]'
	@$(BIN)/python -m compileall -qq -j 0 -x '$(SELDOM)' $(VENV)/lib || true  # what pip does on one core
	@touch $@

quickstart: setup
	$(BIN)/cleanai quickstart

PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test: setup
	$(PYTEST) -m 'not slow'

test-all: setup
	$(PYTEST)

# The oldest releases that pyproject.toml allows, in an environment of their own (several GB: torch brings CUDA along),
# and the tests of what computes, with everything but Ray's own part.
LOWER := build/lower-bounds
CORE_TESTS := $(addprefix tests/,analysis charts config coverage data deploy evaluation graph importance models nn \
	pruning repair report sensitivity stages statistics storage tasks training test_api.py test_cli.py test_registry.py)

test-lower-bounds: setup
	mkdir -p $(LOWER)
	$(BIN)/python .ci/lower_bounds.py > $(LOWER)/constraints.txt
	$(PYTHON) -m venv --clear $(LOWER)/venv
	$(LOWER)/venv/bin/python -m pip install --quiet -c $(LOWER)/constraints.txt -e . pytest pytest-timeout \
		hypothesis 'moto[server]' pypdfium2
	$(LOWER)/venv/bin/python -m pytest -m 'not slow and not ray and not gpu' $(CORE_TESTS)

dist: setup
	rm -rf build dist
	$(BIN)/python -m build

# Two halves, of which mypy takes the longer: `make --jobs 2 lint docs` has it beside the others.
lint: lint-style lint-types

lint-types: setup
	$(BIN)/mypy

lint-style: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	@! find cleanai_ray jobs -name '*.py' -exec wc -l {} + | awk '$$1 > 300 && $$2 != "total"' | grep . \
		|| { echo "make lint: a file has more than 300 lines" >&2; exit 1; }
	@! git grep -nIE '(^|[^A-Za-z0-9_.])/(work|root|farm|Users)/' -- . ':!Makefile' || { echo "make lint: a path of one machine" >&2; exit 1; }

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
