# make demo   set up, then the whole job on a small text-to-image model, offline; ends with a report for a browser
# make test   set up, then lint, types and all tests but a few
# make slow   set up, then those few: what takes half a minute and more each
# make cpp    set up, then build the C++ runtime into build/cpp/prefix, with this environment's libraries
# make bench  set up, then the benchmarks for a CPU and the README's tables; 2.5 hours on 2 idle cores, 30 GB of disk
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test slow cpp bench lint clean

demo: $(INSTALLED)
	$(BIN)/skrr-export demo -o demo-output --force

test: lint
	$(BIN)/python -m pytest

slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

cpp: $(INSTALLED)
	$(BIN)/python -m tests.runtimes.cpp.building build/cpp

bench: $(INSTALLED) cpp
	$(BIN)/python benchmarks/export.py --shape large
	$(BIN)/python benchmarks/run.py
	$(BIN)/python benchmarks/compiled.py
	$(BIN)/python benchmarks/engines.py
	$(BIN)/python benchmarks/overflow.py
	$(BIN)/python benchmarks/measure.py
	$(BIN)/python benchmarks/serve.py
	$(BIN)/python benchmarks/savings.py
	$(BIN)/python benchmarks/families.py
	$(BIN)/python benchmarks/search.py --part speed
	$(BIN)/python benchmarks/search.py --part quality
	$(BIN)/python benchmarks/skrr.py
	$(BIN)/python benchmarks/readme.py

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	@# NVIDIA's pins are older than ours; the server, which is for tests too, wants numpy 1 and is kept apart with it
	$(BIN)/pip install --quiet --no-deps tritonclient==2.73.0
	-$(BIN)/pip install --quiet --no-deps --upgrade --target $(VENV)/triton nvidia-pytriton==0.7.0 numpy==1.26.4
	touch $@

clean:
	rm -rf $(VENV) demo-output build *.egg-info
