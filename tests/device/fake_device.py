"""A CUDA device without one: its tensors have shapes and no numbers, those of the host are real.

What torch itself refuses to compute from a tensor of the device and one of the host is refused here too. Within
`alone` a device must also do without its host, as in the capture of a graph: nothing may be copied from one to the
other, read back, or have a shape that depends on numbers.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.optim import optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

SOURCE = Path(__file__).with_suffix(".cpp")
DEVICE = torch.device("cuda", 0)
aten = torch.ops.aten
INDEXING = (
    aten.index.Tensor, aten._unsafe_index.Tensor, aten.index_put.default, aten.index_put_.default,
    aten._index_put_impl_.default,
)  # fmt: skip
READS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class HostNeededError(AssertionError):
    """A step on the device needed the host."""


def compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "g++"))


def built(cache: Path) -> ctypes.CDLL:
    """The library of SOURCE, compiled once for a version of torch into the folder `cache`."""
    digest = hashlib.sha256(SOURCE.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    library = cache / f"fake_device-{digest}.so"
    if not library.exists():
        root = Path(torch.__file__).parent
        made = library.with_suffix(f".{os.getpid()}")
        flags = ["-std=c++20", "-O0", "-w", "-shared", "-fPIC", f"-I{root / 'include'}", f"-L{root / 'lib'}"]
        command = [str(compiler()), *flags, str(SOURCE), "-o", str(made), "-ltorch_cpu", "-lc10"]
        subprocess.run(command, check=True, capture_output=True, text=True)
        made.replace(library)  # another process may have made the same
    return ctypes.CDLL(str(library))


class FakeDevice(TorchDispatchMode):
    """Lets FakeTensorMode, which must be active, compute what is of the device, and torch what is of the host."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = True  # whether the host may be asked
        self.operations = 0

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Within the block the device must do without the host. Raises HostNeededError where it cannot."""
        self.waits = False
        try:
            yield
        finally:
            self.waits = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        fakes = [isinstance(tensor, FakeTensor) for tensor in tensors]
        to = kwargs.get("device")
        if not any(fakes) and (to is None or torch.device(to).type == "cpu"):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if func.namespace == "aten":
            with self:
                parts = func.decompose(*args, **kwargs)  # of an operation that consists of others
            if parts is not NotImplemented:
                return parts
        if not self.waits:
            refuse_the_host(func, tensors, fakes, to)
        self.operations += 1
        return _computed(func, args, kwargs, tensors)


def refuse_the_host(func: Any, tensors: list[Tensor], fakes: list[bool], to: Any) -> None:
    """Raise HostNeededError where an operation on the device's tensors, `fakes`, needs the host."""
    if not all(fakes):
        shapes = ", ".join(str(tuple(t.shape)) for t, fake in zip(tensors, fakes, strict=True) if not fake)
        raise HostNeededError(f"{func}: a tensor of the host, of shape {shapes}, in a step on the device")
    if any(fakes) and to is not None and torch.device(to).type != "cuda":
        raise HostNeededError(f"{func}: the host takes a copy of a tensor of the device, and waits for it")
    if func in INDEXING:
        if any(t.dtype in (torch.bool, torch.uint8) for t in tensors[1:]):
            raise HostNeededError(f"{func}: indexing by a mask has a shape that depends on the data; the host counts")
    elif READS & set(func.tags):
        raise HostNeededError(f"{func}: the host reads a number of the device, or a shape depends on the data")


def _computed(func: Any, args: Any, kwargs: Any, tensors: list[Tensor]) -> Any:
    """What the device makes of an operation; numbers that the host reads are zeros."""
    first = tensors[0] if tensors else None
    if func is aten._local_scalar_dense.default:
        return 0.0 if tensors[0].is_floating_point() else 0
    if func is aten.batch_norm_update_stats.default:  # torch has it for real devices alone
        x = args[0]
        wide = torch.promote_types(x.dtype, torch.float32)
        return x.new_empty(x.shape[1], dtype=wide), x.new_empty(x.shape[1], dtype=wide)
    if func.overloadpacket.__name__.startswith("_fused_"):  # as are these
        return None
    if first is not None and not isinstance(first, FakeTensor):
        if func is aten.copy_.default:
            return first.zero_()
        if func in INDEXING:  # FakeTensorMode does not notice
            raise RuntimeError(f"{func}: indices should be either on cpu or on the same device as the indexed tensor")
    return tree_map_only(FakeTensor, _of_the_host, func(*args, **kwargs))


def _of_the_host(value: FakeTensor) -> Tensor:
    """A copy that the host takes is real."""
    if value.device.type == "cuda":
        return value
    with unset_fake_temporarily():
        return torch.zeros(value.shape, dtype=value.dtype)


@contextlib.contextmanager
def fake_device(library: ctypes.CDLL) -> Iterator[FakeDevice]:
    """Within the block "cuda" is a fake device; afterwards torch is as it was."""
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    with contextlib.ExitStack() as undone:
        library.install()
        undone.callback(library.uninstall)
        undone.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrites)
        torch.__future__.set_overwrite_module_params_on_conversion(True)  # no real parameter becomes a fake in place
        undone.callback(optimizer._foreach_supported_types.remove, FakeTensor)
        optimizer._foreach_supported_types.append(FakeTensor)
        for place, name, value in (
            (torch.cuda.amp.common, "amp_definitely_not_available", False),
            (torch.cuda, "is_bf16_supported", True),
        ):
            undone.enter_context(mock.patch.object(place, name, return_value=value))
        undone.enter_context(torch.autograd.set_multithreading_enabled(False))
        undone.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield undone.enter_context(FakeDevice())
