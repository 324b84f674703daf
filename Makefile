PYTHON ?= python3
BIN := .venv/bin

.PHONY: install train test types pytest smoke chaos cluster mutants gpu slow format docs package

KILLS := 20
RANKS := 1
SAMPLE := 0
SWEEPS := $(filter-out %/common.sh,$(wildcard multirun_scripts/*.sh))

install: .venv/installed

$(BIN)/pip:
	@echo "making .venv"
	$(PYTHON) -m venv .venv

# What it downloads is named, all that it says is in .venv/pip.log.
SHOWN := ^ *(Downloading|Using cached) [^ ]+ \([0-9.]+ [MG]B\)|^Installing collected packages|^ERROR.*|^error.*
# pip compiles on one core, which takes as long as the rest of it. Some packages hold files of other Pythons. What is left
# out, two fifths of the whole, is hardly ever imported.
RARE := /(tests|testing/_internal|pip|setuptools|networkx)/|/transformers/models/(?!auto/|qwen2/|llama/)
install = echo "installing $(1) and what it needs, most of it torch: minutes the first time" && \
	{ { $(BIN)/pip install --no-compile --progress-bar off --editable $(1) 2>&1; echo $$? > .venv/pip.status; } | \
	tee .venv/pip.log | grep -oE --line-buffered '$(SHOWN)' || true; } && \
	{ test "$$(cat .venv/pip.status)" = 0 || { tail -n 20 .venv/pip.log; exit 1; }; } && echo compiling && \
	{ $(BIN)/python -W ignore -m compileall -qq -j 0 -x '$(RARE)' .venv/lib || true; }

.venv/installed: pyproject.toml | $(BIN)/pip
	@$(call install,.)
	touch $@

.venv/installed-docs: pyproject.toml | $(BIN)/pip
	@$(call install,'.[docs]')
	touch $@ .venv/installed

.venv/installed-test: pyproject.toml | $(BIN)/pip
	@$(call install,'.[test]')
	touch $@ .venv/installed

# The main job: EDGE-GRPO on the embedded arithmetic problems, minutes on two CPU cores.
train: install
	$(BIN)/edge-grpo-train experiment=edge_grpo

# Lint, types, doctests and tests.
test: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) --no-print-directory -j2 types pytest

types: .venv/installed-test
	$(BIN)/mypy

pytest: .venv/installed-test
	$(BIN)/pytest -n auto --dist loadfile

# Every script of multirun_scripts with jobs of two short iterations, a minute or two: make -j2 --output-sync smoke
smoke: $(SWEEPS:.sh=.smoke)

# Its 39 arms are 39 processes: SMOKE=1 bash multirun_scripts/cures.sh takes them all.
multirun_scripts/cures.smoke: export ARMS = vanilla,sft,edge_grpo,dynamic_eda,hints_gec_eda

%.smoke: %.sh .venv/installed-test
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
		PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 SMOKE=1 FOLDER="$$folder" bash $<

# Minutes: a run that is killed KILLS times ends as the one that is not. ARM="advantage=ngrpo ...": of another arm;
# RANKS=2: of two ranks, of which one is killed.
chaos: .venv/installed-test
	PYTHONPATH=tests $(BIN)/python tests/chaos.py --kills $(KILLS) --ranks $(RANKS) --arm "$(ARM)"

# Minutes: every way to start a run of several ranks, and how it ends, on this machine. ONLY=kill: what is named so.
cluster: .venv/installed-test
	PYTHONPATH=tests $(BIN)/python tests/cluster.py --only "$(ONLY)"

# Minutes: the share of the faults of tests/mutants.toml that the tests notice. Eight of them: make mutants SAMPLE=8
mutants: .venv/installed-test
	$(BIN)/python tests/mutants.py --sample $(SAMPLE)

# At most 8 minutes on one GPU, without a network: layouts, engines, the plan, and the speed of a 1.5B model.
gpu: install
	$(BIN)/python benchmarks/gpu.py

# Minutes: the tests marked slow: the recipe of the tiny base model reproduces the one that ships; two ranks resume.
slow: .venv/installed-test
	$(BIN)/pytest -m slow

format: .venv/installed-test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The pages, into site/: open site/index.html, no server and no network needed. A warning, a broken link say, ends it.
docs: .venv/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Half a minute: wheel and sdist, and the wheel in a folder without the clone.
package: .venv/installed-test
	.ci/package $(BIN)/python
