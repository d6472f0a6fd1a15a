"""studies/moe.py: step 0, routing and gradients against a version that runs every expert on every
token; files; training."""
import copy
import dataclasses
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_config

import model
import tokenizer
from common import cli
from studies import moe


def dense(**changes) -> model.Llama:
    llama = model.Llama(tiny_config(**changes))
    for p in llama.parameters():
        p.data.normal_(std=0.2)
    return llama


def sparse(n=4, coefficient=0.01) -> moe.Llama:
    """An upcycled model whose experts have diverged."""
    llama = moe.upcycle(dense(), n, coefficient)
    for p in llama.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return llama


def tokens(rows=2, length=24) -> torch.Tensor:
    return torch.randint(0, 512, (rows, length))


# ------------------------------------------------------------------------------------- routing


@pytest.mark.parametrize("n", [2, 5])
def test_upcycled_logits_are_the_dense_ones(n, tmp_path):
    before = dense()
    after = moe.upcycle(before, n)
    model.save(after, tmp_path)
    read = moe.load(tmp_path)
    x = tokens()
    with torch.no_grad():
        torch.testing.assert_close(after(x), before(x), rtol=0, atol=1e-5)
        torch.testing.assert_close(read(x), after(x))
    assert read.config == after.config and read.config.num_experts == n
    assert list(moe.routers(read)) == [1, 3]
    chosen = torch.cat([layer.chosen for layer in moe.routers(after).values()])
    assert len(chosen.unique()) > 1  # not all went the same way


def test_routing_and_gradients_equal_every_expert_on_every_token():
    layer = sparse().model.layers[1].mlp
    x = torch.randn(2, 9, 32, requires_grad=True)
    upstream = torch.randn(2, 9, 32)
    parameters = [x, *layer.parameters()]
    out = layer(x)
    found = torch.autograd.grad(out, parameters, upstream)
    p = (x @ layer.gate.weight.T).softmax(-1)                               # (B, T, X)
    one_hot = F.one_hot(p.argmax(-1), 4)
    answers = torch.stack([expert(x) for expert in layer.experts], -1)      # (B, T, D, X)
    expected = (answers * (one_hot * p / p.detach())[..., None, :]).sum(-1)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad(expected, parameters, upstream)
    for mine, theirs in zip(found, gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    assert found[-1].abs().max() > 0  # the router learns from the text's loss


def test_gradients_of_experts_and_balance_by_finite_differences():
    layer = sparse(3).model.layers[1].mlp.double()
    gate = layer.gate.weight
    x = torch.randn(80, 32, dtype=torch.float64)
    first, second = (x @ gate.T).topk(2).values.unbind(-1)
    x = x[first - second > 0.1][:7]  # away from ties, which a small step would tip
    up = layer.experts[0].up_proj.weight
    down = layer.experts[2].down_proj.weight

    def run(some_up, some_down):  # two rows of each, the rest as it is
        whole = {"experts.0.up_proj.weight": torch.cat((some_up, up[2:])),
                 "experts.2.down_proj.weight": torch.cat((some_down, down[2:]))}
        return torch.func.functional_call(layer, whole, (x,))

    rows = [p.detach()[:2].clone().requires_grad_() for p in (up, down)]
    assert torch.autograd.gradcheck(run, rows)

    def imbalance() -> torch.Tensor:
        layer(x)
        return layer.imbalance

    gradient, = torch.autograd.grad(imbalance(), gate)
    way = torch.randn_like(gate)
    with torch.no_grad():
        ends = []
        for sign in (1, -1):
            gate += sign * 1e-3 * way
            ends.append(imbalance().item())
            gate -= sign * 1e-3 * way
    slope = (ends[0] - ends[1]) / 2e-3
    assert slope == pytest.approx(float((gradient * way).sum()), rel=2e-2, abs=1e-3)


@pytest.mark.parametrize("recompute", ["attention", "full"])
def test_recomputed_activations_give_the_same_gradients(recompute):
    llama = sparse()
    x = tokens()
    found = []
    for llama.recompute in ("none", recompute):
        loss = llama(x[:, :-1], x[:, 1:])[0]
        found.append(torch.autograd.grad(loss, list(llama.parameters())))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_a_lora_joins_every_expert_and_merges():
    llama = sparse()
    x = tokens()
    plain = copy.deepcopy(llama)
    model.add_lora(llama, 4, 4)
    loras = {name: p for name, p in llama.named_parameters() if "lora_" in name}
    # two dense layers, and two with the router and three matrices in each of four experts
    assert len(loras) == 2 * (2 * 7 + 2 * (4 + 1 + 4 * 3))
    for name, p in loras.items():
        if name.endswith("lora_B"):
            p.data.normal_(std=0.1)
    with torch.no_grad():
        for name, p in plain.named_parameters():
            prefix = name.removesuffix("weight")
            if prefix + "lora_A" in loras:
                A = loras[prefix + "lora_A"]
                B = loras[prefix + "lora_B"]
                p.copy_(model.merge_lora(p, A, B, 1.0))
        torch.testing.assert_close(plain(x), llama(x), rtol=1e-3, atol=1e-3)


# ----------------------------------------------------------------------------------- balance


def test_the_auxiliary_loss_balances_a_skewed_router():
    llama = sparse(4, coefficient=1.0)
    x = tokens(4, 64)  # with fewer, one token that switches experts is a large share
    layers = moe.routers(llama).values()
    gates = [layer.gate.weight for layer in layers]

    # Skewed: everything along the mean of the router's inputs goes to expert 0.
    with torch.no_grad():
        seen = []

        def note(module, inputs):
            seen.append(inputs[0].mean(0))

        hooks = [layer.gate.register_forward_pre_hook(note) for layer in layers]
        llama(x)
        for gate, mean in zip(gates, seen, strict=True):
            gate[0] += 8 * mean / mean.norm()
        for hook in hooks:
            hook.remove()
        llama(x)

    def largest_share() -> float:
        counts = torch.stack([layer.chosen.bincount(minlength=4) for layer in layers])
        return (counts.max() / x.numel()).item()

    assert largest_share() > 0.6
    optimizer = torch.optim.Adam(gates)
    for step in range(160):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 160)
        optimizer.zero_grad()
        count = llama(x, x)[1]
        moe.balanced(llama, torch.zeros(()), count).backward()
        optimizer.step()
    assert largest_share() < 0.45
    assert all(layer.imbalance < 1.2 for layer in layers)


