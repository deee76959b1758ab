"""What a user of another program types: each word is refused with what it is here, or that it is not supported."""

import pytest

from dbnrun.cli import VERBS, main
from dbnrun.config.aliases import ALIASES, nearest
from dbnrun.config.registry import choosable
from dbnrun.config.schema import LOGGERS, known_keys

MEANT = [
    ("plan norm=batchnorm", "Did you mean 'bn'?"),
    ("plan norm=batch_norm", "Did you mean 'bn'?"),
    ("plan norm=BatchNorm2d", "Did you mean 'bn'?"),
    ("plan norm=layernorm", "Did you mean 'ln'?"),
    ("plan norm=dnb", "Did you mean 'dbn'?"),
    ("plan learning_rate=0.1", "Did you mean 'optimizer.lr'?"),
    ("plan lr=0.1", "Did you mean 'optimizer.lr'?"),
    ("plan train.lr=0.1", "Did you mean 'optimizer.lr'?"),
    ("plan train.seed=1", "Did you mean 'seed'?"),
    ("plan norm.epsilon=1", "Did you mean 'norm.eps'?"),
    ("plan momentum=0.9", "Did you mean 'norm.momentum' or 'optimizer.momentum'?"),
    ("plan lr_scheduler=cosine", "Did you mean 'lr_schedule'?"),
    ("plan max_epochs=3", "Did you mean 'train.epochs'?"),
    ("plan optimzer.lr=1", "Did you mean 'optimizer.lr'?"),
    ("plan device=gpu", "expected one of auto, cpu, cuda. Did you mean 'cuda'?"),
    ("plan weight_decay=1e-4", "belongs to a group of parameters: optimizer.groups.weights.weight_decay=1e-4."),
    ("plan optimizer.weight_decay=0", "belongs to a group of parameters: optimizer.groups.weights.weight_decay=0."),
    ("plan gpus=1", "That is not supported: a run trains on one device, device=cuda."),
    ("plan num_workers=4", "That is not supported: data sets lie in memory as a whole."),
    ("plan model=resnet18", "model=torchvision model.arch=resnet18."),
    ("plan schedule=0.3", "Write a constant as schedule=constant schedule.alpha=0.3."),
    ("plan schedule=alpha_0.3", "Write a constant as schedule=constant schedule.alpha=0.3."),
    ("seed=[0,1,2]", "expected a whole number. To sweep over several: dbnrun -m seed=0,1,2."),
    ("-m seed=[0,1,2]", "expected a whole number. To sweep over several: dbnrun -m seed=0,1,2."),
    ("--plan norm=bn", "--plan: plan is a verb; write dbnrun plan in front of the rest."),
    ("norm=bn --report", "--report: report is a verb; write dbnrun report in front of the rest."),
    ("stauts", "stauts: no such verb; expected one of plan, status, runs,"),
    ("stauts", "Did you mean 'status'?"),
    ("train norm=bn", "Training needs no verb: dbnrun norm=dbn seed=0."),
    ("train", "Training needs no verb: dbnrun norm=dbn seed=0."),
    ("ls", "Did you mean 'runs'?"),
    ("norm=bn, dbn", "'norm=bn, dbn': a space ends a word; write norm=bn,dbn without a space."),
    ("-m norm=bn, dbn, ln seed=1", "'norm=bn, dbn,': a space ends a word; write norm=bn,dbn,ln without a space."),
    ("norm=bn ,dbn", "'norm=bn ,dbn': a space ends a word; write norm=bn,dbn without a space."),
    ("dataset = mnist", "'dataset =': a space ends a word; write dataset=mnist without a space."),
    ("plan dataset = mnist", "'dataset =': a space ends a word; write dataset=mnist without a space."),
    ("dataset =mnist", "'dataset =mnist': a space ends a word; write dataset=mnist without a space."),
    ("plan dataset= mnist", "'dataset= mnist': a space ends a word; write dataset=mnist without a space."),
    ("plan alpha=0.1", "Did you mean 'schedule.alpha'?"),
    ("plan warmup=5", "Did you mean 'lr_schedule.warmup'?"),
    ("plan amp=true", "Mixed precision is precision=bf16."),
    ("plan wandb=true", "Write logger=wandb."),
    ("plan logger=tb", "Did you mean 'tensorboard'?"),
    ("plan project=x", "such as WANDB_PROJECT."),
    ("plan norm=mynorm.py:Half", "A class of your own is norm=custom norm.target=mynorm.py:Half."),
    ("plan norm=HalfRMS", "A class of your own is norm=custom norm.target=FILE.py:NAME."),
    ("norm=bn norm.target=x.py:Y", "it is an option of custom. Write norm=custom norm.target="),
    ("norm=custom norm.target=x.py:Y norm.p=3", "An option of your own class is norm.options.p=…."),
    ("norm=gn norm.groups=3", "Did you mean 'norm.num_groups'?"),
    ("-m norm=bn --cfg job", "`dbnrun plan` shows what a sweep would train."),
    ("experiment=demo --cfg job", "`dbnrun plan` shows what a sweep would train."),
    ("model.widths=128,128", "model.widths=128,128: expected a list in brackets: model.widths=[128,128]."),
    ("--dry-run norm=bn", "--dry-run: plan is a verb; write dbnrun plan in front of the rest."),
    ("--epochs=3 norm=bn", "--epochs=3: there is no such flag. Did you mean 'train.epochs'?"),
    ("compare bn dbn --baseline norm=bn", "bn: there is no such folder; expected one, or a filter such as norm=bn."),
    ("runs ls learning_rate=1", "Did you mean 'optimizer.lr'?"),
    ("-m norm=bn,,dbn", "norm=bn,,dbn: a value is missing beside a comma."),
    ("norm:bn", "Write norm=bn."),
    ("NORM=bn", "Did you mean 'norm'?"),
    ("--norm=bn", "Keys have no dashes: norm=bn."),
    ("norm=dbn norm.stats_grad=flase", "Did you mean 'false'?"),
    ("--config-name norm/bn", "--config-name, --config-path and --hydra-help are not supported"),
    ("--hydra-help", "--config-name, --config-path and --hydra-help are not supported"),
    ("norm=bn norm.num_groups=4", "Leave it out, or write norm=gn norm.num_groups=4."),
]


