"""plan.py: the arithmetic of stages against counting on a real model."""
import doctest
import sys

import pytest
import torch
from conftest import tiny_config

import kernels
import model
import plan
from cli import UserError

SOLAR = model.Config(vocab_size=32000 + 17072, hidden_size=4096, intermediate_size=14336, num_hidden_layers=48,
                     num_attention_heads=32, num_key_value_heads=8, head_dim=128, max_position_embeddings=4096)


@pytest.mark.parametrize("what, prefix", [
    ("embed", ("model.embed", "lm_head")), ("new_rows", ("model.embed", "lm_head")),
    ("odd", ("model.layers.1.", "model.layers.3.")), ("even", ("model.layers.0.", "model.layers.2.")),
    ("body", ("model.layers.", "model.norm")), ("full", ("",)), ("lora", ("none",)),
    ("odd+embed", ("model.layers.1.", "model.layers.3.", "model.embed", "lm_head"))])
def test_what_a_stage_trains(what, prefix):
    for name, _ in model.Llama(tiny_config()).named_parameters():
        assert bool(plan.is_trained(name, what)) == name.startswith(prefix), name


def test_layers_beyond_nine_are_odd_or_even_too():
    assert plan.is_trained("model.layers.11.mlp.up_proj.weight", "odd")
    assert not plan.is_trained("model.layers.10.mlp.up_proj.weight", "odd")


@pytest.mark.parametrize("what", ["embed", "odd", "lora", "lora+embed", "full"])
@pytest.mark.parametrize("tied, name", [(False, "adamw"), (True, "adamw"), (False, "adamw_bf16")])
def test_bytes_equal_those_of_a_real_step(what, tied, name):
    """Weights, gradients and moments, counted on a model that has taken a step."""
    config, master = tiny_config(tie_word_embeddings=tied), plan.MASTER[name]
    llama = model.Llama(config)
    if "lora" in what:
        model.add_lora(llama, 4, 4, master)
    for parameter, p in llama.named_parameters():
        p.requires_grad_(bool(plan.is_trained(parameter, what)))
        p.data = p.data.to(master if p.requires_grad else torch.float32)
    optimizer = {"adamw": torch.optim.AdamW, "adamw_bf16": kernels.AdamW}[name](
        [p for p in llama.parameters() if p.requires_grad])
    tokens = torch.randint(0, 512, (1, 9))
    llama(tokens[:, :-1], tokens[:, 1:])[0].backward()
    optimizer.step()
    cost = plan.cost(config, plan.Stage(what, 1, 1e-3), 4, 8, torch.float32, name)
    assert cost["weights"] == sum(p.nbytes for p in llama.parameters())
    assert cost["gradients"] == sum(p.grad.nbytes for p in llama.parameters() if p.grad is not None)
    moments = [t for state in optimizer.state.values() for t in state.values() if t.dim()]
    assert cost["optimizer"] == sum(t.nbytes for t in moments)


def test_lora_share_of_solar_is_the_papers():
    assert 0.044 < plan.cost(SOLAR, plan.Stage("lora", 1, 1e-4), 128, 4096, torch.bfloat16)["share"] < 0.047


def test_flops_of_a_full_stage_are_six_a_parameter_plus_attention():
    shapes = plan.shapes(SOLAR, "full", 1).items()
    n = sum(torch.Size(s).numel() for name, s in shapes if len(s) == 2 and "embed" not in name)
    assert plan.flops_per_token(SOLAR, "full", 1, 4096) == 6 * n + 6 * 48 * 4096 * 4096


def test_flops_of_a_step_counted_by_pytorch(monkeypatch):
    """torch's own counter sees every matrix product that a step really runs (attention apart: a fused operation)."""
    from torch.utils.flop_counter import FlopCounterMode
    head = sys.modules["kernels.linear_cross_entropy"]  # its registered operation is opaque to the counter
    monkeypatch.setattr(head, "_operation", head.loss_and_gradients)
    config = tiny_config(num_hidden_layers=2)
    for what in ("embed", "body", "full"):
        llama = model.Llama(config)
        for name, p in llama.named_parameters():
            p.requires_grad_(bool(plan.is_trained(name, what)))
        tokens = torch.randint(0, 512, (2, 33))
        with FlopCounterMode(display=False) as counter:
            llama(tokens[:, :-1], tokens[:, 1:])[0].backward()
        products = sum(n for op, n in counter.get_flop_counts()["Global"].items() if "mm" in str(op))
        attention = 6 * 2 * 32 * 32  # layers × T × H·E, per token, forward and backward
        expected = plan.flops_per_token(config, what, 1, 32) - attention
        if what == "body":  # the lowest layer's first products need no gradient of their input: ours is an upper bound
            assert products / 64 <= expected <= 1.1 * products / 64
        else:  # the head's weight gradient is accumulated in place (addmm_), which torch's counter does not know
            assert products / 64 + 2 * 512 * 32 == expected, what


@pytest.mark.parametrize("text, part", [
    ("embed", "what:tokens:peak_lr"), ("middle:1M:1e-4", "middle"), ("odd:lots:1e-4", "lots"), ("odd:1M:2", "rate"),
    ("lora+odd:1M:1e-4", "lora joins only"), ("odd:0:1e-4", "number of tokens")])
def test_a_wrong_stage_is_refused_by_field(text, part):
    with pytest.raises(UserError, match=part):
        plan.parse_stage(text)


def test_worked_example():
    result = doctest.testmod(plan)
    assert result.attempted and not result.failed
