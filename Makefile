# Everything works on a fresh clone: a target first makes what it needs, and only if it is not there yet.
# Outside the checkout, only a cache is written, $HVDSPARK_CACHE or ~/.cache/hvdspark: Horovod's wheels, and the peer
# of benchmarks/versus_torchrec.py.

VENV := .venv
PYTHON := $(VENV)/bin/python
SOURCES := hvdspark estimators tests examples benchmarks docs

# Another Spark or another Python's packages in the caller's environment must not mix with those of .venv,
# and Spark starts its Python workers with `python3` from PATH unless it is told otherwise.
unexport SPARK_HOME PYTHONPATH PYTHONHOME
# Every process would compile this checkout's sources again: a third of a second of CPU for each of hundreds of ranks.
unexport PYTHONDONTWRITEBYTECODE
export PYSPARK_PYTHON := $(CURDIR)/$(PYTHON)
export PYSPARK_DRIVER_PYTHON := $(PYSPARK_PYTHON)
# Every session here runs on this machine, whose name may not resolve.
export SPARK_LOCAL_IP := 127.0.0.1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-chaos chaos coverage lint fmt type bench doctor clean
.DELETE_ON_ERROR:

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.horovod-installed ## Check the system, create .venv, install everything, build Horovod once

demo: setup ## Train and score on Spark with 2 ranks; DATA=path takes a real Criteo file
	$(PYTHON) examples/clicks.py $(if $(DATA),--data "$(DATA)")

test: setup ## Unit and Spark tests, at most 15 minutes on 2 cores; ARGS="-k loader" selects
	$(PYTHON) -m tests.side_by_side $(ARGS)

test-slow: setup ## Tests that take minutes
	$(PYTHON) -m pytest -m 'slow and not chaos' $(ARGS) || [ $$? -eq 5 ] # 5: there is none

test-chaos: setup ## Tests that kill processes and shrink clusters
	$(PYTHON) -m pytest -m chaos $(ARGS) || [ $$? -eq 5 ]

chaos: setup ## SEEDS (20) fits on this host, each with 10 faults drawn from its seed; none begins after WITHIN (900) seconds
	$(PYTHON) -m tests.chaos.runner --seed $(or $(SEED),0) --seeds $(or $(SEEDS),20) --kills 10 --within $(or $(WITHIN),900)

coverage: setup ## Lines of the code that all tests but Spark's run through
	OMP_NUM_THREADS=1 $(PYTHON) -m coverage run -m pytest --ignore=tests/spark $(ARGS)
	$(PYTHON) -m coverage report --skip-covered --show-missing

lint: $(VENV)/.package-installed ## ruff: rules and format, changing nothing
	$(PYTHON) -m ruff check $(wildcard $(SOURCES))
	$(PYTHON) -m ruff format --check $(wildcard $(SOURCES))

fmt: $(VENV)/.package-installed ## ruff: format, and fix what can be fixed safely
	$(PYTHON) -m ruff check --fix $(wildcard $(SOURCES))
	$(PYTHON) -m ruff format $(wildcard $(SOURCES))

type: $(VENV)/.package-installed ## mypy
	$(PYTHON) -m mypy

bench: setup ## Run every benchmark
	@for script in $(filter-out benchmarks/measuring.py,$(wildcard benchmarks/*.py)); do echo "== $$script"; $(PYTHON) "$$script" || exit 1; done

doctor: setup ## Say what works here and what does not, and how to repair it
	$(PYTHON) -m hvdspark doctor

clean: ## Remove .venv and everything that was generated in this checkout
	rm -rf $(VENV) build dist *.egg-info spark-warehouse .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Each stamp is newer than what it was made from, so a second run does nothing.
$(VENV)/.created: .ci/system-check
	.ci/system-check
	"$$(.ci/system-check --python)" -m venv $(VENV)
	@touch $@

$(VENV)/.requirements-installed: requirements.txt $(VENV)/.created
	$(PYTHON) -m pip install --quiet --requirement requirements.txt
	@touch $@

$(VENV)/.package-installed: pyproject.toml setup.py $(wildcard hvdspark/embedding/kernels/native/*) $(VENV)/.requirements-installed
	@[ -L hvdspark/estimators ] || ln -sf ../estimators hvdspark/estimators # ZIP archives lose it
	$(PYTHON) -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.horovod-installed: hvdspark/horovod_build.py $(VENV)/.package-installed
	$(PYTHON) -m hvdspark install-horovod
	@touch $@