@pytest.mark.parametrize(("line", "said"), MEANT)
def test_a_word_of_another_program_is_answered_with_ours(command, tmp_path, line, said):
    code, text = command(*line.split())
    assert code == 2 and text.count("\n") == 1 and said in text, text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "line", ["plan norm=xyzzy", "plan trainer=fast", "plan name=x", "plan optimizer.foo=1", "xyzzy"]
)
def test_where_nothing_fits_nothing_is_suggested(command, line):
    code, text = command(*line.split())
    assert code == 2 and "Did you mean" not in text
    assert "not supported" in text or "no such verb" in text, text


def test_two_settings_in_one_word_are_told_apart(command):
    code, text = command("norm=bn schedule=harmonic")
    assert code == 2 and text.count("\n") == 1 and "two settings in one word; quote each alone, or none." in text, text


def test_a_mistyped_flag_of_a_verb_is_answered_with_the_flag(capfd):
    with pytest.raises(SystemExit):
        main(["compare", "norm=bn", "--basline", "norm=bn"])
    assert "Did you mean '--baseline'?" in capfd.readouterr().err


def test_a_quoted_list_with_spaces_is_a_sweep(command):
    code, text = command("plan", "norm=bn, dbn")
    assert code == 0 and text.startswith("2 runs\n")


@pytest.mark.parametrize("word", ALIASES)
def test_every_alias_leads_to_a_word_that_there_is(word):
    leaves = [key.rpartition(".")[2] for key in known_keys()]
    choices = [name for names in choosable().values() for name in names]
    known = dict.fromkeys([*choices, *VERBS, *known_keys(), *leaves, *LOGGERS, "cuda", "bf16", "fp32"])
    assert nearest(word, known) == f" Did you mean {ALIASES[word]!r}?"
