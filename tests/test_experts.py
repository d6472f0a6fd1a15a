"""studies/moe.py: step 0, routing and gradients against a form that runs every expert on every token; files."""
import copy
import dataclasses
import sys

import pytest
import torch
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


def sparse(n=4, coefficient=0.01) -> model.Llama:
    """An upcycled model whose experts have come to differ."""
    llama = moe.upcycle(dense(), n, coefficient)
    for p in llama.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return llama


def tokens(rows=2, length=24) -> torch.Tensor:
    return torch.randint(0, 512, (rows, length))


@pytest.mark.parametrize("n", [2, 5])
def test_upcycled_logits_are_the_dense_ones(n, tmp_path):
    before, x = dense(), tokens()
    after = moe.upcycle(before, n)
    model.save(after, tmp_path)
    read = moe.load(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(after(x), before(x), rtol=0, atol=1e-5)
        torch.testing.assert_close(read(x), after(x))
    assert dataclasses.asdict(read.config) == dataclasses.asdict(after.config) and read.config.num_experts == n
    assert list(moe.routers(read)) == [1, 3]
    assert len({int(i) for layer in moe.routers(after).values() for i in layer.chosen}) > 1  # not all went one way


def test_routing_and_gradients_equal_every_expert_on_every_token():
    layer = sparse().model.layers[1].mlp
    x = torch.randn(2, 9, 32, requires_grad=True)
    upstream = torch.randn(2, 9, 32)
    parameters = [x, *layer.parameters()]
    out = layer(x)
    found = torch.autograd.grad(out, parameters, upstream)
    p = (x @ layer.gate.weight.T).softmax(-1)                               # (B, T, X)
    one_hot = torch.nn.functional.one_hot(p.argmax(-1), 4)
    answers = torch.stack([expert(x) for expert in layer.experts], -1)      # (B, T, D, X)
    expected = (answers * (one_hot * p / p.detach())[..., None, :]).sum(-1)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(found, torch.autograd.grad(expected, parameters, upstream), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    assert found[-1].abs().max() > 0                                        # the router learns from the text's loss


def test_gradients_of_experts_and_balance_by_finite_differences():
    layer = sparse(3).model.layers[1].mlp.double()
    x = torch.randn(80, 32, dtype=torch.float64)
    first, second = (x @ layer.gate.weight.T).topk(2).values.unbind(-1)
    x = x[first - second > 0.1][:7]                                         # none so torn that a small step tips it
    weights = [p.detach()[:2].clone().requires_grad_() for p in (layer.experts[0].up_proj.weight,
                                                                 layer.experts[2].down_proj.weight)]

    def run(up, down):  # two rows of each, the rest as it is
        whole = {"experts.0.up_proj.weight": torch.cat((up, layer.experts[0].up_proj.weight[2:])),
                 "experts.2.down_proj.weight": torch.cat((down, layer.experts[2].down_proj.weight[2:]))}
        return torch.func.functional_call(layer, whole, (x,))

    assert torch.autograd.gradcheck(run, weights)
    gate = layer.gate.weight

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
    assert (ends[0] - ends[1]) / 2e-3 == pytest.approx(float((gradient * way).sum()), rel=2e-2, abs=1e-3)


def test_the_auxiliary_loss_balances_a_skewed_router():
    llama = sparse(4, coefficient=1.0)
    x = tokens(2, 48)
    gates = [layer.gate.weight for layer in moe.routers(llama).values()]
    with torch.no_grad():  # skewed: along the mean of what the router sees, everything goes to expert 0
        seen = []
        hooks = [layer.gate.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].mean(0)))
                 for layer in moe.routers(llama).values()]
        llama(x)
        for gate, mean in zip(gates, seen, strict=True):
            gate[0] += 8 * mean / mean.norm()
        for hook in hooks:
            hook.remove()
        llama(x)
    shares = lambda: [(layer.chosen.bincount(minlength=4) / layer.chosen.numel()).max().item()
                      for layer in moe.routers(llama).values()]
    assert max(shares()) > 0.6
    optimizer = torch.optim.Adam(gates, 0.05)
    for _ in range(80):
        optimizer.zero_grad()
        moe.balanced(llama, torch.zeros(()), llama(x, x)[1]).backward()
        optimizer.step()
    assert max(shares()) < 0.45
    assert all(layer.imbalance < 1.2 for layer in moe.routers(llama).values())


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
    llama, x = sparse(4, coefficient=0.5), tokens()
    total, count = llama(x[:, :-1], x[:, 1:])
    logits = llama(x[:, :-1])
    text = torch.nn.functional.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten(), reduction="sum")
    assert total.item() == pytest.approx(text.item(), rel=1e-5)
    layers = moe.routers(llama).values()
    gates = [layer.gate.weight for layer in layers]
    expected = torch.autograd.grad(text + 0.5 * int(count) * sum(layer.imbalance for layer in layers), gates)
    for mine, theirs in zip(torch.autograd.grad(total, gates), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("recompute", ["attention", "full"])
def test_recomputed_activations_give_the_same_gradients(recompute):
    llama, x = sparse(), tokens()
    found = []
    for llama.recompute in ("none", recompute):
        found.append(torch.autograd.grad(llama(x[:, :-1], x[:, 1:])[0], list(llama.parameters())))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_a_lora_joins_every_expert_and_merges():
    llama, x = sparse(), tokens()
    plain = copy.deepcopy(llama)
    model.add_lora(llama, 4, 4)
    assert sum(name.endswith("lora_A") for name, _ in llama.named_parameters()) == 2 * 7 + 2 * (4 + 1 + 4 * 3)
    for name, p in llama.named_parameters():
        if name.endswith("lora_B"):
            p.data.normal_(std=0.1)
    loras = dict(llama.named_parameters())
    with torch.no_grad():
        for name, p in plain.named_parameters():
            parts = [loras[name.removesuffix("weight") + part] for part in ("lora_A", "lora_B") if
                     name.removesuffix("weight") + part in loras]
            p.copy_(model.merge_lora(p, *parts, 1.0) if parts else p)
        torch.testing.assert_close(plain(x), llama(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("changes, part", [({"num_experts": 1}, "num_experts 1"), ({"num_experts": None}, "None"),
                                           ({"num_experts": 4, "num_hidden_layers": 1}, "two layers")])
def test_a_wrong_number_of_experts_is_refused(tmp_path, changes, part):
    sparse().config.write(tmp_path / "config.json")
    cli.write_json(tmp_path / "config.json", {**cli.read_json(tmp_path / "config.json"), **changes})
    with pytest.raises(cli.UserError, match=part):
        moe.Config.read(tmp_path)


def test_a_dense_config_stays_a_llama(tmp_path):
    moe.Config(**dataclasses.asdict(tiny_config())).write(tmp_path / "config.json")
    written = cli.read_json(tmp_path / "config.json")
    assert written["architectures"] == ["LlamaForCausalLM"] and "num_experts" not in written
    assert "router_aux_loss_coef" not in written
    assert model.Config.read(tmp_path) == tiny_config()
    read = moe.Config.read(tmp_path)
    assert dataclasses.asdict(read) == {**dataclasses.asdict(tiny_config()), "num_experts": None,
                                        "router_aux_loss_coef": None}


def test_only_the_study_reads_a_model_with_experts(tmp_path):
    """To the programs, and to transformers, it is an architecture that they do not know."""
    model.save(sparse(), tmp_path)
    with pytest.raises(cli.UserError, match=moe.ARCHITECTURE):
        model.load(tmp_path)
    with moe.sparse_models():
        assert len(moe.routers(model.load(tmp_path))) == 2
    assert model.Llama is not moe.Llama and model.Config is not moe.Config


def test_train_py_trains_a_model_with_experts(world, tmp_path, monkeypatch):
    """In a process in which moe.py has put its classes into model.py's place, stage after stage."""
    (tmp_path / "start").mkdir()
    model.save(moe.upcycle(model.load(world / "model"), 3), tmp_path / "start")
    tokenizer.save(world / "base.model", tmp_path / "start")
    argv = ["--model", f"{tmp_path}/start", "--data", f"{world}/shards/ko", "--stages", "odd:256:1e-2", "lora:256:1e-2",
            "--seq_len", "32", "--batch_tokens", "128", "--device", "cpu", "--out", f"{tmp_path}/run"]
    monkeypatch.setattr(sys, "argv", ["train.py", *argv])
    moe.main()
    before = moe.load(tmp_path / "start")
    after = moe.load(tmp_path / "run/model")
    moved = {name for (name, p), q in zip(before.named_parameters(), after.parameters(), strict=True)
             if not torch.equal(p, q)}
    assert any(".mlp.experts." in name for name in moved) and any(".mlp.gate." in name for name in moved)
    assert not moved & {"model.embed_tokens.weight", "model.norm.weight"}
