# Needs python3 (>= 3.11) with pip, and make. Everything else goes into .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo test integration check bench docs conformance clean

demo: $(READY)            ## the tour: the whole stack on real traffic
	@$(BIN)/python -m asgi_enhance demo

test: $(READY)            ## all tests, with a real Redis or Valkey
	@$(BIN)/python -m pytest $(ARGS)

integration: $(READY)     ## with programs of the distribution's: chromium, nginx, prometheus
	@$(BIN)/python -m pytest tests/external $(ARGS)

check: $(READY)           ## lint, format and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(VENV)-bench/.ready  ## the benchmarks, beside the peers they name (these live in an environment of their own)
	@$(VENV)-bench/bin/python -m benchmarks $(ARGS)

docs: $(VENV)-docs/.ready     ## the site, from docs/ to site/
	@$(VENV)-docs/bin/zensical build --clean --strict

conformance: $(READY)     ## the public HTTP cache tests against CacheMiddleware (needs node and npm)
	@$(BIN)/python -m benchmarks.conformance $(ARGS)

clean:
	@rm -rf $(VENV) $(VENV)-bench $(VENV)-conformance $(VENV)-docs .mypy_cache .ruff_cache .pytest_cache build dist site

# pip makes its own way into the environment: Debian's python3 has venv but no ensurepip,
# and pip learned --group only in 25.1.
define environment
	@rm -rf $(1)
	@$(PYTHON) -m venv --without-pip $(1)
	@$(PYTHON) -m pip --python $(1)/bin/python install --quiet 'pip>=25.1'
	@$(1)/bin/python -m pip install --quiet $(2)
	@touch $(1)/.ready
endef

$(READY): pyproject.toml
	$(call environment,$(VENV),--editable '.[server]' --group dev)

$(VENV)-bench/.ready: pyproject.toml
	$(call environment,$(VENV)-bench,--editable '.[server]' --group test --group bench)

$(VENV)-docs/.ready: pyproject.toml
	$(call environment,$(VENV)-docs,--group docs)
