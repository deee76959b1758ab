"""Learning-rate schedules and label smoothing against torch's own, by themselves and through a run."""

import csv

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from dbnrun.config import registry
from dbnrun.config.compose import composed
from dbnrun.config.registry import UserError
from dbnrun.optim.groups import LearningRates, load_state
from dbnrun.optim.schedules import Length
from dbnrun.runner import execute
from dbnrun.runner.build import build_cell, training_of
from dbnrun.runner.grouping import grouped
from dbnrun.runner.plan import asked

EPOCHS, UPDATES = 6, 10  # of an epoch
TOTAL = EPOCHS * UPDATES
CPU = torch.device("cpu")


def ours(name, **options):
    schedule = registry.make("lr_schedule", name, **options)
    return [0.3 * schedule.at(update, Length(EPOCHS, UPDATES)) for update in range(TOTAL)]


def torchs(make, warm=0):
    """The rates of torch's scheduler that `make` makes, after LinearLR over `warm` updates."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3)
    scheduler = make(optimizer)
    if warm:
        linear = lr_scheduler.LinearLR(optimizer, 1 / (warm + 1), total_iters=warm)
        scheduler = lr_scheduler.SequentialLR(optimizer, [linear, scheduler], [warm])
    rates = [optimizer.param_groups[0]["lr"]]
    while len(rates) < TOTAL:
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


@pytest.mark.parametrize(("warmup", "warm"), [(0, 0), (2, 20), (1.5, 15), (0.04, 0), (6, 60)])
def test_a_warm_up_and_constant_equal_torchs_linear_and_constant(warmup, warm):
    expected = torchs(lambda optimizer: lr_scheduler.ConstantLR(optimizer, factor=1.0), warm)
    assert ours("constant", warmup=warmup) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("warmup", "warm"), [(0, 0), (2, 20), (0.3, 3)])
@pytest.mark.parametrize("final", [0, 0.05])
def test_cosine_equals_torchs_cosine_annealing_over_what_the_warm_up_leaves(warmup, warm, final):
    make = lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, TOTAL - warm, eta_min=0.3 * final)  # noqa: E731
    # Torch computes each rate from the one before and gathers rounding.
    assert ours("cosine", warmup=warmup, final=final) == pytest.approx(torchs(make, warm), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("warmup", "warm"), [(0, 0), (1, 10)])
@pytest.mark.parametrize(("given", "milestones"), [([2, 4.5], [20, 45]), ([], [30, 45])])
def test_milestones_equal_torchs_multi_step_counted_from_the_beginning_of_the_run(warmup, warm, given, milestones):
    make = lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [m - warm for m in milestones], 0.2)  # noqa: E731
    mine = ours("step", warmup=warmup, milestones=given, factor=0.2)
    assert mine == pytest.approx(torchs(make, warm), rel=1e-12)


@pytest.mark.parametrize(("every", "size"), [(2, 20), (0.5, 5), (7, 70)])
def test_steps_of_every_so_many_epochs_equal_torchs_step(every, size):
    expected = torchs(lambda optimizer: lr_scheduler.StepLR(optimizer, size, 0.5))
    assert ours("step", every=every, factor=0.5) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"anneal": "linear"},
        {"pct_start": 0.1, "div_factor": 4, "final_div_factor": 10},
        {"three_phase": True},
        {"three_phase": True, "pct_start": 0.5, "anneal": "linear"},
        {"pct_start": 0.0},
        {"pct_start": 1.0},
    ],
    ids=str,
)
def test_one_cycle_equals_torchs_with_torchs_defaults(options):
    theirs = {("anneal_strategy" if key == "anneal" else key): value for key, value in options.items()}
    make = lambda optimizer: lr_scheduler.OneCycleLR(  # noqa: E731
        optimizer, 0.3, total_steps=TOTAL, cycle_momentum=False, **theirs
    )
    # The lowest rate is a difference of larger numbers.
    assert ours("one_cycle", **options)[:-1] == pytest.approx(torchs(make)[:-1], rel=1e-9)
    assert ours("one_cycle", **options)[-1] == pytest.approx(torchs(make)[-1], rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("name", ["constant", "cosine", "step", "one_cycle"])
@pytest.mark.parametrize("updates", [1, 2, 3, 10])  # with 10 in one epoch, 0.1 of them is torch's division by zero
def test_a_run_of_few_updates_has_a_finite_rate_at_each(name, updates):
    options = {"pct_start": 0.1} if name == "one_cycle" else {"warmup": 1}
    schedule = registry.make("lr_schedule", name, **options)
    assert all(0 < schedule.at(update, Length(1, updates)) <= 1 for update in range(updates))


def config(*overrides, results="unused"):
    quick = ["train.epochs=3", "train.limit_batches=4", "device=cpu", "progress=false", f'results_dir="{results}"']
    return composed([*quick, *overrides])


def by_hand(one, data, schedulers):
    """Weights after the run by a loop of torch's own parts alone, but for the network and the order of the records."""
    cell = build_cell(one, data, CPU)
    model, order = cell.model, cell.rngs.order
    decayed = [p for name, p in model.named_parameters() if name.endswith(".weight") and "norm" not in name]
    others = [p for p in model.parameters() if all(p is not d for d in decayed)]
    groups = [{"params": decayed, "weight_decay": 1e-4}, {"params": others, "lr": 0.05}]
    optimizer = torch.optim.SGD(groups, lr=0.2, momentum=0.9)
    scheduler = schedulers(optimizer)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    losses, rates = [], []
    model.train()
    for _ in range(3):
        for batch in torch.randperm(len(data.train), generator=order).split(100)[:4]:
            optimizer.zero_grad()
            loss = criterion(model(data.train.x[batch]), data.train.y[batch])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            rates.append(optimizer.param_groups[0]["lr"])
            scheduler.step()
    return model, losses, rates


