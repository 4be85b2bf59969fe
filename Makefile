# Each target is one line of real work; `bootstrap` is quick when nothing changed.
SHELL := /bin/bash
RUN := .venv/bin/python
.PHONY: bootstrap demo up down status test simulate check bench bench-fairness soak mutations proto clean

bootstrap:
	@scripts/bootstrap
demo: bootstrap
	$(RUN) -m deploy.local.demo
up: bootstrap
	$(RUN) -m deploy.local up
down: bootstrap
	$(RUN) -m deploy.local down
status: bootstrap
	$(RUN) -m deploy.local status
test: bootstrap
	$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)
simulate: bootstrap
	$(RUN) -m tests.simulation --seeds $${SEEDS:-2000}
check: bootstrap
	scripts/check
bench: bootstrap
	$(RUN) -m bench
bench-fairness: bootstrap
	$(RUN) -m bench fairness $(BENCH_ARGS)
soak: bootstrap
	$(RUN) -m tests.soak --minutes $(or $(MINUTES),20) $(if $(SEED),--seed $(SEED))
mutations: bootstrap
	$(RUN) -m tests.mutations $(GUARANTEES)
proto: bootstrap
	scripts/generate-protos
clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