def test_balance_is_1_when_even_and_the_number_of_experts_when_one_gets_all():
    layer = sparse(4).model.layers[1].mlp
    with torch.no_grad():
        layer.gate.weight.zero_()
        layer.gate.weight[:, :4] = 100 * torch.eye(4)
        layer(torch.eye(32)[:4])
        assert layer.imbalance.item() == pytest.approx(1, abs=1e-4)
        layer(torch.eye(32)[:1].expand(9, 32))
        assert layer.imbalance.item() == pytest.approx(4, abs=1e-4)


def test_what_is_reported_is_the_loss_of_the_text_and_the_gradient_has_the_balance():
    llama = sparse(4, coefficient=0.5)
    x = tokens()
    total, count = llama(x[:, :-1], x[:, 1:])
    logits = llama(x[:, :-1])
    text = F.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten(), reduction="sum")
    assert total.item() == pytest.approx(text.item(), rel=1e-5)
    layers = moe.routers(llama).values()
    gates = [layer.gate.weight for layer in layers]
    imbalance = sum(layer.imbalance for layer in layers)
    expected = torch.autograd.grad(text + 0.5 * int(count) * imbalance, gates)
    for mine, theirs in zip(torch.autograd.grad(total, gates), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


# ------------------------------------------------------------------------- files and training


@pytest.mark.parametrize("changes, part", [
    ({"num_experts": 1}, "num_experts 1"),
    ({"num_experts": None}, "None"),
    ({"num_experts": 4, "num_hidden_layers": 1}, "two layers")])
def test_a_wrong_number_of_experts_is_refused(tmp_path, changes, part):
    file = tmp_path / "config.json"
    sparse().config.write(file)
    cli.write_json(file, {**cli.read_json(file), **changes})
    with pytest.raises(cli.UserError, match=part):
        moe.Config.read(tmp_path)


def test_a_dense_config_stays_a_llama(tmp_path):
    moe.Config(**dataclasses.asdict(tiny_config())).write(tmp_path / "config.json")
    written = cli.read_json(tmp_path / "config.json")
    assert written["architectures"] == ["LlamaForCausalLM"]
    assert not {"num_experts", "router_aux_loss_coef"} & set(written)
    assert model.Config.read(tmp_path) == tiny_config()
    cli.write_json(tmp_path / "config.json", {**written, "num_experts": 4})  # a Llama ignores it
    read = moe.Config.read(tmp_path)
    assert read == moe.Config(**dataclasses.asdict(tiny_config()))


def test_only_the_study_reads_a_model_with_experts(tmp_path):
    """The programs, and transformers, do not know this architecture."""
    model.save(sparse(), tmp_path)
    with pytest.raises(cli.UserError, match=moe.ARCHITECTURE):
        model.load(tmp_path)
    with moe.sparse_models():
        assert len(moe.routers(model.load(tmp_path))) == 2
    assert model.Llama is not moe.Llama and model.Config is not moe.Config


def test_train_py_trains_a_model_with_experts(world, tmp_path, monkeypatch):
    """In a process in which moe.py has replaced model.py's classes, stage after stage."""
    start = tmp_path / "start"
    start.mkdir()
    model.save(moe.upcycle(model.load(world / "model"), 3), start)
    tokenizer.save(world / "base.model", start)
    flags = {
        "model": start,
        "data": world / "shards/ko",
        "stages": "odd:256:1e-2 lora:256:1e-2",
        "seq_len": 32,
        "batch_tokens": 128,
        "device": "cpu",
        "out": tmp_path / "run",
    }
    argv = ["train.py"]
    for name, value in flags.items():
        argv += [f"--{name}", *str(value).split()]
    monkeypatch.setattr(sys, "argv", argv)
    moe.main()
    before = dict(moe.load(start).named_parameters())
    after = dict(moe.load(tmp_path / "run/model").named_parameters())
    moved = {name for name, p in before.items() if not torch.equal(p, after[name])}
    assert any(".mlp.experts." in name for name in moved)
    assert any(".mlp.gate." in name for name in moved)
    assert not moved & {"model.embed_tokens.weight", "model.norm.weight"}
