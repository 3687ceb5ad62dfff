# `make` says what there is. Everything runs from .venv, made from the lock by the first target that needs it.
# PYTHON=/path/to/python3.11 chooses the interpreter; left out, one is looked for (mlx_tasks/stack/setup.sh).
PYTHON ?=
PIP_AUDIT := 2.10.1
BIN := .venv/bin
# Asked for only where it is used. ADO_COMPOSE="docker-compose" where both are installed and the old one is meant.
COMPOSE = $(or $(ADO_COMPOSE),$(shell docker compose version > /dev/null 2>&1 && echo docker compose || echo docker-compose))

.DEFAULT_GOAL := help
.PHONY: help setup demo loop up follow down secrets lock-out rotate audit worker backup restore test fuzz check bench chaos trial lock clean

help: ## what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install into .venv from requirements.lock
	@PYTHON="$(PYTHON)" sh mlx_tasks/stack/setup.sh

demo: setup ## take the handwritten digits through the whole chain, under Airflow
	@$(BIN)/mlx-tasks demo

loop: setup ## after a demo: its champion serves, is damaged on purpose, noticed, and mended
	@$(BIN)/mlx-tasks loop

up: setup ## start Airflow and MLflow on loopback and leave them up
	@$(BIN)/mlx-tasks up

follow: setup ## watch the newest run in the terminal
	@$(BIN)/mlx-tasks follow

down: ## end what `make demo` or `make up` started; state is kept
	@$(BIN)/mlx-tasks down

secrets: ## write .env of the control plane in containers; WORKER=mac2 [COMPUTES_ONLY=yes]: a worker's file too; HOSTS=...
	@python3 include/compose/make_secrets.py $(if $(HOSTS),--hosts "$(HOSTS)") $(if $(WORKER),--worker "$(WORKER)") \
	  $(if $(COMPUTES_ONLY),--computes-only)

lock-out: ## a Mac was lost: make lock-out WORKER=mac2; what it held is worth nothing from then on
	@python3 include/compose/make_secrets.py --remove "$(WORKER)"
	@$(COMPOSE) up -d

rotate: ## new secrets for every part and every worker; copy the workers' new files to them
	@python3 include/compose/make_secrets.py --rotate
	@$(COMPOSE) up -d

audit: setup ## look every locked package up among the known vulnerabilities (asks pypi.org)
	@$(BIN)/uv tool run --from pip-audit==$(PIP_AUDIT) pip-audit --strict --requirement requirements.lock --disable-pip

worker: setup ## make this machine a worker of the control plane that worker.env names
	@$(BIN)/mlx-tasks worker --env worker.env

backup: ## copy what the control plane in containers keeps to backups/, while it runs
	@include/compose/backup.sh

restore: ## bring a backup back: make restore FROM=backups/... (REPLACE=yes over what is there)
	@include/compose/restore.sh "$(FROM)" $(if $(REPLACE),--replace)

test: setup ## every test, with the real components
	@$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

fuzz: setup ## damaged inputs with new seeds: make fuzz FUZZ_SECONDS=600 (docs/fuzzing.md)
	@PYTHONPATH=tests $(BIN)/python -W ignore -m fuzzing --seconds $(or $(FUZZ_SECONDS),300)

check: setup ## lint, format, types, and whether the pages say what the stored results say
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python benchmarks/claims.py

BENCHMARKS := solver_order cpu_kernels steps_per_second metric_sanity feature_spaces features_per_second \
  frechet_of_many manifest_speed near_duplicates search_samplers freed_memory domain_detector

bench: setup ## the benchmarks that need no run; results go to benchmarks/results/
	@for name in $(BENCHMARKS); do echo "== $$name"; $(BIN)/python benchmarks/$$name.py || exit 1; done

chaos: setup ## kill every part of a fleet while it trains, and tell what was lost (an hour)
	@$(BIN)/python benchmarks/chaos.py
	@$(BIN)/python benchmarks/chaos_stages.py

trial: setup ## start, kill, back up, destroy and restore the control plane in containers (root, Linux, an engine)
	@$(BIN)/python benchmarks/compose_trial.py

lock: setup ## resolve pyproject.toml again into requirements.lock (macOS arm64 and Linux in one)
	MACOSX_DEPLOYMENT_TARGET=14.0 $(BIN)/uv pip compile -q --universal --python-version 3.11 --all-extras \
	  --override include/overrides.txt --generate-hashes --no-annotate --no-header pyproject.toml -o requirements.lock

clean: down ## end the stack and remove ALL its state, models too (`mlx-tasks clean`: what is old)
	rm -rf .state .run .checkpoints
