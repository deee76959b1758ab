#!/usr/bin/env bash
# Everything that wants a CUDA device, in order of worth and in pieces of under nine minutes.
#
#     scripts/gpu_day.sh FOLDER              # again and again, until its exit code is not 75
#     scripts/gpu_day.sh --dry-run FOLDER    # the same order with tiny cells on the CPU, to try the script
#
# FOLDER takes all that comes out: a log and the exit code of each step (NAME.log, NAME.code), check.jsonl, bench-*.json
# and results/. A step that has a code is not taken again; remove NAME.code to repeat it. What trains goes on from its
# checkpoint. Exit codes: 0 all is done; 1 all is done and a step failed; 75 time is up, run the same command again;
# 130 interrupted. PYTHON names the interpreter (.venv/bin/python), GPU_DAY_SECONDS a piece (500).
set -uo pipefail

DRY=
[ "${1:-}" = --dry-run ] && { DRY=1; shift; }
[ $# = 1 ] || { echo "usage: $0 [--dry-run] FOLDER" >&2; exit 2; }
mkdir -p "$1" && FOLDER=$(cd "$1" && pwd) || exit 2
PYTHON=$(command -v "${PYTHON:-.venv/bin/python}") || { echo "$0: no ${PYTHON:-.venv/bin/python}; name one in PYTHON" >&2; exit 2; }
PYTHON=$(cd "$(dirname "$PYTHON")" && pwd)/$(basename "$PYTHON")
cd "$(dirname "$0")/.." || exit 2
LIMIT=${GPU_DAY_SECONDS:-500}
LEAST=$((LIMIT > 60 ? 30 : 1)) # seconds below which no further step begins
GRACE=20                       # seconds to write checkpoints in
export DBNRUN_RESULTS="$FOLDER/results"
FAILED=()
trap 'exit 130' INT TERM HUP

# step NAME COMMAND…: the command once, to its end; cut off when the piece is over, and begun again in the next.
step() {
    local name=$1 left=$((LIMIT - SECONDS)) begun=$SECONDS code
    shift
    if [ ! -e "$FOLDER/$name.code" ]; then
        [ "$left" -ge "$LEAST" ] || again "$name"
        echo "$(date +%H:%M:%S) $name"
        echo "+ $*" >>"$FOLDER/$name.log"
        timeout --foreground --signal=TERM --kill-after=$GRACE "$left" "$@" >>"$FOLDER/$name.log" 2>&1
        code=$?
        # 124 and 137: out of time. A command that had a whole piece to itself and can begin anew only never ends.
        if [ $code = 124 ] || [ $code = 137 ]; then
            { [[ $name == [0-4]-* ]] && [ "$name" != 3-check ] && [ "$begun" -lt 5 ]; } || again "$name"
        fi
        [ $code = 130 ] && exit 130
        echo $code >"$FOLDER/$name.code"
    fi
    code=$(cat "$FOLDER/$name.code")
    [ "$code" = 0 ] || FAILED+=("$name (exit code $code)")
}

again() {
    echo "gpu_day: time is up at $1; run the same command again to go on" >&2
    exit 75
}

# train NAME WORDS…: cells of an experiment as stacks.
train() {
    local name=$1
    shift
    step "$name" "$PYTHON" -m dbnrun "$@" hydra.launcher.max_stack=auto progress=false ${TINY[@]+"${TINY[@]}"}
}

DEVICE=cuda STEPS=20 BENCHES=(layer cell grid) TINY=(device=cuda)
FIVE=schedule=alpha_1,alpha_0.25,alpha_0.001,harmonic,alpha_0
SEEDS=(0 1 2)
PAPER=(mnist_a mnist_b mnist_c mnist_baselines ni_a ni_b ni_c ni_baselines cifar10_a cifar10_b cifar10_c cifar10_baselines)
if [ $DRY ]; then
    DEVICE=cpu STEPS=1 BENCHES=() SEEDS=(0) PAPER=(ni_c mnist_baselines)
    TINY=(dataset=digits train.epochs=1 train.limit_batches=1 train.limit_eval=50 device=cpu threads=1 precision=fp32 seed=0)
fi

versions() {
    "$PYTHON" -m dbnrun --version
    "$PYTHON" -m torch.utils.collect_env
    nvidia-smi
    true
}
export PYTHON && export -f versions

step 1-versions bash -c versions
step 1-doctor "$PYTHON" -m dbnrun doctor
for file in train/test_cuda_graph norm/test_dbn train/test_compile runner/test_execute; do
    step "2-tests-$(basename $file)" "$PYTHON" -m pytest -q -rs -p no:cacheprovider "tests/$file.py" -k "device or cuda"
done
step 3-check "$PYTHON" scripts/gpu_check.py --out "$FOLDER/check.jsonl" --device $DEVICE --steps $STEPS
for bench in ${BENCHES[@]+"${BENCHES[@]}"}; do
    step "4-bench-$bench" "$PYTHON" -m dbnrun bench "$bench" --device $DEVICE --json "$FOLDER/bench-$bench.json"
done
# CIFAR-10's missing cells: five schedules of each seed, then the rest.
for seed in "${SEEDS[@]}"; do
    train "5-cifar10-bn-$seed" experiment=paper_cifar10_baselines norm=bn seed="$seed"
    train "5-cifar10-b-$seed" experiment=paper_cifar10_b $FIVE seed="$seed"
    train "5-cifar10-c-$seed" experiment=paper_cifar10_c $FIVE seed="$seed"
done
train 5-cifar10-peers experiment=paper_cifar10_baselines
train 5-cifar10-b experiment=paper_cifar10_b
train 5-cifar10-c experiment=paper_cifar10_c
for name in "${PAPER[@]}"; do
    train "6-paper-$name" experiment="paper_$name"
done

echo "gpu_day: all is done. To add the runs to the committed records: dbnrun report --record --runs $FOLDER/results"
[ ${#FAILED[@]} = 0 ] && exit 0
printf 'gpu_day: failed: %s\n' "${FAILED[@]}" >&2
exit 1
