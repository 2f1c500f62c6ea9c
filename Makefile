# Two commands do all the set-up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3.11
VENV ?= .venv
PY := $(abspath $(VENV))/bin/python
READY := $(VENV)/.ready
# With what tests and benchmarks need as well.
DEV := $(VENV)/.dev

.PHONY: demo export test smoke test-slow test-data test-integrations test-integrations-bundle test-integrations-mlflow mlflow-server bench bench-cli benchmark ablation lint clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
# torch first and alone: a looser request may pull gigabytes of CUDA packages.
	$(PY) -m pip install --quiet --constraint constraints.txt torch
# setuptools warns of every editable installation.
	PYTHONWARNINGS=ignore $(PY) -m pip install --quiet --constraint constraints.txt --editable .
	touch $(READY)

$(DEV): $(READY)
	PYTHONWARNINGS=ignore $(PY) -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(DEV)

demo: $(READY)
	cd bundle && $(PY) -m scripts.demo --output ../demo

# TorchScript and ONNX of the weights, compared with the module. See docs/export.md.
export: $(DEV)
	cd bundle && $(PY) -m scripts.export --output_dir ../export

# Files side by side, each process on one thread: torch gains less from two threads than pytest from two processes.
JOBS ?= 2
test: $(DEV)
	OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder

# Two minutes: the package as users install it, the command's errors, the maps and the smoother.
SMOKE := tests/test_package.py tests/test_extending.py tests/geometry tests/layers tests/spatial tests/cli/test_main.py
smoke: $(DEV)
	OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses $(JOBS) --dist loadfile $(SMOKE)

test-slow: $(DEV)
	$(PY) -m pytest -m slow

# Needs the data sets of docs/data.md; AVSM_DATA names the folder that holds them.
test-data: $(DEV)
	$(PY) -m pytest -m data

# All that starts other programs; each part sets up its own environment.
test-integrations: test-integrations-bundle test-integrations-mlflow test-integrations-label test-integrations-deploy

# torchrun with several processes, export of the shipped weights.
test-integrations-bundle: $(DEV)
	$(PY) -m pytest -m integrations tests/integrations/test_many_processes.py tests/integrations/test_make_export.py

# Starts real MLflow servers, and looks at their pages with Debian's chromium; see bundle/docs/mlflow.md.
test-integrations-mlflow: $(DEV)
	command -v chromium || { apt-get update --quiet && apt-get install --yes --quiet chromium; }
	$(PY) -m pytest -m integrations tests/integrations/test_mlflow.py

# Runs, models and their files in one folder, for this machine only.
MLFLOW_DATA ?= mlflow-data
MLFLOW_PORT ?= 5000
mlflow-server: $(READY)
	mkdir -p $(MLFLOW_DATA)
	MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(PY) -m mlflow server --host 127.0.0.1 --port $(MLFLOW_PORT) --workers 1 \
		--backend-store-uri sqlite:///$(abspath $(MLFLOW_DATA))/mlflow.db \
		--artifacts-destination $(abspath $(MLFLOW_DATA))/artifacts

# Speed and memory beside the plain reference, as ratios of one run; fails where a stored ratio has been lost.
bench: $(DEV)
	$(PY) benchmarks/speed.py --output bench --check benchmarks/speed_baseline.json $(BENCH)

# The command in whole processes beside antspyx, greedy and an earlier build. See benchmarks/results/README.md.
bench-cli: $(DEV)
	$(PY) -m pip install --quiet --constraint constraints.txt antspyx picsl-greedy
	$(PY) benchmarks/command.py $(BENCH)

# Registration: methods × data sets, Tables 1 and 2, Figures 4 to 8; resumable. See benchmarks/results/README.md.
DATA ?= $(AVSM_DATA)
benchmark: $(DEV)
	$(PY) benchmarks/benchmark.py run $(if $(DATA),--data $(DATA)) $(BENCH_OPTIONS)

ablation: $(DEV)
	$(PY) benchmarks/benchmark.py ablation $(if $(DATA),--data $(DATA)) $(BENCH_OPTIONS)

# MONAI Deploy app: an environment of its own (3.5 GB), see integrations/deploy/README.md.
DEPLOY := integrations/deploy
DEPLOY_VENV ?= .venv-deploy
DEPLOY_PY := $(abspath $(DEPLOY_VENV))/bin/python
DEPLOY_READY := $(DEPLOY_VENV)/.ready

.PHONY: deploy-env deploy-package test-integrations-deploy

$(DEPLOY_READY): $(DEPLOY)/requirements.txt $(DEPLOY)/requirements-dev.txt
	$(PYTHON) -m venv $(DEPLOY_VENV)
	$(DEPLOY_PY) -m pip install --quiet --upgrade pip
	$(DEPLOY_PY) -m pip install --quiet $$(grep '^torch==' $(DEPLOY)/requirements.txt)
	$(DEPLOY_PY) -m pip install --quiet --requirement $(DEPLOY)/requirements-dev.txt
	touch $(DEPLOY_READY)

deploy-env: $(DEPLOY_READY)

# dciodvfy, the validator, is Debian's and Ubuntu's dicom3tools.
test-integrations-deploy: $(DEPLOY_READY)
	command -v dciodvfy || { apt-get update --quiet && apt-get install --yes --quiet dicom3tools; }
	$(DEPLOY_PY) -m pytest -m integrations tests/integrations/deploy

# A container with the app; needs docker. DEPLOY_MODELS names a folder with avsm/model.ts.
DEPLOY_MODELS ?= models
deploy-package: $(DEPLOY_READY)
	rm -rf build/deploy && mkdir -p build/deploy/app/bundle
	cp -r $(addprefix $(DEPLOY)/,*.py avsm_deploy request.json app.yaml requirements.txt) build/deploy/app
	cp -r bundle/scripts bundle/configs bundle/LICENSE build/deploy/app/bundle
	mkdir build/deploy/app/bundle/models && cp bundle/models/*.json build/deploy/app/bundle/models
	PATH="$(dir $(DEPLOY_PY)):$$PATH" monai-deploy package build/deploy/app --config build/deploy/app/app.yaml \
		--models $(DEPLOY_MODELS) --platform x86_64 --tag avsm:0.2.0

lint: $(DEV)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

clean:
	rm -rf $(VENV) demo export

# MONAI Label: its own environment, the server on a folder of images, and the test that drives it over HTTP.
LABEL_VENV ?= .venv-label
LABEL_PY := $(abspath $(LABEL_VENV))/bin/python
LABEL_READY := $(LABEL_VENV)/.ready
LABEL_REQUIREMENTS := integrations/monailabel/requirements.txt

.PHONY: label-env label-server test-integrations-label

$(LABEL_READY): $(LABEL_REQUIREMENTS)
	$(PYTHON) -m venv $(LABEL_VENV)
	$(LABEL_PY) -m pip install --quiet --upgrade pip
	$(LABEL_PY) -m pip install --quiet --constraint $(LABEL_REQUIREMENTS) torch
	$(LABEL_PY) -m pip install --quiet --no-deps --requirement $(LABEL_REQUIREMENTS)
	touch $(LABEL_READY)

label-env: $(LABEL_READY)

label-server: $(LABEL_READY)
	AVSM_LABEL_PYTHON=$(LABEL_PY) integrations/monailabel/start.sh $(if $(STUDIES),"$(STUDIES)") $(LABEL_OPTIONS)

test-integrations-label: $(DEV) $(LABEL_READY)
	AVSM_LABEL_PYTHON=$(LABEL_PY) $(PY) -m pytest tests/integrations/monailabel -m integrations
