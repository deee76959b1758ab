"""Torch's determinism switch and its optimizers without its compiler, whose import takes as long as torch's own.

`torch.use_deterministic_algorithms` imports dynamo, and sympy with it, to tell the compiler as well. Some methods of
optimizers are wrapped by `torch._disable_dynamo`, which at their first call imports dynamo to keep it out of them.
Where nothing is compiled, both are needless. Leaving them out leans on two private things of torch:

    torch._C._set_deterministic_algorithms     the switch itself, which the public function calls
    __dynamo_disable                           an attribute of a wrapped method: what the wrapper calls in its place

The public function does it all where one of them is missing, where torch is of a version whose sources have not been
read for this, where a cell is compiled, and where the compiler is imported already.
"""

from __future__ import annotations

import inspect
import sys

import torch

READ = ("2.11", "2.13")  # versions of torch whose sources have been read for this
HOOK = "__dynamo_disable"
WRAPPED = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")  # of every optimizer


def use_deterministic_algorithms(mode: bool, *, compiled: bool) -> None:
    """As torch's own; optimizers made and used from now on import no compiler either, unless `compiled`."""
    methods = [inspect.unwrap(getattr(torch.optim.Optimizer, name)) for name in WRAPPED]
    if _needless(compiled):
        for method in methods:
            vars(method).setdefault(HOOK, method)
        torch._C._set_deterministic_algorithms(mode, warn_only=False)
        return
    for method in methods:
        if vars(method).get(HOOK) is method:
            delattr(method, HOOK)
    torch.use_deterministic_algorithms(mode)


def _needless(compiled: bool) -> bool:
    """Whether the compiler is neither wanted nor there, and can be left out."""
    known = torch.__version__.rpartition(".")[0] in READ and hasattr(torch._C, "_set_deterministic_algorithms")
    return known and not compiled and "torch._dynamo" not in sys.modules
