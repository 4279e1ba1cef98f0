# One command for each habit; `make` prints them.
.DEFAULT_GOAL := help
.PHONY: help install quick test lint types imports check fuzz golden gpu-compile

help:      ## print this list
	@grep -hE '^[a-z-]+: *.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

install:   ## install twofold, editable, with everything tests and lint need
	pip install -e '.[test,lint]'

quick:     ## the fast tests
	pytest -n 2 -m "not slow" tests/base tests/ir tests/autodiff tests/passes

test:      ## the whole test suite
	pytest -n 2

lint:      ## ruff
	ruff check .

types:     ## mypy
	mypy

imports:   ## the layering contracts
	lint-imports

check: lint types imports test ## everything that must pass before a commit

fuzz:      ## thousands of random graphs through the CPU compiler: make fuzz SEEDS=1000:1300
	python tests/cpu/fuzz.py --seeds $(or $(SEEDS),0:300)

golden:    ## rewrite the golden texts of the passes, to be read before committing
	pytest tests/passes --update-golden

gpu-compile: ## compile training steps for an H100 without one; tables into docs/gpu-evidence.md
	python benchmarks/gpu_compile.py --write
