"""Normalizers: Diminishing Batch Normalization and others to compare it with.

from dbnrun.norm import DiminishingBatchNorm2d
torchvision.models.resnet18(norm_layer=DiminishingBatchNorm2d)

What one can choose stands in options.py, which imports no torch; the layers are imported when they are asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dbnrun.norm.dbn import DiminishingBatchNorm1d, DiminishingBatchNorm2d, DiminishingBatchNorm3d, convert_sync

__all__ = ["DiminishingBatchNorm1d", "DiminishingBatchNorm2d", "DiminishingBatchNorm3d", "convert_sync"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dbnrun.norm import dbn  # torch, which a command that trains nothing does without

    return getattr(dbn, name)
