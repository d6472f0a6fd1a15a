"""Scaling laws: how the loss falls with parameters N and tokens D.

    from scratch   L = E + A / N^α + B / D^β           (Hoffmann et al., 2203.15556, section 3.3)
    continued      L = E + A / N^α + B' / (D^β' N^γ)   (2407.02118: a larger base transfers more)

They are fitted as the second paper does: Huber loss (δ = 1e-3) on log L, L-BFGS from many starts,
in float64; the law from scratch first, then B', β' and γ with E, A and α held. (The paper's
published coefficients contradict its own text, so only the form is used.) log L is a log-sum-exp of
three lines in log N and log D, one for each term, and that makes the fit well behaved. While
fitting, N and D are counted from their geometric means; otherwise intercepts and slopes would hide
each other.

Intervals come from a parametric bootstrap: new losses are drawn around the fitted law, with normal
noise of the residuals' size, and fitted again. Runs of one size and seed share a part of that
noise, because they share the base that they continue from, the random weights, and the order of the
data. Drawing runs with replacement would often leave out a whole size or budget of a small grid.
Drawing the residuals themselves is too sure of itself: a Huber loss with so small a δ is nearly an
absolute one, which passes right through as many points as it has parameters.
"""
import numpy as np
import torch

from common.cli import progress

# θ: the logarithms of E, A and B, and the exponents. From scratch γ = 0.
E, A, ALPHA, B, BETA, GAMMA = range(6)
DELTA = 1e-3


def log_loss(theta: torch.Tensor, n: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """log L of θ (..., 6) at log N and log D (points,): (..., points).

    >>> theta = torch.tensor([0.0, 0.0, 0.5, 0.0, 1.0, 0.0])     # E = A = B = 1
    >>> log_loss(theta, torch.zeros(1), torch.zeros(1)).exp()    # at N = D = 1
    tensor([3.])
    """
    e, a, alpha, b, beta, gamma = theta[..., None].unbind(-2)
    terms = torch.broadcast_tensors(e, a - alpha * n, b - beta * d - gamma * n)
    return torch.stack(terms).logsumexp(0)


# ---- Fitting -------------------------------------------------------------------------------------


def moved(theta, shift: torch.Tensor, sign: int = 1) -> torch.Tensor:
    """θ for log N and log D counted from `shift` (2,), or, with sign −1, back from there. Only the
    intercepts of A and B change."""
    theta = torch.as_tensor(theta, dtype=torch.float64).clone()
    theta[A] -= sign * theta[ALPHA] * shift[0]
    theta[B] -= sign * (theta[BETA] * shift[1] + theta[GAMMA] * shift[0])
    return theta


def fit(
    N,
    D,
    L,
    held: dict[int, float],
    starts: int = 20,
    near=None,
    seed: int = 0,
) -> np.ndarray:
    """θ (6,) of the law that best fits the losses L of models of N parameters after D tokens.

    `held`: those of its numbers that are given. The search begins at `starts` random points, and at
    θ `near`.
    """
    n, d, y = (torch.tensor(np.log(x), dtype=torch.float64) for x in (N, D, L))
    shift = torch.stack((n.mean(), d.mean()))
    free = [i for i in range(6) if i not in held]

    # Random starts: each term between a fiftieth of the loss and all of it.
    rng = np.random.default_rng(seed)
    lowest = y.min()
    low = torch.tensor([lowest - 1.5, lowest - 4, 0.05, lowest - 4, 0.05, -0.3])
    high = torch.tensor([lowest, lowest, 1.5, lowest, 1.0, 0.3])
    firsts = [low + (high - low) * torch.tensor(rng.random(6)) for _ in range(starts)]
    if near is not None:
        firsts.append(moved(near, shift))

    best = None
    least = np.inf
    for first in firsts:
        theta, loss = descend(first, free, held, n - shift[0], d - shift[1], y, shift)
        if loss < least:
            best = moved(theta, shift, sign=-1).numpy()
            least = loss
    return best


def descend(
    first: torch.Tensor,
    free: list[int],
    held: dict[int, float],
    n: torch.Tensor,
    d: torch.Tensor,
    y: torch.Tensor,
    shift: torch.Tensor,
) -> tuple[torch.Tensor, float]:
    """L-BFGS from one start: θ, for n and d as they are given, and its Huber loss."""
    x = first[free].double().requires_grad_()

    def theta() -> torch.Tensor:
        """The numbers that are searched for, among those that are held."""
        whole = torch.zeros(6, dtype=torch.float64)
        whole[list(held)] = torch.tensor(list(held.values()), dtype=torch.float64)
        if A in held:
            whole[A] -= whole[ALPHA] * shift[0]
        return whole.index_put((torch.tensor(free),), x)

    optimizer = torch.optim.LBFGS(
        [x],
        max_iter=300,
        history_size=20,
        tolerance_grad=1e-12,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.huber_loss(log_loss(theta(), n, d), y, delta=DELTA)
        loss.backward()
        return loss

    optimizer.step(closure)
    loss = closure().item()
    return theta().detach(), loss


def both(
    scratch: tuple,
    continued: tuple,
    near=(None, None),
    starts: int = 20,
) -> tuple[np.ndarray, np.ndarray]:
    """θ of the law from scratch, then of the continued one; each argument is (N, D, L)."""
    first = fit(*scratch, {GAMMA: 0.0}, starts, near[0])
    shared = {i: first[i] for i in (E, A, ALPHA)}
    return first, fit(*continued, shared, starts, near[1])


# ---- Intervals -----------------------------------------------------------------------------------


def noise(residuals: np.ndarray, group: np.ndarray, parameters: int) -> tuple[float, float]:
    """Standard deviations of what the residuals (points,) of a group have in common, and of what
    each has of its own. Together they are wider than the residuals, by the parameters that were
    fitted to these.

    >>> noise(np.array([0.1, 0.1, -0.1, -0.1]), np.array([0, 0, 1, 1]), 0)
    (0.1, 0.0)
    """
    mean = (np.bincount(group, residuals) / np.bincount(group))[group]
    own = ((residuals - mean) ** 2).sum() / max(1, len(group) - len(set(group)))
    whole = (residuals**2).sum() / max(1, len(group) - parameters)
    return float(np.sqrt(max(0, whole - own))), float(np.sqrt(min(own, whole)))


def bootstrap(
    scratch: tuple,
    continued: tuple,
    fitted: tuple,
    group: np.ndarray,
    draws: int = 100,
    seed: int = 0,
) -> list[tuple]:
    """Both θ of `draws` redrawn sets of losses.

    `group` (points,) numbers the runs that share a base and a seed, in the order of either set.
    """
    rng = np.random.default_rng(seed)
    samples = []
    for _ in progress(range(draws), "bootstrap"):
        drawn = []
        for (N, D, L), theta, parameters in (
            (scratch, fitted[0], 5),
            (continued, fitted[1], 3),
        ):
            law = loss(theta, N, D)
            common, own = noise(np.log(L / law), group, parameters)
            shared = common * rng.standard_normal(max(group) + 1)[group]
            alone = own * rng.standard_normal(len(L))
            drawn.append((N, D, law * np.exp(shared + alone)))
        samples.append(both(*drawn, near=fitted, starts=1))
    return samples


# ---- What the laws say ---------------------------------------------------------------------------


def loss(theta: np.ndarray, N, D) -> np.ndarray:
    """L by a law, at N and D, numbers or (points,): (points,)."""
    pairs = np.broadcast_arrays(np.log(N, dtype=float), np.log(D, dtype=float))
    n, d = (torch.tensor(x.ravel()) for x in pairs)
    return log_loss(torch.tensor(theta), n, d).exp().numpy()


def split(theta: np.ndarray, flops: float) -> tuple[float, float, float]:
    """The split of a budget C = 6 N D with the least loss, on a grid: (N, D, L).

    NaN where the optimum is at the grid's end: more parameters are always better (γ ≥ β'), or never
    (α ≤ 0, if in those runs the loss does not fall with N).
    """
    N = np.geomspace(1e3, 1e13, 20_001)
    losses = loss(theta, N, flops / 6 / N)
    best = losses.argmin()
    if best in (0, len(N) - 1):
        return np.nan, np.nan, np.nan
    return N[best], flops / 6 / N[best], losses[best]


def saved(scratch: np.ndarray, continued: np.ndarray, N: float, D: float) -> float:
    """The share of D tokens from scratch that continuing saves: 1 − (its tokens to the same
    loss) / D.

    It is not what continuing saves of its own D tokens: no run from scratch has reached the loss
    after these.
    """
    log_term = scratch[B] - scratch[BETA] * np.log(D)
    log_tokens = (continued[B] - continued[GAMMA] * np.log(N) - log_term) / continued[BETA]
    return 1 - np.exp(log_tokens) / D
