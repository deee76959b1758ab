"""What other programs call a key, a choice or a verb, and what it is here. Suggestions alone: none is accepted."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

# A word of elsewhere, in lower case and with underscores, and ours; it is offered where ours is among the known words.
ALIASES = {
    # normalizers
    "batchnorm": "bn", "batch_norm": "bn", "batchnorm1d": "bn", "batchnorm2d": "bn", "batch_normalization": "bn",
    "diminishing_batch_norm": "dbn", "diminishing_bn": "dbn", "diminishing": "dbn",
    "layernorm": "ln", "layer_norm": "ln", "groupnorm": "gn", "group_norm": "gn", "rmsnorm": "rms", "rms_norm": "rms",
    "batchrenorm": "batch_renorm", "brn": "batch_renorm", "onlinenorm": "online_norm",
    # data sets, networks, optimizers, schedules
    "cifar": "cifar10", "cifar_10": "cifar10", "cifar_100": "cifar100", "fashionmnist": "fashion_mnist",
    "fmnist": "fashion_mnist", "kdd": "ni", "kddcup99": "ni", "imagefolder": "folder", "csv": "table",
    "mlp": "fnn", "fully_connected": "fnn", "convnet": "cnn", "1/m": "harmonic", "1/m^2": "inverse_square",
    "onecycle": "one_cycle", "onecyclelr": "one_cycle", "one_cycle_lr": "one_cycle", "steplr": "step",
    "multistep": "step", "multisteplr": "step", "cosine_annealing": "cosine", "cosineannealinglr": "cosine",
    # values
    "gpu": "cuda", "float32": "fp32", "bfloat16": "bf16",
    # keys
    "learning_rate": "optimizer.lr", "lr_scheduler": "lr_schedule", "scheduler": "lr_schedule",
    "num_epochs": "train.epochs", "max_epochs": "train.epochs", "n_epochs": "train.epochs",
    "batchsize": "train.batch_size", "bs": "train.batch_size", "random_seed": "seed", "data": "dataset",
    "network": "model", "net": "model", "arch": "model.arch", "optim": "optimizer", "opt": "optimizer",
    "normalization": "norm", "normalizer": "norm", "norm_layer": "norm", "warmup_epochs": "lr_schedule.warmup",
    "epsilon": "eps", "output_dir": "results_dir", "out_dir": "results_dir",
    "warmup": "lr_schedule.warmup", "alpha": "schedule.alpha", "tb": "tensorboard",
    # verbs
    "list": "runs", "ls": "runs", "show": "runs", "download": "data", "fetch": "data", "plot": "report",
    "benchmark": "bench", "dry_run": "plan",
}  # fmt: skip

# Words KEY=VALUE, and verbs, that need a sentence. {0} is what the pattern's group matched.
SENTENCES = {
    r"schedule=(?:alpha_)?(\d*\.?\d+)": "Write a constant as schedule=constant schedule.alpha={0}.",
    r"model=((?:wide_)?resne\w*|densenet\w*|vgg\w*|mobilenet\w*|efficientnet\w*|googlenet)": (
        "Networks of torchvision are model=torchvision model.arch={0}."
    ),
    r"(?:optimizer\.|train\.)?(?:weight_decay|wd|l2)=(.*)": (
        "Weight decay belongs to a group of parameters: optimizer.groups.weights.weight_decay={0}."
    ),
    r"(?:trainer\.)?(?:n?_?gpus?|num_gpus|devices|accelerator|cuda)=.*": (
        "That is not supported: a run trains on one device, device=cuda."
    ),
    r"(?:train\.|dataset\.)?(?:num_)?workers=.*": "That is not supported: data sets lie in memory as a whole.",
    r"(?:use_)?(?:amp|mixed_precision|fp16|autocast)=.*": "Mixed precision is precision=bf16.",
    r"(?:use_)?(wandb|tensorboard|mlflow|trackio)=.*": "Write logger={0}.",
    r"project=.*": "A logger's own variable names its project, such as WANDB_PROJECT.",
    r"(norm|model|dataset|optimizer)=(.*[:/].*)": "A class of your own is {0}=custom {0}.target={1}.",
    r"resume=.*|resume": "No word is needed: the same command goes on where it stopped.",
    r"train|fit|run": "Training needs no verb: dbnrun norm=dbn seed=0.",
    r"sweep|grid|multirun": "A sweep is dbnrun -m norm=bn,dbn seed=0,1.",
    r"eval|evaluate|test": "That is not supported: training evaluates after every epoch; `dbnrun report` shows it.",
}

CLOSE = 0.65  # of difflib's ratio: dnb is dbn (0.67), learning_rate is not learned_eps (0.58)


def sentence(word: str) -> str:
    """' …' for a word that SENTENCES explains, else ''."""
    for pattern, said in SENTENCES.items():
        if match := re.fullmatch(pattern, word):
            return " " + said.format(*match.groups())
    return ""


def nearest(word: str, known: Iterable[str]) -> str:
    """' Did you mean …?' for the known word that `word` is elsewhere, or is nearly; '' where none is close."""
    by_lower = {name.lower(): name for name in known}
    lower = str(word).lower()
    elsewhere = ALIASES.get(lower.replace("-", "_"))
    close = [elsewhere] if elsewhere in by_lower else difflib.get_close_matches(lower, by_lower, n=1, cutoff=CLOSE)
    return meant([by_lower[name] for name in close])


def nearest_key(key: str, known: Iterable[str]) -> str:
    """The same for a dotted key, by its last part: within its section where there is one, else anywhere."""
    # A choice of the group sets its name; train and checkpoint hold keys, and are none.
    known = [each for each in known if not each.endswith(".name") and each not in ("train", "checkpoint")]
    section, _, last = key.rpartition(".")
    ours = ALIASES.get(key) or ALIASES.get(last, last)
    if ours in known:
        return meant([ours])
    same = [each for each in known if each.rpartition(".")[2] == ours]
    within = [each for each in known if each.startswith(f"{section}.")]
    if f"{section}.{ours}" in same:
        return meant([f"{section}.{ours}"])
    return _near(last, within) or meant(same) or ("" if within else _near(last, known))


def _near(last: str, known: list[str]) -> str:
    """' Did you mean …?' for the key whose last part is nearest."""
    by_last = {each.rpartition(".")[2]: each for each in reversed(known)}
    return meant([by_last[name] for name in difflib.get_close_matches(last, by_last, n=1, cutoff=CLOSE)])


def meant(words: list[str]) -> str:
    """' Did you mean …?' for these words, '' for none."""
    return f" Did you mean {' or '.join(map(repr, words))}?" if words else ""
