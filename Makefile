# The list of habits; .ci/run calls the same targets. Override with make PYTHON=python3.12 venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: venv demo test test-all golden check docs figures reproduce bench clean

venv: .venv/.ready

# constraints.txt holds the exact versions; pyproject.toml the lower bounds.
.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: venv    # BN against DBN on real digits: trains 15 small cells, prints a table, draws the curves
	$(BIN)/dbnrun experiment=demo results_dir=results/demo
	$(BIN)/dbnrun report results/demo --title 'BN against DBN on real digits'

test: venv    # what a change is likely to break, in minutes, on the CPU; with DBNRUN_DATA set, on the real data too
	$(BIN)/pytest -q -n auto -m "not slow"

test-all: test # then the tests marked slow
	$(BIN)/pytest -q -n auto -m slow

golden: venv  # train the short runs of tests/golden again and write down what differs; set DBNRUN_DATA to remake all of them
	$(BIN)/python tests/golden/remake.py

check: venv   # format, lint and missing docstrings, types; links and words of the documents
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/pytest -q tests/test_documents.py

docs: venv    # the documents and the API as a site: build/docs/docs/index.html
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	$(BIN)/sphinx-build --quiet --fail-on-warning --conf-dir docs . build/docs

# These two are about the results of this checkout, wherever others go.
figures reproduce: export DBNRUN_RESULTS := results

# The README's figure: the paper's main setting on MNIST, DBN under protocol A beside PyTorch's BN.
AGAINST_BN := dataset=mnist norm=bn,dbn_inference model.norm_position=before norm.average=std optimizer.lr=0.01 \
  optimizer.groups.weights.weight_decay=0.0001 \
  schedule=alpha_1,alpha_0.75,alpha_0.5,alpha_0.25,alpha_0.1,alpha_0.01,alpha_0.001,harmonic,inverse_square

figures: venv # every table, figure, the page and the documents' results, from the committed records: no training
	$(BIN)/dbnrun theory figures
	$(BIN)/dbnrun report results/records --out results --readme
	$(BIN)/dbnrun compare results/records $(AGAINST_BN) --baseline norm=bn --figure results/figures/mnist-against-bn.png

KINDS := paper_*_* sensitivity_* normalizers_*
EXPERIMENTS := $(sort $(basename $(notdir $(wildcard $(KINDS:%=conf/experiment/%.yaml)))))

reproduce: venv # trains what neither results/records nor results/runs has of every experiment, then redraws; hours on a CPU
	for name in $(EXPERIMENTS); do $(BIN)/dbnrun experiment=$$name skip_recorded=true || exit; done
	$(BIN)/dbnrun report --record --readme

bench: venv   # what dbnrun costs on this CPU, as ratios within one run; under ten minutes
	$(BIN)/dbnrun bench

clean:        # what can be made again; records stay
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis build dist *.egg-info results/demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
