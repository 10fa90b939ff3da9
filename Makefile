# Everything runs in .venv, which the targets build by themselves.

# The newest of the usual names that is 3.11 or later; `make PYTHON=/path/to/python` overrides it.
is_new_enough = -c 'import sys; sys.exit(sys.version_info < (3, 11))'
PYTHON ?= $(shell for name in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	if $$name $(is_new_enough) >/dev/null 2>&1; then echo $$name; break; fi; done)

# tests must not wait for a hub that may be out of reach
offline = HF_HUB_OFFLINE=1

site = NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs

# the oldest supported TransformerLens, and the only supported line that has HookedTransformer
TL3 = 3.9.0

# tests are mostly Python, so two processes of one thread each beat one of two; more need 3 GB each
WORKERS = 2

.PHONY: setup demo test test-tl3 docs fuzz bench bench-8b paper notebooks clean

setup: .venv/.stamp

demo: setup
	.venv/bin/tars-lens erase sherlock_holmes saturn --out runs/demo

test: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	$(site) build --strict --quiet
	$(offline) OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n $(WORKERS) --dist loadfile
	$(MAKE) test-tl3

# the documentation as a site, at http://127.0.0.1:8000
docs: setup
	$(site) serve

test-tl3: .venv-tl3/.stamp
	$(offline) .venv-tl3/bin/python -m pytest tests/model/test_lens_contract.py

# hours: 10,000 mangled inputs, a death at every change to a file, 100,000 steps with patches
fuzz: setup
	$(offline) TARS_LENS_FUZZ=10000 .venv/bin/python -m pytest tests/test_mangled.py \
		tests/test_killed.py tests/patch/test_patch_steps.py

# some minutes each, on SmolLM2-135M; the tables go to runs/bench too
bench: setup
	for name in loading ranking paired_kl memory erase_stages side_by_side inference_mode \
		scaling; do \
		.venv/bin/python benchmarks/$$name.py --out runs/bench/$$name.csv || exit 1; echo; done

# a paper's tables and figures, into analyses/out; `make paper MODEL=path` for another model
MODEL = smollm2-135m
OPTIONS =
ANALYSES = edits_curve both_directions languages five_concepts propagation neurons ablation capacity

paper: setup
	for name in $(ANALYSES); do \
		.venv/bin/python analyses/$$name.py --model $(MODEL) $(OPTIONS) || exit 1; done

# runs them on SmolLM2-135M and keeps their outputs
notebooks: setup
	$(offline) .venv/bin/python notebooks/publish.py

# 22 GB of disk for a while: random weights in the shape of Llama 3.1 8B
bench-8b: setup
	.venv/bin/python benchmarks/llama8b_shape.py --out runs/bench/llama8b_shape.csv
	.venv/bin/python benchmarks/whole_erase.py --out runs/bench/whole_erase.csv

clean:
	rm -rf .venv .venv-tl3 .mypy_cache .pytest_cache .ruff_cache build dist runs analyses/out

.venv/.stamp: pyproject.toml constraints.txt
	$(call new_environment,.venv)
	.venv/bin/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

.venv-tl3/.stamp: pyproject.toml constraints.txt
	$(call new_environment,.venv-tl3)
	sed 's/^transformer-lens==.*/transformer-lens==$(TL3)/' constraints.txt > .venv-tl3/constraints.txt
	.venv-tl3/bin/python -m pip install --quiet -c .venv-tl3/constraints.txt -e . pytest beartype
	@touch $@

define new_environment
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or later was found. Install one, or name it:" \
		"make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" $(is_new_enough) || { echo "$(PYTHON) is not Python 3.11 or later. Name one:" \
		"make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Setting up $(1): about a minute, once."
	@"$(PYTHON)" -m venv $(1)
endef
