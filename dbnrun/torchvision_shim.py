"""The one place through which torchvision is imported.

Its published wheel is compiled for CUDA. Beside a CPU-only torch its operators do not load, and the import stops with
"operator torchvision::nms does not exist", although data sets and models need none of them. Declaring the missing
schemas lets the import through; calling such an operator still raises.

Import this at the top of a module: the failed import's traceback keeps the importing frames, and what they hold, alive.
"""

from __future__ import annotations

import sys

import torch

_declared: list[torch.library.Library] = []  # alive as long as the module: a dropped library takes its schemas along


def _declare_missing_operators() -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)


try:
    import torchvision
except RuntimeError as error:
    if torch.version.cuda is not None or "does not exist" not in str(error):
        raise
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    _declare_missing_operators()
    import torchvision

__all__ = ["torchvision"]
