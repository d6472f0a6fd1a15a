"""model.py against transformers, and against itself: cache, LoRA, files."""
import copy
import json

import pytest
import torch
from conftest import tiny_config
from safetensors.torch import save_file

import model
from common import plan
from common.cli import UserError

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}
SHAPES = {"grouped": {}, "tied": {"tie_word_embeddings": True}, "wide heads": {"head_dim": 16},
          "multi-head": {"num_key_value_heads": 4}, "llama3 rope": {"rope_scaling": LLAMA3, "rope_theta": 500.0}}


def random_llama(seed=0, **changes) -> model.Llama:
    torch.manual_seed(seed)
    llama = model.Llama(tiny_config(**changes))
    for p in llama.parameters():
        p.data.normal_(std=0.3)  # norms too: a weight of 1 would hide a missing one
    return llama


@pytest.mark.parametrize("name", SHAPES)
def test_logits_equal_transformers(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    llama = random_llama(**SHAPES[name])
    model.save(llama, tmp_path)
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    tokens = torch.randint(0, 512, (3, 50))
    with torch.inference_mode():
        ours, theirs = llama(tokens), peer(tokens).logits
    assert (ours - theirs).abs().max() <= 1e-5


@pytest.mark.parametrize("spelling", ["rope_parameters", "rope_scaling"])
def test_reads_what_transformers_writes(spelling, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(vocab_size=300, hidden_size=32, intermediate_size=40, num_hidden_layers=2,
                                      num_attention_heads=4, num_key_value_heads=1, max_position_embeddings=64,
                                      rope_parameters={**LLAMA3, "rope_theta": 777.0})
    peer = transformers.LlamaForCausalLM(config)
    peer.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    if spelling == "rope_scaling":  # as older versions wrote it
        hf = json.loads((tmp_path / "config.json").read_text())
        rope = hf.pop("rope_parameters")
        hf["rope_theta"], hf["torch_dtype"] = rope.pop("rope_theta"), hf.pop("dtype", "float32")
        (tmp_path / "config.json").write_text(json.dumps({**hf, "rope_scaling": rope}))
    tokens = torch.randint(0, 300, (2, 60))
    with torch.inference_mode():
        difference = model.load(tmp_path)(tokens) - peer(tokens).logits
    assert difference.abs().max() < 1e-5


def test_loss_is_the_sum_over_unmasked_targets():
    llama, tokens = random_llama(), torch.randint(0, 512, (2, 21))
    targets = tokens[:, 1:].clone()
    targets[0, :7] = -100
    loss, count = llama(tokens[:, :-1], targets)
    log_p = llama(tokens[:, :-1]).double().log_softmax(-1)
    by_hand = -sum(log_p[b, t, targets[b, t]] for b in range(2) for t in range(20) if targets[b, t] != -100)
    assert count == 33 and abs(loss.item() - by_hand.item()) < 1e-3


def test_cache_in_pieces_equals_one_forward():
    llama, tokens = random_llama(), torch.randint(0, 512, (2, 30))
    cache = model.Cache(llama.config, 2, 30, "cpu", torch.float32)
    with torch.inference_mode():
        parts = [llama.hidden(piece, cache) for piece in tokens.split([11, 1, 5, 13], dim=1)]
        assert torch.allclose(torch.cat(parts, 1), llama.hidden(tokens), atol=1e-5)


def test_greedy_generation_equals_argmax_without_cache():
    llama, tokens = random_llama(), torch.randint(0, 512, (3, 5))
    slow = tokens
    with torch.inference_mode():
        for _ in range(12):
            slow = torch.cat((slow, llama(slow)[:, -1:].argmax(-1)), 1)
    assert torch.equal(llama.generate(tokens, 12, temperature=0), slow)


def test_generation_never_gives_padded_rows_and_stops_at_eos():
    llama = random_llama(unpadded_vocab_size=5)
    out = llama.generate(torch.zeros(8, 1, dtype=torch.long), 40, temperature=5.0, eos=3)
    assert out.max() < 5
    for row in out[:, 1:].tolist():
        if 3 in row:
            assert set(row[row.index(3):]) == {3}


def test_top_p_keeps_the_fewest_likely_tokens():
    llama = random_llama()
    tokens = torch.randint(0, 512, (1, 4)).repeat(200, 1)
    p = llama(tokens[:1])[0, -1].softmax(-1)
    allowed = p.argsort(descending=True)[:int((p.sort(descending=True).values.cumsum(0) < 0.3).sum()) + 1]
    drawn = llama.generate(tokens, 1, top_p=0.3)[:, -1]
    assert set(drawn.tolist()) <= set(allowed.tolist())


def test_lora_changes_nothing_at_step_zero_and_merges_exactly():
    llama, tokens = random_llama(), torch.randint(0, 512, (2, 16))
    before, whole = llama(tokens), copy.deepcopy(llama)
    model.add_lora(llama, rank=4, alpha=8)
    assert torch.equal(llama(tokens), before)
    for name, p in llama.named_parameters():
        if name.endswith("lora_B"):
            p.data.normal_(std=0.1)
    layer = llama.model.layers[0].mlp.up_proj
    by_hand = layer.weight.double() + 8 / 4 * layer.lora_B.double() @ layer.lora_A.double()
    assert (model.merge_lora(layer.weight, layer.lora_A, layer.lora_B, layer.scale) - by_hand).abs().max() < 1e-6
    beside = llama(tokens)
    assert (beside - before).abs().max() > 0.1
    for name, part in llama.named_modules():
        if isinstance(part, model.LoRALinear):
            whole.get_submodule(name).weight.data = model.merge_lora(part.weight, part.lora_A, part.lora_B, part.scale)
    assert torch.allclose(whole(tokens), beside, atol=1e-3 * beside.abs().max().item())


def test_recompute_gives_the_same_gradients():
    llama, tokens = random_llama(), torch.randint(0, 512, (2, 17))
    grads = []
    for llama.recompute in ("none", "attention", "full"):
        llama.zero_grad()
        llama(tokens[:, :-1], tokens[:, 1:])[0].backward()
        grads.append([p.grad.clone() for p in llama.parameters()])
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*grads, strict=True))


