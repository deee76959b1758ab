"""Cells of several training runs, stacked, each into the folder that it would have had alone."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from dbnrun.config import RunConfig
from dbnrun.experiment import (
    augmentation,
    build_run,
    is_out_of_memory,
    keep_weights,
    load_data,
    progress,
    record,
    run_together,
    store,
)
from dbnrun.fused.train import Run, train_stack
from dbnrun.recording import Recording
from dbnrun.records import Outcome
from dbnrun.train import steps_per_epoch


def run_stack(runs: Sequence[Sequence[RunConfig]]) -> list[list[Outcome]]:
    """Train several runs as one program, each the cells that share it; one run alone is trained as ever.

    The runs must be alike but for what `grouping.stack` lets differ. Where memory is short, halves go one by one.
    """
    if len(runs) == 1:
        return [run_together(runs[0])]
    try:
        return record(runs, _corridor)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    half = len(runs) // 2
    return run_stack(runs[:half]) + run_stack(runs[half:])


def _corridor(runs: Sequence[Sequence[Recording]], device: torch.device) -> None:
    runs = sorted(runs, key=lambda run: run[0].config.seed)  # networks that see the same batches side by side
    config, done = runs[0][0].config, runs[0][0].epochs_done
    data = load_data(config, device)
    built = [build_run(recordings, data, device, len(runs)) for recordings in runs]
    stacked = [Run(cells[0], [cell.view() for cell in cells]) for cells in built]
    with progress(config, steps_per_epoch(len(data.train), config.train), done) as bar:
        for epoch in train_stack(
            stacked,
            data,
            config.train,
            precision=config.precision,
            augment=augmentation(config.dataset),
            epochs_done=done,
            on_step=bar.update,
        ):
            for recordings, cells, rows in zip(runs, built, epoch, strict=True):
                if rows:  # none of a run that has diverged
                    store(recordings, cells, rows)
            losses = [row.train_loss for row in itertools.chain.from_iterable(epoch)]
            bar.set_postfix(loss=f"{min(losses):.3f} to {max(losses):.3f}" if losses else "", refresh=False)
    for recordings, cells in zip(runs, built, strict=True):
        keep_weights(recordings, cells)