def warmed_cosine(optimizer):
    linear = lr_scheduler.LinearLR(optimizer, 1 / 5, total_iters=4)
    cosine = lr_scheduler.CosineAnnealingLR(optimizer, 8)
    return lr_scheduler.SequentialLR(optimizer, [linear, cosine], [4])


def test_a_run_with_schedule_and_label_smoothing_equals_a_loop_of_torchs_own():
    words = ["norm=bn", "optimizer=sgd", "optimizer.lr=0.2", "optimizer.groups.norm.lr=0.05"]
    words += ["optimizer.groups.biases.lr=0.05", "lr_schedule=cosine", "lr_schedule.warmup=1"]
    one = config(*words, "train.label_smoothing=0.1")
    data = one.dataset.load(None)
    model, losses, rates = by_hand(one, data, warmed_cosine)
    cell = build_cell(one, data, CPU)
    rows = [row for ((row,),) in training_of([[cell]], data).epochs()]
    # float32: torch adds the penalty inside the optimizer.
    for mine, theirs in zip(cell.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    assert [row.train_loss for row in rows] == pytest.approx([sum(losses[i : i + 4]) / 4 for i in (0, 4, 8)], rel=1e-5)
    assert [row.lr for row in rows] == pytest.approx(rates[3::4], rel=1e-9)
    model.eval()
    with torch.no_grad():
        plain = nn.functional.cross_entropy(model(data.test.x), data.test.y).item()
    assert rows[-1].test_loss == pytest.approx(plain, rel=1e-4)  # not smoothed


def test_a_constant_rate_and_no_smoothing_are_the_run_that_does_not_name_them():
    plain = config("optimizer=adam")
    data = plain.dataset.load(None)
    cells = [build_cell(one, data, CPU) for one in (plain, config("optimizer=adam", "lr_schedule.warmup=0"))]
    first, second = (list(training_of([[cell]], data).epochs())[-1][0][0].train_loss for cell in cells)
    assert first == second
    assert all("initial_lr" not in group for cell in cells for group in cell.optimizer.param_groups)
    assert "lr_schedule" in asked(["lr_schedule=cosine"]).cells[0].cell
    assert "lr_schedule" not in asked(["train.label_smoothing=0"]).cells[0].cell


def test_a_sweep_over_schedules_plans_each_and_stacks_only_cells_of_one_schedule():
    plan = asked(["lr_schedule=constant,cosine", "lr_schedule.warmup=0,1", "seed=0,1"])
    assert len(plan.cells) == 8 and plan.folded == 0
    runs = list(grouped([cell.config for cell in plan.cells], lambda _: 10))
    assert [len(stack) for stack in runs] == [2, 2, 2, 2]
    assert len(asked(["lr_schedule=constant,one_cycle,step", "seed=0"]).cells) == 3


def test_a_swept_schedule_and_smoothing_train_together_as_alone(tmp_path):
    words = ["norm=bn", "optimizer=sgd", "optimizer.lr=0.1", "lr_schedule=one_cycle", "train.label_smoothing=0.2"]
    grid = [[*words, "seed=0"], [*words, "seed=1", "optimizer.groups.weights.lr=0.05"]]
    alone = [execute.run(config(*own, results=tmp_path / "alone")) for own in grid]
    together = execute.run_all([[config(*own, results=tmp_path / "stack")] for own in grid])
    for one, (other,) in zip(alone, together, strict=True):
        assert one.name == other.name
        pairs = zip(*(csv.DictReader((end.folder / "metrics.csv").open()) for end in (one, other)), strict=True)
        for mine, theirs in pairs:
            assert mine["lr"] == theirs["lr"]
            assert float(mine["train_loss"]) == pytest.approx(float(theirs["train_loss"]), rel=1e-4)


REFUSED = {
    "lr_schedule=cosine lr_schedule.warmup=-1": "lr_schedule.warmup=-1.0: expected a number of at least 0.",
    "lr_schedule.warmup=3.5 train.epochs=3": "lr_schedule.warmup=3.5: expected at most train.epochs=3",
    "lr_schedule=step lr_schedule.milestones=[5,5]": "lr_schedule.milestones=[5.0, 5.0]: expected epochs in increasing",
    "lr_schedule=step lr_schedule.milestones=[0,5]": "lr_schedule.milestones=0.0: expected a number above 0.",
    "lr_schedule=step lr_schedule.milestones=[5] lr_schedule.every=2": "expected one of every and milestones",
    "lr_schedule=one_cycle lr_schedule.pct_start=0.6 lr_schedule.three_phase=true": "expected at most 0.5 with",
    "train.label_smoothing=1": "train.label_smoothing=1: expected a number of at least 0, below 1.",
    "train.label_smoothing=nan": "train.label_smoothing=nan: expected a number of at least 0, below 1.",
}


@pytest.mark.parametrize("words", REFUSED)
def test_a_schedule_that_cannot_be_meant_is_refused(words):
    with pytest.raises(UserError) as refused:
        composed(words.split())
    assert REFUSED[words] in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "lr_schedule=cosine lr_schedule.factor=0.5",
            "lr_schedule=cosine has no option factor; it is an option of",
        ),
        ("lr_schedule=one_cycle lr_schedule.warmup=1", "it is an option of constant, cosine, step. Leave it out, or"),
        ("lr_schedule=cosine lr_schedule.warmup=99", "lr_schedule.warmup=99: expected at most train.epochs=10"),
        ("lr_schedule=cosin", "Did you mean 'cosine'?"),
    ],
)
def test_a_wrong_option_ends_the_command_with_one_line_and_code_2(dbnrun, words, said):
    done = dbnrun(*words.split())
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1


def test_a_checkpoint_of_replayed_steps_goes_on_by_plain_numbers_and_the_other_way():
    def optimizer():
        return torch.optim.SGD([{"params": [torch.zeros(1)], "lr": 0.2}, {"params": [torch.zeros(1)], "lr": 0.4}])

    first, second, third = optimizer(), optimizer(), optimizer()
    LearningRates([first], first).multiply(0.25)
    assert all(isinstance(group["lr"], torch.Tensor) for group in first.param_groups)
    load_state(second, first.state_dict())
    LearningRates([second]).multiply(0.5)
    assert [group["lr"] for group in second.param_groups] == [0.1, 0.2]
    load_state(third, second.state_dict())
    LearningRates([third], third).multiply(0.25)
    assert [group["lr"].item() for group in third.param_groups] == [0.05, 0.1]
