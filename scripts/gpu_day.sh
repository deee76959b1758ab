#!/usr/bin/env bash
# Everything that wants a CUDA device, in order of worth and in pieces of under nine minutes.
#
#     scripts/gpu_day.sh FOLDER              # again and again, until its exit code is not 75
#     scripts/gpu_day.sh --dry-run FOLDER    # the same order with tiny cells on the CPU, to try the script
#
# FOLDER takes all that comes out: the log and the exit code of each step (NAME.log, NAME.code), check.jsonl,
# bench-*.json and results/. A step that has a code is not taken again; remove NAME.code to repeat it. What trains goes
# on from its checkpoint. Exit codes: 0 all is done; 1 all is done and a step failed; 2 refused; 75 time is up, run the
# same command again; 130 interrupted, likewise. PYTHON names the interpreter (.venv/bin/python); GPU_DAY_SECONDS (500)
# is how long a piece takes, to which 20 seconds for writing checkpoints may come.
set -uo pipefail

refuse() {
    echo "gpu_day: $*" >&2
    exit 2
}

DRY=
if [ "${1:-}" = --dry-run ]; then
    DRY=1
    shift
fi
[ $# = 1 ] || refuse "expected one folder for what comes out; usage: $0 [--dry-run] FOLDER"
mkdir -p "$1" && FOLDER=$(cd "$1" && pwd) || refuse "$1: cannot be made; name another folder"
[ $DRY ] || [ ! -e "$FOLDER/dry-run" ] || refuse "$1 holds a dry run; name another folder"
PYTHON=$(realpath -s "${PYTHON:-$(dirname "$0")/../.venv/bin/python}")
[ -x "$PYTHON" ] || refuse "$PYTHON: no such interpreter; make venv, or name one in PYTHON"
cd "$(dirname "$0")/.." || exit 2
# What a killed piece left running holds the lock, too, until its own time is up.
exec 9>"$FOLDER/lock"
flock -n 9 || { echo "gpu_day: another piece is still at work in $FOLDER; run the same command again" >&2; exit 75; }

export DBNRUN_RESULTS="$FOLDER/results"
LIMIT=${GPU_DAY_SECONDS:-500}
LEAST=$((LIMIT > 60 ? 30 : 1)) # with less time left, no further step begins
FAILED=()
trap 'kill $(jobs -p) 2>/dev/null; wait; exit 130' INT TERM HUP

again() {
    echo "gpu_day: time is up at $1; run the same command again to go on" >&2
    exit 75
}

# step NAME COMMAND…: run a command to its end, once; one that is cut off is run again in the next piece.
step() {
    local name=$1 left=$((LIMIT - SECONDS)) begun=$SECONDS code
    shift
    if [ ! -e "$FOLDER/$name.code" ]; then
        [ "$left" -ge "$LEAST" ] || again "$name"
        echo "$(date +%H:%M:%S) $name"
        echo "+ $*" >>"$FOLDER/$name.log"
        timeout --signal=TERM --kill-after=20 "$left" "$@" >>"$FOLDER/$name.log" 2>&1 &
        wait $!
        code=$?
        if [ "$code" = 124 ] || [ "$code" = 137 ]; then # out of time
            resumes "$name" || [ "$begun" -gt 2 ] || echo "$code" >"$FOLDER/$name.code" # it had a whole piece
            again "$name"
        fi
        echo "$code" >"$FOLDER/$name.code"
    fi
    code=$(cat "$FOLDER/$name.code")
    [ "$code" = 0 ] || FAILED+=("$name (exit code $code)")
}

# Whether a step that is cut off goes on from there.
resumes() {
    case $1 in 3-* | 5-* | 6-*) true ;; *) false ;; esac
}

# train NAME WORDS…: an experiment's cells, as stacks.
train() {
    local name=$1
    shift
    step "$name" "$PYTHON" -m dbnrun "$@" hydra.launcher.max_stack=auto progress=false "${HOW[@]}"
}

# The experiments of a kind, such as mnist, by name.
experiments() {
    basename -s .yaml -a conf/experiment/paper_"$1"_*.yaml
}

DEVICE=cuda STEPS=20 BENCHES="layer cell grid" SEEDS="0 1 2" HOW=(device=cuda)
TESTS="train/test_cuda_graph norm/test_dbn train/test_compile runner/test_execute"
PAPER="$(experiments mnist) $(experiments ni) $(experiments cifar10)"
if [ $DRY ]; then
    touch "$FOLDER/dry-run"
    DEVICE=cpu STEPS=1 BENCHES="" SEEDS=0 TESTS=train/test_compile PAPER="paper_ni_c paper_mnist_baselines"
    HOW=(device=cpu threads=1 precision=fp32 dataset=digits seed=0)
    HOW+=(train.epochs=1 train.limit_batches=1 train.limit_eval=100)
fi
FIVE=schedule=alpha_1,alpha_0.25,alpha_0.001,harmonic,alpha_0

step 1-versions "$PYTHON" -m torch.utils.collect_env
step 1-doctor "$PYTHON" -m dbnrun doctor
for file in $TESTS; do
    step "2-tests-${file#*/}" "$PYTHON" -m pytest -q -rs -p no:cacheprovider "tests/$file.py" -k "device or cuda"
done
step 3-check "$PYTHON" scripts/gpu_check.py --out "$FOLDER/check.jsonl" --device $DEVICE --steps $STEPS
for bench in $BENCHES; do
    step "4-bench-$bench" "$PYTHON" -m dbnrun bench "$bench" --device $DEVICE --json "$FOLDER/bench-$bench.json"
done
# CIFAR-10's missing cells: of each seed PyTorch's BN and five schedules, then the rest.
for seed in $SEEDS; do
    train "5-cifar10-bn-$seed" experiment=paper_cifar10_baselines norm=bn "seed=$seed"
    train "5-cifar10-b-$seed" experiment=paper_cifar10_b $FIVE "seed=$seed"
    train "5-cifar10-c-$seed" experiment=paper_cifar10_c $FIVE "seed=$seed"
done
for name in $(experiments cifar10 | grep -v _a); do
    train "5-$name" "experiment=$name"
done
for name in $PAPER; do
    train "6-$name" "experiment=$name"
done

echo "gpu_day: all is done. To add the runs to the committed records: dbnrun report --record $FOLDER/results"
[ ${#FAILED[@]} = 0 ] && exit 0
printf 'gpu_day: failed: %s\n' "${FAILED[@]}" >&2
exit 1
