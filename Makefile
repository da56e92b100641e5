# The two commands that matter: `make repro` and `make test`. Each sets up what is missing.

PYTHON ?= python3.11
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: setup repro lanes proofs test test-all chaos lint bench quality ui clean

setup: .venv/installed

.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -qq --requirement requirements.lock
	$(BIN)/pip install -qq --no-deps --editable .
	touch $@

repro: setup            ## prepare, train, evaluate, register and report every model of params.yaml
	@dvc status --quiet || { dvc repro prepare && $(MAKE) --no-print-directory lanes; }
	dvc repro
	@echo
	@echo "report:       data/report/index.html"
	@echo "MLflow:       make ui"
	@echo "a picture:    .venv/bin/python pipelines/sample.py --model progan@champion --num 64 --out grid.png"

# DVC itself runs one stage after the other; here models train side by side on one Ray, LANES of them or as many as fit.
# What fails here is tried, and shown, by the `dvc repro` that follows.
lanes: setup
	-@python -m pipelines.fleet $(if $(LANES),--at-once $(LANES))

proofs: setup           ## the comparisons of params.yaml, which take several trainings each; goes on where it stopped
	$(BIN)/python -m pipelines.proofs

test: setup             ## the short tests of every kind
	$(BIN)/python -m pytest

test-all: setup         ## the long ones too; GPU tests only where there is a GPU
	$(BIN)/python -m pytest -m "slow or cluster or chaos or gpu or not slow"

chaos: setup            ## every fault of tests/chaos, twenty killed workers included, and a table of what followed
	$(BIN)/python -m pytest -m "chaos or not chaos" tests/chaos

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: setup            ## speed as ratios: steps against plain scripts, loader, start-up (hours; ONLY="progan 64" for some)
	$(BIN)/python -m bench $(if $(ONLY),--only "$(ONLY)")

quality: setup          ## time to quality: our DCGAN against the plain script on IMAGES, a folder a class (an hour; goes on)
	$(BIN)/python -m bench.quality $(IMAGES)

ui: setup               ## MLflow at http://127.0.0.1:5000, at the page that compares runs
	@echo "open http://127.0.0.1:5000/#/experiments/1/runs?compareRunsMode=CHART"
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false $(BIN)/mlflow server \
		--backend-store-uri "sqlite:///$(CURDIR)/mlflow.db" --artifacts-destination "$(CURDIR)/mlartifacts" \
		--host 127.0.0.1 --port 5000

clean:                  ## everything but the source images
	rm -rf .venv data/runs data/shards data/cache data/inspection data/proofs data/models data/evaluations \
		data/versions data/report data/leaderboard mlflow.db mlartifacts
