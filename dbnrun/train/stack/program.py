"""Several runs that take their steps together: their networks stacked, their optimizers as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from dbnrun.norm.tracking import share_weights
from dbnrun.train.loop import TrainingRun
from dbnrun.train.stack.networks import stack_networks
from dbnrun.train.stack.optimizer import StackedOptimizer


class Stacked:
    """The program of T runs of one kind of network, ordered by seed; runs of one seed see the same batches."""

    def __init__(self, runs: Sequence[TrainingRun], seeds: Sequence[int]) -> None:
        """Moves the networks' weights into the stack; the cells of a run go on sharing them."""
        distinct = list(dict.fromkeys(seeds))
        self.runs = runs
        self.batch_of = [distinct.index(seed) for seed in seeds]
        self.drawing: Sequence[int] = [seeds.index(seed) for seed in distinct]  # one run a seed draws for all
        self.logits = stack_networks([run.model for run in runs], self.batch_of)
        for run in runs:
            for member in run.members[1:]:
                share_weights(run.model, member.model)
        self.stepping = StackedOptimizer(self.logits.parameters, [run.optimizer for run in runs])
        self.optimizer, self.uniform = self.stepping.driver, self.stepping.uniform
        self.zero_grad, self.add_penalty = self.stepping.zero_grad, self.stepping.add_penalty
        self.update = self.stepping.step

    def labels(self, y: Tensor) -> Tensor:
        return y if len(y) == len(self.runs) else y[self.logits.batch_of]

    def losses(self, logits: Tensor, y: Tensor, label_smoothing: float) -> Tensor:
        return F.cross_entropy(logits, y, reduction="none", label_smoothing=label_smoothing).mean(1)

    def write_back(self) -> None:
        drawn = [self.runs[number].rngs for number in self.drawing]
        for run, batch in zip(self.runs, self.batch_of, strict=True):
            run.rngs.order.set_state(drawn[batch].order.get_state())
            run.rngs.augment.set_state(drawn[batch].augment.get_state())
        self.stepping.hand_out_state()
