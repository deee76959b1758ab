"""The choices of `dbnrun theory run`, and which assumptions of the paper each activation meets. Knows no torch."""

from __future__ import annotations

DATA = ("digits", "mnist", "regression")
LOSSES = ("cross_entropy", "mse")

# Assumption 6 asks for k with |a(x)| <= k |x|, so a(0) = 0; Assumption 1 for Lipschitz gradients, so a Lipschitz a'.
ACTIVATION_NOTES = {
    "relu": "meets Assumption 6; not Assumption 1: a' jumps at 0, gradients are not Lipschitz",
    "leaky_relu": "meets Assumption 6; not Assumption 1: a' jumps at 0, gradients are not Lipschitz",
    "tanh": "meets Assumptions 1 and 6",
    "sigmoid": "meets Assumption 1; not Assumption 6: a(0) = 1/2",
    "elu": "meets Assumptions 1 and 6 (slope 1 on both sides of 0; a' is Lipschitz)",
    "softplus": "meets Assumption 1; not Assumption 6: a(0) = log 2",
    "identity": "meets Assumptions 1 and 6",
}
