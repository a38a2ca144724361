# Run `make help` for the list. PYTHON is the interpreter that the environment is built from.
PYTHON ?= python3
VENV   ?= .venv
# The light libraries for CPUs, on Linux without a GPU and with the pinned torch.
LIBRARIES = $(if $(shell nvidia-smi -L 2>/dev/null)$(filter system,$(TORCH))$(filter-out Linux,$(shell uname)),,$(VENV)/installed-cpu)
# `system` keeps your own torch; without a word, whatever the environment was built with.
TORCH  ?= $(if $(wildcard $(VENV)/installed-system),system,pinned)
JOBS   ?= 2
ARGS   ?=
OUT    ?= dist/gpu
BASE   ?= HEAD~1
EVAL   ?= results/reference/gate-eval/gates.jsonl
HOURS  ?= 2

BIN    := $(VENV)/bin
STAMP  := $(VENV)/installed-$(TORCH)
# The tests take the cores; inside each of them one thread is enough.
# CI prints the slowest tests.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(if $(CI),--durations=40 --durations-min=2)
# tests/conftest.py orders the units of work.
SPREAD := -n $(JOBS) --dist loadscope --no-loadscope-reorder --ignore tests/gpu
# Tests of the layers that need no torch and no worker process.
FAST   := $(addprefix tests/,analysis attention/masks attention/test_cost.py attention/test_dropout.py attention/test_problem.py records suite \
  engine/test_plan.py gate/test_rule.py gate/test_stored.py gate/test_verdicts.py report/test_report_table.py \
  report/test_report_golden.py report/test_verification.py studies/test_scaling.py studies/test_claims.py studies/test_fleet.py \
  cli/test_config.py test_units.py test_errors.py test_pairwise.py \
  test_repository.py test_stored_runs.py)
# Those of the layers whose coverage is measured, and of what they rest on.
COVERED := $(FAST) tests/attention tests/gate

# Tests start hundreds of processes, which share what Python has compiled.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help venv venv-cpu bench gate gate-eval readme test test-fast test-rest test-slow coverage lint style types layers structure format docs gpu hopper clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(STAMP) ## builds .venv; TORCH=system keeps your own torch

$(STAMP): pyproject.toml constraints.txt tools/build_venv.sh
	tools/build_venv.sh $(PYTHON) $(VENV) $(TORCH)

venv-cpu: $(VENV)/installed-cpu-all ## adds the libraries for CPUs to .venv

$(VENV)/installed-cpu $(VENV)/installed-cpu-all: $(VENV)/installed-%: $(STAMP) tools/cpu_libraries.sh
	tools/cpu_libraries.sh $(VENV) $*

# A case that failed (exit code 5) is part of the report; any other failure left nothing to report.
bench: venv $(LIBRARIES) ## measures the default sweep, prints its table, writes its report; ARGS='--seq 1k..4k'
	@status=0; $(BIN)/attnbench run $(ARGS) || status=$$?; \
	case $$status in 0 | 5) $(BIN)/attnbench report last || exit;; esac; exit $$status

test: venv ## every test that needs no GPU and no patience
	$(PYTEST) $(SPREAD) -m "not slow and not gpu" $(ARGS)

test-fast: venv ## tests of the layers without torch, in seconds, for every save
	$(PYTEST) $(SPREAD) -p tests.without_torch -m "not slow and not gpu and not workers" $(FAST) $(ARGS)

coverage: venv ## fails where the tests of the layers without torch leave a line or a branch of them out
	$(PYTEST) $(SPREAD) -m "not slow and not gpu" --cov --cov-report=term $(COVERED) $(ARGS)

test-rest: venv ## what `make coverage` leaves of `make test`: together they run each test once
	$(PYTEST) $(SPREAD) -m "not slow and not gpu" $(addprefix --ignore=,$(COVERED)) $(ARGS)

# Where ARGS selects none of them, pytest ends with 5.
test-slow: venv $(if $(filter system,$(TORCH)),,venv-cpu) ## the tests marked slow: together what only computes, one after another what times workers
	$(PYTEST) $(SPREAD) -m "slow and not workers and not gpu" $(ARGS) || [ $$? = 5 ]
	$(PYTEST) --ignore tests/gpu -m "slow and workers and not gpu" $(ARGS) || [ $$? = 5 ]

gate: venv ## the suite `ci` against BASE=HEAD~1, side by side
	$(BIN)/attnbench gate ci --base-ref $(BASE) --inconclusive ok $(ARGS)

gate-eval: venv ## how often the gate errs here: A/A runs and real slowdowns, added to what EVAL holds; HOURS=2
	OMP_NUM_THREADS=1 $(BIN)/python -m tools.gate_eval run $(EVAL) $(HOURS)
	OMP_NUM_THREADS=1 $(BIN)/python -m tools.gate_eval table $(EVAL)

readme: venv ## runs the commands of README.md, checks their times, stores the result
	$(BIN)/python -m tools.readme

lint: style types layers ## format, lint, types, layers; -j2 runs them side by side

style: venv
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m ruff check .

types: venv
	$(BIN)/python -m mypy

layers: venv
	$(BIN)/lint-imports --no-logo

structure: venv ## the table of sizes, cycles and names in docs/design.md; fails beyond its limits
	$(BIN)/python -m tools.structure

format: venv ## formats the code and mends what can be mended
	$(BIN)/python -m ruff format .
	$(BIN)/python -m ruff check --fix .

docs: venv ## the documentation as a site in dist/site; fails on broken links
	$(BIN)/zensical build --strict

gpu: ## GPU tests and suites with the packages of PYTHON, nothing installed; results in OUT
	PYTHON=$(PYTHON) OUT=$(OUT) tools/gpu_check.sh

hopper: ## the kernels for Hopper on a Hopper GPU: tests, sanitizer, soak, tuning, times; as gpu
	PYTHON=$(PYTHON) OUT=$(OUT) tools/gpu_check.sh hopper

clean: ## removes the environment and every cache; keeps results
	rm -rf $(VENV) dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .benchmarks
	find attnbench tests -name __pycache__ -prune -exec rm -rf {} +