@pytest.mark.parametrize("what, recompute", [("odd", "attention"), ("lora", "none"), ("full", "full")])
def test_a_compiled_block_is_one_graph(what, recompute):
    """No breaks; below what is trained too, where a graph with recomputation in it has no backward pass to serve."""
    results, tokens = [], torch.randint(0, 512, (2, 17))
    for compiled in (False, True):
        llama = random_llama()
        if what == "lora":
            model.add_lora(llama, 4, 4)
        for name, p in llama.named_parameters():
            p.requires_grad_(bool(plan.is_trained(name, what)))
        llama.recompute = recompute
        torch.compiler.reset()
        for block in llama.model.layers if compiled else ():
            block.compile(dynamic=False, fullgraph=True, backend="aot_eager")
        loss, _ = llama(tokens, tokens)
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in llama.parameters() if p.requires_grad)])
    torch.testing.assert_close(*results)


def test_generation_then_training_in_one_process():
    llama = random_llama()
    llama.generate(torch.ones(1, 3, dtype=torch.long), 4)
    llama(torch.ones(1, 8, dtype=torch.long), torch.ones(1, 8, dtype=torch.long))[0].backward()
    assert llama.lm_head.weight.grad is not None


def test_temperature_cools_to_greedy():
    llama, tokens = random_llama(), torch.randint(0, 512, (16, 4))
    assert torch.equal(llama.generate(tokens, 6, temperature=1e-4), llama.generate(tokens, 6, temperature=0))
    assert torch.equal(llama.generate(tokens, 6, top_p=0.0), llama.generate(tokens, 6, temperature=0))
    assert not torch.equal(llama.generate(tokens, 6, temperature=50.0), llama.generate(tokens, 6, temperature=0))


def test_old_checkpoints_derived_tensors_are_passed_over_and_dtype_is_the_files(tmp_path):
    llama = random_llama(dtype="bfloat16")
    model.save(llama, tmp_path)
    tensors = {name: p.detach().clone() for name, p in llama.named_parameters()}
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, tmp_path / "model.safetensors")
    assert model.load(tmp_path).config.dtype == "float32"  # config.json says bfloat16; rounding would be silent


def test_save_and_load_keep_every_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(model, "MAX_SHARD_BYTES", 20_000)
    llama = random_llama(dtype="bfloat16")
    model.save(llama, tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    again = model.load(tmp_path)
    for (name, p), q in zip(llama.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(p.bfloat16().float(), q), name


def test_a_float32_master_under_bfloat16_compute_gets_a_float32_gradient(tmp_path):
    model.save(random_llama(), tmp_path)
    llama = model.load(tmp_path, dtype=lambda name: torch.float32 if "layers.1." in name else torch.bfloat16)
    llama.compute_dtype = torch.bfloat16
    tokens = torch.randint(0, 512, (2, 9))
    llama(tokens[:, :-1], tokens[:, 1:])[0].backward()
    assert llama.model.layers[1].mlp.up_proj.weight.grad.dtype == torch.float32
    assert llama(tokens).dtype == torch.bfloat16


@pytest.mark.parametrize("change, part", [
    ({"sliding_window": 32}, "sliding_window 32"), ({"attention_bias": True}, "attention_bias"),
    ({"hidden_act": "gelu"}, "gelu"), ({"rope_parameters": {"rope_type": "yarn"}}, "yarn"),
    ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel"), ({"num_key_value_heads": 3}, "evenly"),
    ({"hidden_size": None}, "hidden_size"), ({"dtype": "int8"}, "int8")])
def test_config_refuses_by_name(change, part, tmp_path):
    tiny_config().write(tmp_path / "config.json")
    hf = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**hf, **change}))
    with pytest.raises(UserError, match=part):
        model.Config.read(tmp_path)
