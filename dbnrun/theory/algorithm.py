"""Algorithm 1 with full gradients on the two-layer model of equations 3 to 5: K pairs (alpha, eta) as one program.

Everything is float64 and carries a first axis K, one entry a pair. Axes: K pairs, D hidden units, C outputs, N
records, n inputs. Hidden values lie as (K, D, N): the first layer of all pairs is one matrix product, and the mean
over records runs along memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dbnrun.theory.problems import Problem
from dbnrun.theory.rows import NUMBERS

Sequence_ = Callable[[np.ndarray], np.ndarray]  # m as float64 array -> values
CHUNK = 4096  # updates whose alpha and eta are tabled at once


@dataclass(frozen=True)
class Theta:
    """What the gradient moves: w1 (K, D, n), w2 (K, C, D), gamma (K, D), beta (K, D)."""

    w1: Tensor
    w2: Tensor
    gamma: Tensor
    beta: Tensor

    def parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.w1, self.w2, self.gamma, self.beta

    def clone(self) -> Theta:
        return Theta(*(part.clone() for part in self.parts()))

    def norm_sq(self) -> Tensor:
        """Sum of squares over all parameters, (K,)."""
        return torch.stack([part.square().flatten(1).sum(1) for part in self.parts()]).sum(0)


@dataclass(frozen=True)
class Lambda:
    """What averaging moves: mu (K, D), sigma (K, D)."""

    mu: Tensor
    sigma: Tensor

    def distance(self, other: Lambda) -> Tensor:
        """Euclidean distance over (mu, sigma), (K,)."""
        return ((self.mu - other.mu).square() + (self.sigma - other.sigma).square()).sum(1).sqrt()


@dataclass(frozen=True)
class Setup:
    """How Algorithm 1 starts and is bounded."""

    eps: float = 1e-4  # epsilon_B, added to sigma
    from_data: bool = True  # lambda(1): the data's statistics at theta(1), or (0, 1)
    box: float | None = None  # |theta|, |mu|, sigma <= box after each update (Assumption 2); None: no projection


def initial(seeds: Sequence[int], inputs: int, width: int, outputs: int) -> Theta:
    """Glorot-normal weights, gamma = 1, beta = 0; entry i of the stack is drawn with seeds[i]."""

    def drawn(seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        w1, w2 = (torch.empty(s, dtype=torch.float64) for s in ((width, inputs), (outputs, width)))
        for weight in (w1, w2):
            torch.nn.init.xavier_normal_(weight, generator=generator)
        return w1, w2

    w1, w2 = (torch.stack(pair) for pair in zip(*map(drawn, seeds), strict=True))
    ones = torch.ones(len(seeds), width, dtype=torch.float64)
    return Theta(w1, w2, ones, torch.zeros_like(ones))


def hidden(theta: Theta, problem: Problem) -> Tensor:
    """z1 = a(W1 x), equation 3: (K, D, N)."""
    k, d, n = theta.w1.shape
    return problem.activation.forward(theta.w1.view(k * d, n) @ problem.x.T).view(k, d, -1)


def statistics(z1: Tensor) -> Lambda:
    """Mean and biased standard deviation of each unit over all records, Algorithm 1, lines 5 and 6."""
    mu = z1.mean(2)
    # Norm of the centred values: no difference of large squares, and faster than var_mean here.
    sigma = torch.linalg.vector_norm(z1 - mu.unsqueeze(2), dim=2) / math.sqrt(z1.shape[2])
    return Lambda(mu, sigma)


def loss_and_gradient(
    theta: Theta, lam: Lambda, z1: Tensor, problem: Problem, eps: float, want_loss: bool = True
) -> tuple[Tensor | None, Theta]:
    """f (K,), equations 4 and 5, and its gradient in theta with lambda held fixed, equation 2.

    y1 = s z1 + t with s = gamma / (sigma + eps), t = beta - s mu is never formed: with G = df/d(W2 y1) (K, C, N),
    S = G z1^T (K, C, D) and g = sum_N G (K, C), every sum over records that theta needs is a product with S or g:

        dW2 = S diag(s) + g t^T    dbeta = W2^T g    dgamma = (sum_c W2 * S - mu dbeta) / (sigma + eps)
        dW1 = ((diag(s) W2^T G) * a'(z1)) x
    """
    r = (lam.sigma + eps).reciprocal()
    s = theta.gamma * r
    t = theta.beta - s * lam.mu
    w2_s = theta.w2 * s.unsqueeze(1)
    shift = torch.einsum("kcd,kd->kc", theta.w2, t).unsqueeze(2)
    z2 = problem.activation.forward(torch.baddbmm(shift, w2_s, z1))
    f, dz2 = problem.loss(z2, want_loss)
    g_out = problem.activation.backward(dz2, z2)
    s_cd = torch.bmm(g_out, z1.transpose(1, 2))
    g = g_out.sum(2)
    dw2 = s_cd * s.unsqueeze(1) + g.unsqueeze(2) * t.unsqueeze(1)
    dbeta = torch.einsum("kcd,kc->kd", theta.w2, g)
    dgamma = r * ((theta.w2 * s_cd).sum(1) - lam.mu * dbeta)
    dz1 = torch.bmm(w2_s.transpose(1, 2), g_out)
    k, d, _ = theta.w1.shape
    dw1 = (problem.activation.backward(dz1, z1).view(k * d, -1) @ problem.x).view(k, d, -1)
    return f, Theta(dw1, dw2, dgamma, dbeta)


def descend(theta: Theta, gradient: Theta, eta: Tensor, box: float | None) -> None:
    """theta(m+1) = theta(m) - eta(m) grad f, Algorithm 1, line 4; in place. eta (K,)."""
    for part, grad in zip(theta.parts(), gradient.parts(), strict=True):
        part.sub_(eta.view(-1, *[1] * (part.dim() - 1)) * grad)
        if box is not None:
            part.clamp_(-box, box)


def average(lam: Lambda, now: Lambda, alpha: Tensor, box: float | None) -> Lambda:
    """lambda(m+1) = alpha(m+1) statistics + (1 - alpha(m+1)) lambda(m), Algorithm 1, line 7. alpha (K,)."""
    # Not lerp: alpha = 1 must leave nothing of lambda(m), and alpha = 0 nothing of the statistics.
    a = alpha.unsqueeze(1)
    mu, sigma = a * now.mu + (1 - a) * lam.mu, a * now.sigma + (1 - a) * lam.sigma
    return Lambda(mu, sigma) if box is None else Lambda(mu.clamp(-box, box), sigma.clamp(0, box))


def log_spaced(iterations: int, per_decade: int) -> list[int]:
    """1, …, iterations, about `per_decade` a decade where there are so many; always the first and the last."""
    exponents = np.arange(math.floor(math.log10(iterations) * per_decade) + 1) / per_decade
    return sorted({1, iterations, *(round(10 ** float(e)) for e in exponents)})


@torch.no_grad()
def run(
    problem: Problem,
    theta: Theta,
    alphas: Sequence[Sequence_],
    etas: Sequence[Sequence_],
    iterations: int,
    log_at: Sequence[int],
    setup: Setup,
    on_iteration: Callable[[int], object] = lambda _m: None,
) -> dict[str, Tensor]:
    """Run Algorithm 1 from `theta` (moved in place) for m = 1 … iterations; each of rows.NUMBERS (K, logged m).

    The last iteration is evaluated but not stepped from. A KeyboardInterrupt ends the run early and keeps what is
    logged; lambda of the last finished iteration then stands for the final one. A pair that overflows goes on as NaN.
    """
    z1 = hidden(theta, problem)
    now = statistics(z1)
    lam = now if setup.from_data else Lambda(torch.zeros_like(now.mu), torch.ones_like(now.sigma))
    step = torch.zeros(len(z1), dtype=torch.float64)
    path = step.clone()
    wanted, logged, saved = set(log_at), [], []
    try:
        for m, alpha, eta, alpha_next in _weights(alphas, etas, iterations):
            logging = m in wanted
            f, gradient = loss_and_gradient(theta, lam, z1, problem, setup.eps, want_loss=logging)
            if logging:
                at = torch.full_like(step, m)
                logged.append((at, f, gradient.norm_sq(), step, path.clone(), lam.distance(now), alpha, eta))
                saved.append(theta.clone())
            if m == iterations:
                break
            descend(theta, gradient, eta, setup.box)
            z1 = hidden(theta, problem)
            now, before = statistics(z1), lam
            lam = average(lam, now, alpha_next, setup.box)
            step = lam.distance(before)
            path += step
            on_iteration(m)
    except KeyboardInterrupt:
        if not logged:
            raise
    final = [loss_and_gradient(t, lam, hidden(t, problem), problem, setup.eps)[1].norm_sq() for t in saved]
    return _columns(logged, final)


def _columns(logged: Sequence[tuple[Tensor, ...]], final: Sequence[Tensor]) -> dict[str, Tensor]:
    """What was logged at each m, in the order of rows.NUMBERS, and the last gradients, as a column a name."""
    names = [name for name in NUMBERS if name != "grad_sq_final"]
    columns = dict(zip(names, zip(*logged, strict=True), strict=True), grad_sq_final=final)
    return {name: torch.stack(list(column), 1) for name, column in columns.items()}


def _weights(
    alphas: Sequence[Sequence_], etas: Sequence[Sequence_], iterations: int
) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """m, alpha(m), eta(m), alpha(m+1), each (K,), tabled a chunk of m at a time."""
    for start in range(1, iterations + 1, CHUNK):
        m = np.arange(start, min(start + CHUNK, iterations + 1) + 1, dtype=float)
        alpha = torch.from_numpy(np.stack([a(m) for a in alphas], 1))
        eta = torch.from_numpy(np.stack([e(m) for e in etas], 1))
        for i in range(len(m) - 1):
            yield start + i, alpha[i], eta[i], alpha[i + 1]
