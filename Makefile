# Two commands do all the set-up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3.11
VENV ?= .venv
PY := $(abspath $(VENV))/bin/python
READY := $(VENV)/.ready

.PHONY: demo test test-slow test-data bench benchmark ablation lint clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
# torch first and alone: a looser request may pull gigabytes of CUDA packages.
	$(PY) -m pip install --quiet --constraint constraints.txt torch
	$(PY) -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(READY)

demo: $(READY)
	cd bundle && $(PY) -m scripts.demo --output ../demo

test: $(READY)
	$(PY) -m pytest

test-slow: $(READY)
	$(PY) -m pytest -m slow

# Needs the data sets of docs/data.md; AVSM_DATA names the folder that holds them.
test-data: $(READY)
	$(PY) -m pytest -m data

# Speed and memory beside the plain reference, as ratios of one run; fails where a stored ratio has been lost.
bench: $(READY)
	$(PY) benchmarks/speed.py --output bench --check benchmarks/speed_baseline.json $(BENCH)

# Registration: methods × data sets, Tables 1 and 2, Figures 4 to 8; resumable. See docs/benchmark/README.md.
DATA ?= $(AVSM_DATA)
benchmark: $(READY)
	$(PY) benchmarks/benchmark.py run $(if $(DATA),--data $(DATA)) $(BENCH_OPTIONS)

ablation: $(READY)
	$(PY) benchmarks/benchmark.py ablation $(if $(DATA),--data $(DATA)) $(BENCH_OPTIONS)

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

clean:
	rm -rf $(VENV) demo

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

test-integrations-label: $(READY) $(LABEL_READY)
	AVSM_LABEL_PYTHON=$(LABEL_PY) $(PY) -m pytest tests/integrations/monailabel -m integrations
