"""Scaling laws: how the loss falls with parameters N and tokens D, from scratch and continued from a base.

    from scratch   L = E + A / N^α + B / D^β               (Hoffmann et al., 2203.15556, section 3.3)
    continued      L = E + A / N^α + B' / (D^β' N^γ)       (2407.02118, a larger base transfers more)

Fitted as the second paper does: Huber loss (δ = 1e-3) on log L, L-BFGS from many starts, in float64; the law from
scratch first, then B', β', γ with E, A, α held. (Its published coefficients contradict its own text: only the form is
used.) log L is a log-sum-exp of three lines in log N and log D, one for each term: which is why this is well behaved.
N and D are counted from their geometric means while fitting, or intercepts and slopes would hide each other.

Intervals are of a parametric bootstrap: new losses are drawn around the fitted law, with normal noise of the residuals'
size, and fitted again. Runs of one size and seed have a part of that noise in common: they share the base that they go
on from, the random weights, the order of the data. Drawing runs with replacement would often leave out a whole size or
budget of a small grid, and drawing the residuals themselves is too sure: a Huber loss of so small a δ is nearly an
absolute one, which passes right through as many points as it has parameters.
"""
import numpy as np
import torch

from common.cli import progress

E, A, ALPHA, B, BETA, GAMMA = range(6)  # θ: logarithms of E, A and B, and the exponents; from scratch γ = 0
DELTA = 1e-3


def log_loss(theta: torch.Tensor, n: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """log L of θ (..., 6) at log N and log D (points,): (..., points).

    >>> theta = torch.tensor([2.0, 8.0, 0.5, 12.0, 1.0, 0.0]).index_fill(0, torch.tensor([0, 1, 3]), 0.0)
    >>> log_loss(theta, torch.zeros(1), torch.zeros(1)).exp()               # E = A = B = 1 at N = D = 1
    tensor([3.])
    """
    e, a, alpha, b, beta, gamma = theta[..., None].unbind(-2)
    return torch.stack(torch.broadcast_tensors(e, a - alpha * n, b - beta * d - gamma * n)).logsumexp(0)


def fit(N, D, L, held: dict[int, float], starts: int = 20, near=None, seed: int = 0) -> np.ndarray:
    """θ (6,) of the law that fits losses L of models of N parameters after D tokens best; `held` are those of its
    numbers that are given. From `starts` random starts, and from θ `near`."""
    n, d, y = (torch.tensor(np.log(x), dtype=torch.float64) for x in (N, D, L))
    shift = torch.stack((n.mean(), d.mean()))

    def centred(theta, sign=1):  # log N and log D from their means: what changes are the intercepts of A and B
        theta = torch.as_tensor(theta, dtype=torch.float64).clone()
        theta[A] -= sign * theta[ALPHA] * shift[0]
        theta[B] -= sign * (theta[BETA] * shift[1] + theta[GAMMA] * shift[0])
        return theta

    free, rng = [i for i in range(6) if i not in held], np.random.default_rng(seed)
    low = torch.tensor([y.min() - 1.5, y.min() - 4, 0.05, y.min() - 4, 0.05, -0.3])     # terms: from 1/50 of the loss
    high = torch.tensor([y.min(), y.min(), 1.5, y.min(), 1.0, 0.3])                     # to all of it
    firsts = [low + (high - low) * torch.tensor(rng.random(6)) for _ in range(starts)]
    firsts += [] if near is None else [centred(near)]
    best, least = None, np.inf
    for first in firsts:
        x = first[free].double().requires_grad_()

        def theta(x=x):
            whole = torch.zeros(6, dtype=torch.float64)
            whole[list(held)] = torch.tensor(list(held.values()), dtype=torch.float64)
            if A in held:
                whole[A] -= whole[ALPHA] * shift[0]
            return whole.index_put((torch.tensor(free),), x)

        optimizer = torch.optim.LBFGS([x], max_iter=300, history_size=20, tolerance_grad=1e-12, tolerance_change=1e-14,
                                      line_search_fn="strong_wolfe")

        def closure(theta=theta, optimizer=optimizer):
            optimizer.zero_grad()
            loss = torch.nn.functional.huber_loss(log_loss(theta(), n - shift[0], d - shift[1]), y, delta=DELTA)
            loss.backward()
            return loss

        optimizer.step(closure)
        loss = closure().item()
        if loss < least:
            best, least = centred(theta().detach(), -1).numpy(), loss
    return best


def both(scratch: tuple, continued: tuple, near=(None, None), starts: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """θ of the law from scratch, then of the continued one; each argument is (N, D, L)."""
    first = fit(*scratch, {GAMMA: 0.0}, starts, near[0])
    return first, fit(*continued, {i: first[i] for i in (E, A, ALPHA)}, starts, near[1])


def noise(residuals: np.ndarray, group: np.ndarray, parameters: int) -> tuple[float, float]:
    """Standard deviations of what the residuals (points,) of a group have in common, and of what each has of its own;
    together they are wider than the residuals by the parameters that were fitted to these.

    >>> noise(np.array([0.1, 0.1, -0.1, -0.1]), np.array([0, 0, 1, 1]), 0)
    (0.1, 0.0)
    """
    mean = (np.bincount(group, residuals) / np.bincount(group))[group]
    own = ((residuals - mean) ** 2).sum() / max(1, len(group) - len(set(group)))
    whole = (residuals**2).sum() / max(1, len(group) - parameters)
    return float(np.sqrt(max(0, whole - own))), float(np.sqrt(min(own, whole)))


def bootstrap(scratch: tuple, continued: tuple, fitted: tuple, group: np.ndarray, draws: int = 100,
              seed: int = 0) -> list[tuple]:
    """Both θ of `draws` redrawn sets of losses; `group` (points,) numbers the runs that have a base and a seed in
    common, in the order of either set."""
    rng, samples = np.random.default_rng(seed), []
    for _ in progress(range(draws), "bootstrap"):
        drawn = []
        for (N, D, L), theta, parameters in ((scratch, fitted[0], 5), (continued, fitted[1], 3)):
            law = loss(theta, N, D)
            common, own = noise(np.log(L / law), group, parameters)
            common, own = common * rng.standard_normal(max(group) + 1)[group], own * rng.standard_normal(len(L))
            drawn.append((N, D, law * np.exp(common + own)))
        samples.append(both(*drawn, near=fitted, starts=1))
    return samples


def loss(theta: np.ndarray, N, D) -> np.ndarray:
    """L by a law, at N and D, numbers or (points,): (points,)."""
    n, d = (torch.tensor(x.ravel()) for x in np.broadcast_arrays(np.log(N, dtype=float), np.log(D, dtype=float)))
    return log_loss(torch.tensor(theta), n, d).exp().numpy()


def split(theta: np.ndarray, flops: float) -> tuple[float, float, float]:
    """The split of a budget C = 6 N D with the least loss: (N, D, L), on a grid. NaN where the optimum is at its end:
    more parameters are always better (γ ≥ β'), or never (α ≤ 0, if in those runs the loss does not fall with N)."""
    N = np.geomspace(1e3, 1e13, 20_001)
    losses = loss(theta, N, flops / 6 / N)
    best = losses.argmin()
    return (N[best], flops / 6 / N[best], losses[best]) if 0 < best < len(N) - 1 else (np.nan,) * 3


def saved(scratch: np.ndarray, continued: np.ndarray, N: float, D: float) -> float:
    """The share of D tokens from scratch that continuing saves: 1 − (its tokens to the same loss) / D. Not what it
    saves of its own D tokens: the loss after these is one that no run from scratch has reached."""
    log_term = scratch[B] - scratch[BETA] * np.log(D)
    return 1 - np.exp((continued[B] - continued[GAMMA] * np.log(N) - log_term) / continued[BETA]) / D
