# `make demo` and `make test` do the whole set-up on a fresh machine. PYTHON names the interpreter to start from.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed

.PHONY: demo test install

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	@echo "installing into .venv: this takes a few minutes, most of them for torch"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

# Pre-train on the built-in data set, then evaluate the encoder with kNN and a linear classifier.
demo: install
	$(BIN)/simclr pretrain --preset shapes || $(BIN)/simclr pretrain --preset shapes --resume
	$(BIN)/simclr eval shapes-s0 --knn --linear
	@echo
	@echo "Where to look next:"
	@echo "  $(BIN)/simclr pretrain --preset shapes --drop color_jitter --drop grayscale   (then eval it: why colour matters)"
	@echo "  $(BIN)/simclr ui                                                               (every run, in the browser)"
	@echo "  $(BIN)/simclr presets                                                          (CIFAR-10 and more)"

# Run lint, format, types and tests.
test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder
