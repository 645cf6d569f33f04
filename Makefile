# Two commands do everything on a fresh machine: `make demo` and `make test`. No GPU, weights or data are needed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= $(shell $(PYTHON) -c "import os; print(os.cpu_count() or 1)")
TRAIN ?=
TESTS ?= # such as "-n 2 --dist loadfile": in two processes, file by file
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --constraint constraints.txt --editable

.PHONY: demo test notebook clean

demo: $(VENV)/.demo ## Render the built-in street, reconstruct it, train on it, and show what came of it.
	$(BIN)/rw3d-prep demo --workers $(WORKERS)
	$(BIN)/rw3d-prep reconstruct --dataset demo --workers $(WORKERS)
	$(BIN)/rw3d-prep sample-views stores/demo/train --points 4000 --workers $(WORKERS)
	$(BIN)/rw3d-prep sample-views stores/demo/val --points 4000 --views all --workers $(WORKERS)
	$(BIN)/rw3d-prep inspect stores/demo --picture stores/demo/cloud.png
	OMP_NUM_THREADS=1 $(BIN)/rw3d-train run $$(test -d runs/demo && echo --resume || echo --dataset demo) --out runs/demo $(TRAIN)
	@echo "Look at stores/demo/cloud.png and runs/demo/overlays, and open notebooks/scene_tour.ipynb with: make notebook"

test: $(VENV)/.test ## Run every test, the linter and the type checker.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TESTS)

notebook: $(VENV)/.test ## Open the tour of a scene store in JupyterLab.
	$(PIP) install --quiet jupyterlab
	$(BIN)/jupyter lab notebooks/scene_tour.ipynb

$(VENV)/.demo: pyproject.toml constraints.txt
	.ci/system-libs
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) '.[prep,train]'
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt
	.ci/system-libs
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) '.[prep,train,view,dev]'
	@touch $@

clean: ## Remove the virtual environment; data and stores stay.
	rm -rf $(VENV)
