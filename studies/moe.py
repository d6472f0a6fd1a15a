"""A sparse feed-forward: a router sends each token to one of X experts, so parameters grow and FLOPs do not.

LOLA (2409.11272) puts 16 experts into every other layer of a multilingual model, and finds that languages choose them
by family. A config.json with `num_experts` does the same here, in the odd layers; there is nothing else to switch on.

Top-1 routing (Switch, 2101.03961, section 2): p = softmax(x Wᵀ), and the expert of the largest p answers. Switch also
multiplies its answer by p, so that the router learns; but an upcycled model (2212.05055), whose experts start as copies
of the dense feed-forward, would then be another model at step 0. So the answer counts once, as Mixtral's would
(2401.04088: p is normalised over the chosen), and p / stop(p) = 1 passes the gradient of log p to the router.

Left alone a router sends everything to a few. The auxiliary loss X Σ f_i P_i (f: share of the tokens that expert i
gets, P: its mean p) is 1 when all get the same and X when one gets all; a layer adds router_aux_loss_coef times it.
"""
import dataclasses
import re

import torch
import torch.nn as nn


class Experts(nn.Module):
    """`experts`: X feed-forwards; `gate`: the router, D → X."""

    def __init__(self, experts: list[nn.Module], gate: nn.Module):
        super().__init__()
        self.experts, self.gate = nn.ModuleList(experts), gate
        self.imbalance = self.chosen = None                             # of the last forward pass

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., D) → (..., D)."""
        rows = x.flatten(0, -2)                                         # (N, D)
        p = self.gate(rows).float().softmax(-1)                         # (N, X)
        self.chosen = p.argmax(-1)                                      # (N,)
        order = self.chosen.argsort(stable=True)
        counts = self.chosen.bincount(minlength=len(self.experts))      # the host must know them: it waits here
        answers = [expert(part) for expert, part in zip(self.experts, rows[order].split(counts.tolist()), strict=True)]
        y = torch.cat(answers)[order.argsort()]                         # back in the order of the tokens
        mine = p.gather(1, self.chosen[:, None])                        # (N, 1)
        self.imbalance = len(self.experts) * (counts / len(rows) * p.mean(0)).sum()
        return (y * (mine / mine.detach()).to(y.dtype)).view_as(x)


def routers(llama) -> dict[int, Experts]:
    """The sparse layers of a model: {layer: its Experts}."""
    return {i: block.mlp for i, block in enumerate(llama.model.layers) if isinstance(block.mlp, Experts)}


def balanced(llama, loss: torch.Tensor, count) -> torch.Tensor:
    """The loss of the last forward pass (summed over `count` tokens) with the auxiliary loss's gradient. Its value is
    taken off again: what is reported stays the loss of the text."""
    extra = llama.config.router_aux_loss_coef * count * sum(layer.imbalance for layer in routers(llama).values())
    return loss + extra - extra.detach()


@torch.no_grad()
def upcycle(dense, experts: int, coefficient: float = 0.01, seed: int = 0):
    """A model with `experts` copies of the dense feed-forward in every other layer, and a random router. It computes
    what the dense one does, until it is trained."""
    config = dataclasses.replace(dense.config, num_experts=experts, router_aux_loss_coef=coefficient)
    sparse, old = type(dense)(config), dict(dense.named_parameters())
    generator = torch.Generator().manual_seed(seed)
    for name, p in sparse.named_parameters():
        if name.endswith("mlp.gate.weight"):
            p.normal_(std=config.initializer_range, generator=generator)
        else:
            p.copy_(old[re.sub(r"\.experts\.\d+", "", name)])
    sparse.compute_dtype = dense.compute_dtype
    return sparse
