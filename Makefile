# make quickstart and make test each work alone, in a fresh clone, on a machine with Python 3.11 or later.
PYTHON ?= python3
BIN := .venv/bin
# One thread for each process: two test processes on two cores would otherwise wait for each other's threads.
# tests/conftest.py orders the files. A worker that crashes ends the run: xdist may wait for ever for a new one.
PYTEST := -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

# UV=uv installs with uv: a sixth of pip's time.
UV ?=
ifeq ($(UV),)
install = $(1)/bin/python -m pip install --quiet --disable-pip-version-check
else
install = $(UV) pip install --quiet --python $(1)/bin/python
endif

LOWEST := .venv-lowest
# Tests of what a version can change: the mathematics, training, resuming, generation, the config, each extra.
TOUCHED := adapters baselines config evaluation/test_generate.py evaluation/test_metrics.py evaluation/test_rouge.py fast saved/test_export.py \
  experiments/test_sweep.py serving/test_server.py cli/test_cli.py models test_versions.py training

.PHONY: quickstart test test-full test-gpu test-lowest test-peft-versions test-libraries soak audit lint format types methods notebooks bench bench-inference costs docs reproduce clean

quickstart: .venv/.installed       ## base, full and LoRA on the embedded model and sample, compared
	$(BIN)/python scripts/compare.py --config configs/quickstart.yaml

test: lint types                   ## what a change must pass
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST) -m "not slow and not gpu"

test-full: .venv/.installed-zero   ## what takes minutes: the quickstart's figures, the notebooks in short, the wheel
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST) -m "slow and not gpu"

test-lowest: $(LOWEST)/.installed  ## what a version can change, on the oldest that pyproject.toml admits but of torch
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python $(PYTEST) -m "(versions or not slow) and not gpu" $(addprefix tests/,$(TOUCHED))

test-peft-versions: .venv/.installed  ## adapters exchanged with PEFT 0.4 to 0.17, each in its own environment; ARGS="--only 0.17.1"
	$(BIN)/python scripts/tools/peft_versions.py $(ARGS)

test-libraries: .venv/.installed-test quickstart  ## merged and exported folders read without lora_hf, in an environment of its own
	$(BIN)/python scripts/tools/other_libraries.py runs/quickstart/lora $(ARGS)

test-gpu: .venv/.installed-test    ## on a machine with a GPU, ten minutes: a table to send in; ARGS="--shape large"
	$(BIN)/python scripts/benchmarks/gpu_check.py $(ARGS)

soak: .venv/.installed-test        ## the long forms of docs/reliability.md
	$(BIN)/python scripts/tools/soak_kill.py --kills 50
	$(BIN)/python scripts/tools/fuzz.py config --count 1000
	$(BIN)/python scripts/tools/fuzz.py adapter --count 500
	$(BIN)/python scripts/tools/fuzz.py request --count 200
	$(BIN)/python scripts/tools/large_data.py --rows 1000000
	$(BIN)/python scripts/tools/soak_long.py

audit: .venv/.installed-audit      ## known vulnerabilities of the packages, and bandit over the code
	$(BIN)/python scripts/tools/audit.py

lint: .venv/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.installed-test
	$(BIN)/mypy

format: .venv/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

methods: .venv/.installed-test     ## every method side by side on the embedded model: one table, one picture
	$(BIN)/python scripts/methods.py --config configs/methods.yaml

notebooks: .venv/.installed-test   ## run every notebook in full and check its figures: ten minutes
	LORA_HF_NOTEBOOK_SHARE=1 $(BIN)/python -m pytest tests/test_notebook.py -m slow --timeout=0

bench: .venv/.installed-test       ## our time and memory beside PEFT's, in turn: bench.json and bench.png
	$(BIN)/python scripts/benchmarks/bench.py

bench-inference: .venv/.installed-test  ## writing texts: time, memory and disk beside Transformers, CTranslate2, ONNX Runtime
	OMP_NUM_THREADS=1 $(BIN)/python scripts/benchmarks/inference.py --markdown $(ARGS)

costs: .venv/.installed-test       ## how time and memory of a step grow: costs/*.svg, half an hour
	$(BIN)/python scripts/benchmarks/costs.py

docs: .venv/.installed-test        ## the documentation as a site, in site/
	$(BIN)/python scripts/tools/config_reference.py --check
	$(BIN)/mkdocs build --strict

reproduce: .venv/.installed        ## the published comparison, FLAN-T5-base on DialogSum, from the Hub; ARGS="key.sub=value ..."
	$(BIN)/python scripts/reproduce.py $(ARGS)

clean:
	rm -rf .venv $(LOWEST) .venv-peft build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache runs site

.venv/bin/python $(LOWEST)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than Python 3.11; name a newer one: make PYTHON=python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(@D:/bin=)

.venv/.installed: .venv/bin/python pyproject.toml constraints.txt
	$(call install,.venv) -c constraints.txt -e .
	@touch $@

.venv/.installed-test: .venv/bin/python pyproject.toml constraints.txt
	$(call install,.venv) -c constraints.txt -e '.[test]'
	@touch $@ .venv/.installed

.venv/.installed-zero: .venv/.installed-test
	$(call install,.venv) -c constraints.txt --target .venv/zero --upgrade --no-deps \
	  deepspeed hjson py-cpuinfo msgpack einops
	@touch $@

.venv/.installed-audit: .venv/bin/python pyproject.toml constraints.txt
	$(call install,.venv) -c constraints.txt -e '.[audit]'
	@touch $@

$(LOWEST)/.installed: $(LOWEST)/bin/python pyproject.toml constraints.txt scripts/tools/lowest.py
	$(LOWEST)/bin/python scripts/tools/lowest.py > $(LOWEST)/constraints.txt
	$(call install,$(LOWEST)) -c $(LOWEST)/constraints.txt -e '.[test]'
	@touch $@
