# Everything runs in .venv, which every target makes for itself.
PYTHON ?= python3
BIN := .venv/bin
STAGES := vae clip clip_narrow matching unet flow classifier gold artifact
STAGE ?= $(STAGES)
REWARD ?= hps pickscore imagereward aesthetic

.PHONY: setup run test check docs mini rewards clean

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

run: setup  ## the main job: TDPO-R against HPS in the miniature world
	$(BIN)/python -m src.run +experiment=tdpo_r_hps $(ARGS)

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

check: setup
	$(BIN)/ruff check src tests docs hydra_plugins experiments benchmarks
	$(BIN)/ruff format --check src tests docs hydra_plugins experiments benchmarks
	$(BIN)/mypy

.venv/.docs: .venv/.ready
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[docs]"
	touch $@

docs: .venv/.docs  ## the pages of docs/ as a site, in site/
	$(BIN)/python -m docs.generate
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict  # by --quiet it would not see its own warnings

mini: setup  ## rebuild the miniature world, or one stage of it: make mini STAGE=unet
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[mini]"
	for stage in $(STAGE); do $(BIN)/python -m src.mini.build stage=$$stage || exit 1; done
	$(BIN)/python -m src.mini.card

rewards: setup  ## train the miniature world's rewards anew, or one of them: make rewards REWARD=hps
	for reward in $(REWARD); do \
	  out=data/mini/reward_$$reward.$$(date +%s); \
	  $(BIN)/python -m src.run +experiment=train_reward_$$reward run_dir=$$out || exit 1; \
	  mkdir -p src/mini/weights/$$reward && cp $$out/reward/* src/mini/weights/$$reward/; \
	done

clean:
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache
