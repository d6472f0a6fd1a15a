"""A Llama with experts: a sparse feed-forward in every other layer, so that parameters grow and
FLOPs do not.

LOLA (2409.11272) puts 16 experts into every other layer of a multilingual model, and finds that
languages choose them by family. studies/experts.py asks the same of ours; what it needs beyond
model.py is here. `sparse_models()` puts the classes below into model.py's place, so that model.load
reads such a model wherever a config.json describes one, and

    python -m studies.moe ...                         # train.py, with its flags, for these models

Top-1 routing (Switch, 2101.03961, section 2): p = softmax(x Wᵀ), and the expert of the largest p
answers. Switch also multiplies its answer by p, so that the router learns; but an upcycled model
(2212.05055), whose experts start as copies of the dense feed-forward, would then be another model
at step 0. So the answer counts once, as Mixtral's would (2401.04088: p is normalised over the
chosen experts), and p / stop(p) = 1 passes the gradient of log p to the router.

Left alone, a router sends everything to a few experts. The auxiliary loss X Σ f_i P_i (f: share of
the tokens that expert i gets, P: its mean p) is 1 when all get the same and X when one gets all; a
layer adds router_aux_loss_coef times it.
"""
import contextlib
import dataclasses
import re
from pathlib import Path

import torch
import torch.nn as nn

import model
from common import cli, hf

# No name that transformers knows: it would skip the experts with a warning.
ARCHITECTURE = "NanowhaleExpertsForCausalLM"


@dataclasses.dataclass
class Config(model.Config):
    """A Llama's shape, with or without experts in the odd layers."""
    num_experts: int | None = None              # X, in each of these layers
    router_aux_loss_coef: float | None = None   # weight of the auxiliary loss

    @classmethod
    def read(cls, path: str | Path) -> "Config":
        """Read the config.json of a model with experts, or of a dense one."""
        values = hf.read_config(path, (*hf.ARCHITECTURES, ARCHITECTURE))
        ours = [field.name for field in dataclasses.fields(cls)]
        config = cls(**{name: values[name] for name in ours if name in values})
        if values["architectures"][0] == ARCHITECTURE:
            config.check(path)
        else:
            config.num_experts = None
            config.router_aux_loss_coef = None
        return config

    def check(self, path: str | Path) -> None:
        """UserError unless there can be so many experts. Fill in the auxiliary loss's weight."""
        is_number = isinstance(self.num_experts, int)
        if not is_number or self.num_experts < 2 or self.num_hidden_layers < 2:
            raise cli.UserError(f"{path}: num_experts {self.num_experts} is not a number of 2 or "
                                "more, in a model of two layers or more")
        if self.router_aux_loss_coef is None:
            self.router_aux_loss_coef = 0.01

    def write(self, path: str | Path) -> None:
        """Write a config.json; one with experts has an architecture of its own."""
        super().write(path)
        if self.num_experts:
            config = cli.read_json(path)
            config["architectures"] = [ARCHITECTURE]
            config["model_type"] = "nanowhale_experts"
            cli.write_json(path, config)


class Experts(nn.Module):
    """`experts`: X feed-forwards; `gate`: the router, D → X."""

    def __init__(self, config: Config):
        super().__init__()
        self.experts = nn.ModuleList(model.MLP(config) for _ in range(config.num_experts))
        self.gate = model.Linear(config.hidden_size, config.num_experts, bias=False)

        # Of the last forward pass: which expert each token went to, and the auxiliary loss.
        self.chosen: torch.Tensor | None = None
        self.imbalance: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., D) → (..., D)."""
        n_experts = len(self.experts)
        rows = x.flatten(0, -2)                                         # (N, D)
        p = self.gate(rows).float().softmax(-1)                         # (N, X)
        self.chosen = p.argmax(-1)                                      # (N,)

        # Each expert gets its tokens in one piece. The host must know how many: here it waits.
        order = self.chosen.argsort(stable=True)                        # (N,)
        counts = self.chosen.bincount(minlength=n_experts)              # (X,)
        parts = rows[order].split(counts.tolist())
        answers = []
        for expert, part in zip(self.experts, parts, strict=True):
            answers.append(expert(part))
        y = torch.cat(answers)[order.argsort()]                         # in the order of the tokens

        # X Σ f P; and 1 as a factor, with a gradient.
        self.imbalance = n_experts * (counts / len(rows) * p.mean(0)).sum()
        of_chosen = p.gather(1, self.chosen[:, None])                   # (N, 1)
        factor = of_chosen / of_chosen.detach()
        return (y * factor.to(y.dtype)).view_as(x)


class Llama(model.Llama):
    """A Llama whose odd layers have experts, if its config says so."""

    def __init__(self, config: Config):
        super().__init__(config)
        if config.num_experts:
            for block in self.model.layers[1::2]:
                block.mlp = Experts(config)
            self.init_weights()

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor | None = None, documents=None):
        """As model.Llama's; the loss that training sees has the auxiliary loss's gradient."""
        out = super().forward(tokens, targets, documents)
        is_training = targets is not None and torch.is_grad_enabled()
        if not is_training or not self.config.num_experts:
            return out
        loss, count = out
        return balanced(self, loss, count), count


def routers(llama: model.Llama) -> dict[int, Experts]:
    """The sparse layers of a model: {layer: its Experts}."""
    found = {}
    for layer, block in enumerate(llama.model.layers):
        if isinstance(block.mlp, Experts):
            found[layer] = block.mlp
    return found


def balanced(llama: Llama, loss: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """The loss of the last forward pass (summed over `count` tokens) with the auxiliary loss's
    gradient. Its value is taken off again: what is reported stays the loss of the text."""
    imbalance = sum(layer.imbalance for layer in routers(llama).values())
    extra = llama.config.router_aux_loss_coef * count * imbalance
    return loss + extra - extra.detach()


@contextlib.contextmanager
def sparse_models():
    """`with sparse_models():` model.Config and model.Llama are those above, and so model.load reads
    models with experts, and dense ones as before."""
    dense = model.Config, model.Llama
    model.Config, model.Llama = Config, Llama
    try:
        yield
    finally:
        model.Config, model.Llama = dense


def load(folder: str | Path) -> Llama:
    """model.load, of a model with experts or a dense one."""
    with sparse_models():
        return model.load(folder)


@torch.no_grad()
def upcycle(dense: model.Llama, experts: int, coefficient: float = 0.01, seed: int = 0) -> Llama:
    """A model with `experts` copies of the dense feed-forward in every other layer, and a random
    router. It computes what the dense one does, until it is trained."""
    values = dataclasses.asdict(dense.config)
    values["num_experts"] = experts
    values["router_aux_loss_coef"] = coefficient
    config = Config(**values)
    sparse = Llama(config)
    old = dict(dense.named_parameters())
    generator = torch.Generator().manual_seed(seed)
    for name, p in sparse.named_parameters():
        if name.endswith("mlp.gate.weight"):
            p.normal_(std=config.initializer_range, generator=generator)
        else:
            p.copy_(old[re.sub(r"\.experts\.\d+", "", name)])
    sparse.compute_dtype = dense.compute_dtype
    return sparse


def main() -> None:
    """train.py, in a process in which models may have experts."""
    import train  # here, because only this program has a use for it
    with sparse_models():
        train.main()


if __name__ == "__main__":
    cli.run(main)
