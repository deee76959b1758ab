"""The same network trained by PyTorch Lightning, where it is installed; nothing else of dbnrun needs it."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dbnrun.torchvision_shim import torchvision  # noqa: F401 # isort: skip - first: Lightning imports it too
import lightning  # pyright: ignore[reportMissingImports]
import torchmetrics  # pyright: ignore[reportMissingImports]

Loader = torch.utils.data.DataLoader[Any]


class Module(lightning.LightningModule):  # pyright: ignore[reportUntypedBaseClass]
    """What a Lightning template holds for classification: loss and accuracy, logged by step and by epoch."""

    def __init__(self, model: nn.Module, metrics: bool) -> None:
        super().__init__()
        self.model = model
        self.metrics = metrics
        self.accuracy = nn.ModuleDict(
            {part: torchmetrics.Accuracy(task="multiclass", num_classes=10) for part in ("train_", "val_")}
        )

    def _measure(self, batch: list[Tensor], part: str) -> Tensor:
        x, y = batch
        logits = self.model(x)
        loss = F.cross_entropy(logits, y)
        if self.metrics:
            self.accuracy[part](logits, y)
            self.log(f"{part}acc", self.accuracy[part], on_epoch=True, prog_bar=True)
        self.log(f"{part}loss", loss, on_epoch=self.metrics, prog_bar=self.metrics)
        return loss

    def training_step(self, batch: list[Tensor], _index: int) -> Tensor:
        return self._measure(batch, "train_")

    def validation_step(self, batch: list[Tensor], _index: int, _loader: int = 0) -> None:
        self._measure(batch, "val_")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adagrad(self.parameters(), lr=0.01, weight_decay=1e-4)


def fit(
    model: nn.Module, loader: Loader, validate: Loader | None = None, *, template: bool = False, **more: Any
) -> Callable[[], None]:
    """Trainer.fit for an epoch, its set-up included: bare, or with what templates switch on."""
    for logger in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    module = Module(model, template)

    def epoch() -> None:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            settings: dict[str, Any] = {"max_epochs": 1, "accelerator": "cpu", "enable_model_summary": False, **more}
            if template:
                from lightning.pytorch.loggers import CSVLogger  # pyright: ignore[reportMissingImports]

                settings |= {"logger": CSVLogger(folder), "default_root_dir": folder}
            else:
                settings |= {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
            lightning.Trainer(**settings).fit(module, loader, validate)

    return epoch
