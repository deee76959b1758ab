"""What some normalizers do to the weights W (out, in, …) of the map before them, to each output's by themselves."""

from __future__ import annotations

from torch import Tensor


def centralized(w: Tensor) -> Tensor:
    """W minus the mean of each output's weights: weight centralization, Yan et al. 2020, arXiv:2001.06838."""
    return w - _mean(w)


def standardized(w: Tensor) -> Tensor:
    """Each output's weights with mean 0 and variance 1: weight standardization, Qiao et al. 2019, arXiv:1903.10520.

    (W - mean) / sqrt(var + 1e-5), with the biased variance. Small weights end below 1, such as at 0.98 where var is
    4e-4. The authors' PyTorch code divides by the unbiased standard deviation plus 1e-5.
    """
    w = centralized(w)
    return w * (_mean(w.square()) + 1e-5).rsqrt()


def _mean(w: Tensor) -> Tensor:
    return w.mean(tuple(range(1, w.dim())), keepdim=True)
