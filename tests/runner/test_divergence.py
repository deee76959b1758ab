"""What a user sees of cells that diverge: the exit code, one line that says where and what to do, retry=diverged."""

import json

SICK = ["norm=none", "optimizer=sgd", "train.epochs=2", "train.limit_batches=4", "device=cpu", "progress=false"]


def test_a_cell_that_diverges_exits_with_1_says_where_and_what_to_do_and_again_when_it_is_skipped(command, tmp_path):
    words = [*SICK, "optimizer.lr=1e30"]
    for began in ("diverged at epoch 1, step 2", "skipped (diverged before at epoch 1, step 2"):
        code, said = command(*words)
        assert code == 1 and said.startswith(began), said
        line = said.splitlines()[-1]
        assert line.startswith(
            "dbnrun: the run diverged: the training loss is not finite from epoch 1, step 2 on; a smaller optimizer.lr"
        )
        assert "retry=diverged" in line
    code, said = command(*words, "retry=diverged")
    assert code == 1 and said.startswith("diverged at epoch 1, step 2")
    assert len(list(tmp_path.glob("results/runs/*/metrics.set-aside-1.csv"))) == 1


def test_a_sweep_counts_what_diverged_now_or_before_and_retry_trains_that_alone(command):
    words = ["-m", *SICK, "optimizer.lr=0.01,1e30,1e35"]
    code, said = command(*words)
    assert code == 1 and "dbnrun: 2 of 3 runs diverged; a smaller optimizer.lr" in said
    assert said.count(": the training loss is not finite from epoch 1, step 2 on") == 2
    code, said = command(*words)
    assert code == 1 and "0 to train, 3 finished before" in said and "dbnrun: 2 runs diverged before" in said
    code, said = command(*words, "retry=failed")  # asks for others
    assert code == 0 and "3 runs: 0 to train, 3 finished before" in said
    code, said = command("plan", *words[1:], "retry=diverged", "--json")
    planned = json.loads(said)
    assert planned["counts"] == {"done": 1, "diverged": 2} and planned["cells_without_estimate"] == 0
    assert {cell["detail"] for cell in planned["cells"]} == {"", "epoch 1, step 2"}
    assert "to train, one after another" in command("plan", *words[1:], "retry=diverged")[1]
    assert "to train, one after another" not in command("plan", *words[1:])[1]
    code, said = command("status")
    assert code == 0 and said.count("epoch 1, step 2") == 2 and "1 done, 2 diverged" in said
    code, said = command(*words, "seed=0,1", "retry=diverged")
    assert code == 1 and "2 to train, 1 finished before, 3 skipped by retry=diverged" in said
    assert "2 runs: 2 diverged" in said and "dbnrun: 2 of 2 runs diverged" in said
