"""model.py against transformers and against its own definitions: attention, cache, LoRA, files."""
import copy
import json
import types

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_config
from safetensors.torch import load_file, save_file
from torch._subclasses import FakeTensorMode

import model
from common import hf, plan
from common.cli import UserError, read_json, write_json

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
SHAPES = {
    "grouped": {},
    "tied": {"tie_word_embeddings": True},
    "wide heads": {"head_dim": 16},
    "multi-head": {"num_key_value_heads": 4},
    "llama3 rope": {"rope_scaling": LLAMA3, "rope_theta": 500.0},
}


def random_llama(seed=0, **changes) -> model.Llama:
    torch.manual_seed(seed)
    llama = model.Llama(tiny_config(**changes))
    for p in llama.parameters():
        p.data.normal_(std=0.3)  # norms too: with weights of 1 a missing one would not show
    return llama


# ------------------------------------------------------------------------------ transformers


@pytest.mark.parametrize("name", SHAPES)
def test_logits_equal_transformers(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    llama = random_llama(**SHAPES[name])
    model.save(llama, tmp_path)
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    tokens = torch.randint(0, 512, (3, 50))
    with torch.inference_mode():
        ours = llama(tokens)
        theirs = peer(tokens).logits
    assert (ours - theirs).abs().max() <= 1e-5


@pytest.mark.parametrize("spelling", ["rope_parameters", "rope_scaling"])
def test_reads_what_transformers_writes(spelling, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=40, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=1, max_position_embeddings=64,
        rope_parameters={**LLAMA3, "rope_theta": 777.0})
    peer = transformers.LlamaForCausalLM(config)
    peer.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / hf.INDEX).exists()
    if spelling == "rope_scaling":  # as older versions wrote it
        written = json.loads((tmp_path / "config.json").read_text())
        rope = written.pop("rope_parameters")
        written["rope_theta"] = rope.pop("rope_theta")
        written["torch_dtype"] = written.pop("dtype", "float32")
        written["rope_scaling"] = rope
        (tmp_path / "config.json").write_text(json.dumps(written))
    tokens = torch.randint(0, 300, (2, 60))
    with torch.inference_mode():
        difference = model.load(tmp_path)(tokens) - peer(tokens).logits
    assert difference.abs().max() < 1e-5


# --------------------------------------------------------------------------------- attention


@pytest.mark.parametrize("heads, kv_heads", [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("batch, T, S", [
    (2, 1, 1), (2, 37, 37), (1, 643, 643),          # training: all positions are new
    (2, 1, 9), (2, 5, 12), (1, 130, 643)])          # generation: some are in a cache
def test_attention_is_its_definition(heads, kv_heads, batch, T, S):
    """Values and gradients against float64, with a model's strides."""
    def new(length, n):
        x = torch.randn(batch, length, n, 24, device=DEVICE)
        return x.transpose(1, 2).requires_grad_()

    inputs = [new(T, heads), new(S, kv_heads), new(S, kv_heads)]
    upstream = torch.randn(batch, T, heads, 24, device=DEVICE).transpose(1, 2)
    out = model.causal_attention(*inputs)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    true = model.attention_reference(*exact)
    torch.testing.assert_close(out.double(), true, rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad(out, inputs, upstream)
    for got, want in zip(gradients, torch.autograd.grad(true, exact, upstream.double()),
                         strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=2e-5)


def test_attention_survives_large_scores_of_keys_that_are_not_seen():
    """exp(score - log Σ exp) of a later key may be infinite; times 0 it would be NaN."""
    q, k, v = (8 * torch.randn(1, 2, 600, 32, device=DEVICE, requires_grad=True) for _ in range(3))
    gradients = torch.autograd.grad(model.causal_attention(q, k, v).sum(), (q, k, v))
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    expected = torch.autograd.grad(model.attention_reference(*exact).sum(), exact)
    for got, want in zip(gradients, expected, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("T", [1, 4, 9])  # one new position, several after a cache, all
@pytest.mark.parametrize("dtype, shared", [(torch.bfloat16, True), (torch.float32, False)])
def test_heads_share_keys_on_a_gpu_where_a_fused_library_can(dtype, shared, T, monkeypatch):
    """The device "meta" stands in for a GPU."""
    q = torch.empty(2, 6, T, 8, dtype=dtype, device="meta")
    k = torch.empty(2, 2, 9, 8, dtype=dtype, device="meta")
    asked = []

    def record(q, k, v, enable_gqa, **_):
        asked.append((k.shape[1], v.shape[1], enable_gqa))
        return q

    monkeypatch.setattr(F, "scaled_dot_product_attention", record)
    model.causal_attention(q, k, k)
    copies = 2 if shared else 6
    assert asked == [(copies, copies, shared)]


@pytest.mark.parametrize("major, first", [(9, "CUDNN_ATTENTION"), (8, None), (10, None)])
def test_training_asks_for_cudnn_on_hopper_only(major, first, monkeypatch):
    """On a GPU that exists in name only."""
    asked = []

    def record(q, k, v, **_):
        backends = torch.nn.attention._cur_sdpa_kernel_backends(with_priority=True)
        asked.append([backend.name for backend in backends])
        return q

    monkeypatch.setattr(F, "scaled_dot_product_attention", record)
    monkeypatch.setattr(torch.cuda, "get_device_properties",
                        lambda device: types.SimpleNamespace(major=major))
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)  # as cli.set_device leaves it on a GPU
    try:
        with FakeTensorMode():
            q = torch.empty(1, 2, 5, 8, device="cuda")
            model.causal_attention(q, q, q)
            with torch.no_grad():
                model.causal_attention(q, q, q)
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
    training, scoring = asked
    assert "CUDNN_ATTENTION" not in scoring and "FLASH_ATTENTION" in scoring
    if first:
        assert training[:4] == [first, "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "MATH"]
    else:
        assert training == scoring


@pytest.mark.gpu
def test_training_with_cudnn_on_hopper_is_attention():
    """At the recipe's head dimension, with shared keys, in the model's layout; and cuDNN does run.
    The error against float64 is at most that of the definition in bfloat16."""
    if torch.cuda.get_device_properties(0).major != model.HOPPER:
        pytest.skip("cuDNN is asked for on Hopper only")

    def new(heads):
        x = torch.randn(2, 300, heads, 128, device="cuda", dtype=torch.bfloat16)
        return x.transpose(1, 2)

    inputs = [new(8), new(2), new(2)]
    upstream = new(8)

    def results(attend, dtype):
        given = [x.to(dtype).requires_grad_() for x in inputs]
        out = attend(*given)
        return [out, *torch.autograd.grad(out, given, upstream.to(dtype))]

    was_deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)  # cuDNN is not deterministic, and would be refused
    activity = torch.profiler.ProfilerActivity.CUDA
    try:
        with torch.profiler.profile(activities=[activity]) as profile:
            ours = results(model.causal_attention, torch.bfloat16)
            torch.cuda.synchronize()
    finally:
        torch.use_deterministic_algorithms(was_deterministic)
    assert any("cudnn" in event.key.lower() for event in profile.key_averages())
    exact = results(model.attention_reference, torch.float64)
    peer = results(model.attention_reference, torch.bfloat16)
    eps = torch.finfo(torch.bfloat16).eps
    for a, b, true in zip(ours, peer, exact, strict=True):
        constant = 4 * eps * max(1, true.abs().max())
        assert (a - true).abs().max() <= (b - true).abs().max() + constant


@pytest.mark.gpu
@pytest.mark.parametrize("T", [4096, 2048])  # all new; or after as many in a cache
def test_float32_on_a_gpu_never_holds_all_scores(T):
    S = 4096
    q = torch.randn(1, 32, T, 64, device="cuda", requires_grad=True)
    k = torch.randn(1, 8, S, 64, device="cuda", requires_grad=True)
    scores = 4 * q.shape[1] * T * S  # bytes
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    model.causal_attention(q, k, k).sum().backward()
    assert torch.cuda.max_memory_allocated() - before < scores / 2


@pytest.mark.gpu
def test_a_compiled_block_is_one_graph_on_a_gpu():
    """Asking which GPU this is must not break the graph."""
    llama = random_llama().to("cuda")
    tokens = torch.randint(0, 512, (2, 17), device="cuda")
    plain = llama(tokens, tokens)[0]
    torch.compiler.reset()
    for block in llama.model.layers:
        block.compile(dynamic=False, fullgraph=True, backend="aot_eager")
    compiled = llama(tokens, tokens)[0]
    compiled.backward()
    torch.testing.assert_close(compiled, plain)


# ---------------------------------------------------------------------------- the whole model


def test_loss_is_the_sum_over_unmasked_targets():
    llama = random_llama()
    tokens = torch.randint(0, 512, (2, 21))
    targets = tokens[:, 1:].clone()
    targets[0, :7] = -100
    loss, count = llama(tokens[:, :-1], targets)
    log_p = llama(tokens[:, :-1]).double().log_softmax(-1)
    by_hand = 0
    for b in range(2):
        for t in range(20):
            if targets[b, t] != -100:
                by_hand -= log_p[b, t, targets[b, t]].item()
    assert count == 33 and abs(loss.item() - by_hand) < 1e-3


def test_a_block_is_its_two_lines():
    """x = x + attention(norm(x)); x = x + mlp(norm(x)), to the bit."""
    llama = random_llama()
    block = llama.model.layers[0]
    x = torch.randn(2, 9, 32)
    cos, sin = llama.rope_tables(0, 9, "cpu")
    expected = x + block.self_attn(block.input_layernorm(x), cos, sin)
    expected = expected + block.mlp(block.post_attention_layernorm(expected))
    assert torch.equal(block(x, cos, sin), expected)


def test_cache_in_pieces_equals_one_forward():
    llama = random_llama()
    tokens = torch.randint(0, 512, (2, 30))
    cache = model.Cache(llama.config, 2, 30, "cpu", torch.float32)
    with torch.inference_mode():
        parts = [llama.hidden(piece, cache) for piece in tokens.split([11, 1, 5, 13], dim=1)]
        assert torch.allclose(torch.cat(parts, 1), llama.hidden(tokens), atol=1e-5)


def test_recompute_gives_the_same_gradients():
    llama = random_llama()
    tokens = torch.randint(0, 512, (2, 17))
    found = []
    for llama.recompute in ("none", "attention", "full"):
        llama.zero_grad()
        llama(tokens[:, :-1], tokens[:, 1:])[0].backward()
        found.append([p.grad.clone() for p in llama.parameters()])
    for plain, attention, full in zip(*found, strict=True):
        assert torch.equal(plain, attention) and torch.equal(plain, full)


@pytest.mark.parametrize("what, recompute", [
    ("odd", "attention"), ("lora", "none"), ("full", "full")])
def test_a_compiled_block_is_one_graph(what, recompute):
    """No breaks; also below what is trained, where a graph with recomputation has no backward pass
    to serve."""
    results = []
    tokens = torch.randint(0, 512, (2, 17))
    for compiled in (False, True):
        llama = random_llama()
        if what == "lora":
            model.add_lora(llama, 4, 4)
        for name, p in llama.named_parameters():
            p.requires_grad_(bool(plan.is_trained(name, what)))
        llama.recompute = recompute
        torch.compiler.reset()
        if compiled:
            for block in llama.model.layers:
                block.compile(dynamic=False, fullgraph=True, backend="aot_eager")
        loss, _ = llama(tokens, tokens)
        loss.backward()
        gradients = [p.grad for p in llama.parameters() if p.requires_grad]
        results.append([loss.detach(), *gradients])
    torch.testing.assert_close(*results)


def test_a_float32_master_under_bfloat16_compute_gets_a_float32_gradient(tmp_path):
    def dtype(name):
        return torch.float32 if "layers.1." in name else torch.bfloat16

    model.save(random_llama(), tmp_path)
    llama = model.load(tmp_path, dtype=dtype)
    llama.compute_dtype = torch.bfloat16
    tokens = torch.randint(0, 512, (2, 9))
    llama(tokens[:, :-1], tokens[:, 1:])[0].backward()
    assert llama.model.layers[1].mlp.up_proj.weight.grad.dtype == torch.float32
    assert llama(tokens).dtype == torch.bfloat16


# --------------------------------------------------------------------------------- generation


def test_greedy_generation_equals_argmax_without_cache():
    llama = random_llama()
    tokens = torch.randint(0, 512, (3, 5))
    slow = tokens
    with torch.inference_mode():
        for _ in range(12):
            slow = torch.cat((slow, llama(slow)[:, -1:].argmax(-1)), 1)
    assert torch.equal(llama.generate(tokens, 12, temperature=0), slow)


def test_generation_never_gives_padded_rows_and_stops_at_eos():
    llama = random_llama(unpadded_vocab_size=5)
    out = llama.generate(torch.zeros(8, 1, dtype=torch.long), 40, temperature=5.0, eos=[3])
    assert out.max() < 5
    for row in out[:, 1:].tolist():
        if 3 in row:
            assert set(row[row.index(3):]) == {3}


def test_top_p_keeps_the_fewest_likely_tokens():
    llama = random_llama()
    tokens = torch.randint(0, 512, (1, 4)).repeat(200, 1)
    p, order = llama(tokens[:1])[0, -1].softmax(-1).sort(descending=True)
    n = int((p.cumsum(0) < 0.3).sum()) + 1
    drawn = llama.generate(tokens, 1, top_p=0.3)[:, -1]
    assert set(drawn.tolist()) <= set(order[:n].tolist())


def test_temperature_cools_to_greedy():
    llama = random_llama()
    tokens = torch.randint(0, 512, (16, 4))
    greedy = llama.generate(tokens, 6, temperature=0)
    assert torch.equal(llama.generate(tokens, 6, temperature=1e-4), greedy)
    assert torch.equal(llama.generate(tokens, 6, top_p=0.0), greedy)
    assert not torch.equal(llama.generate(tokens, 6, temperature=50.0), greedy)


def test_generation_then_training_in_one_process():
    llama = random_llama()
    llama.generate(torch.ones(1, 3, dtype=torch.long), 4)
    tokens = torch.ones(1, 8, dtype=torch.long)
    llama(tokens, tokens)[0].backward()
    assert llama.lm_head.weight.grad is not None


# --------------------------------------------------------------------------------------- LoRA


def test_lora_changes_nothing_at_step_zero_and_merges_exactly():
    llama = random_llama()
    tokens = torch.randint(0, 512, (2, 16))
    before = llama(tokens)
    whole = copy.deepcopy(llama)
    model.add_lora(llama, rank=4, alpha=8)
    assert torch.equal(llama(tokens), before)
    for name, p in llama.named_parameters():
        if name.endswith("lora_B"):
            p.data.normal_(std=0.1)
    layer = llama.model.layers[0].mlp.up_proj
    by_hand = layer.weight.double() + 8 / 4 * layer.lora_B.double() @ layer.lora_A.double()
    merged = model.merge_lora(layer.weight, layer.lora_A, layer.lora_B, layer.scale)
    assert (merged - by_hand).abs().max() < 1e-6
    beside = llama(tokens)
    assert (beside - before).abs().max() > 0.1
    for name, part in llama.named_modules():
        if isinstance(part, model.LoRALinear):
            merged = model.merge_lora(part.weight, part.lora_A, part.lora_B, part.scale)
            whole.get_submodule(name).weight.data = merged
    assert torch.allclose(whole(tokens), beside, atol=1e-3 * beside.abs().max().item())


# -------------------------------------------------------------------------- model directories


def test_derived_tensors_of_old_checkpoints_are_skipped_and_dtype_is_the_files(tmp_path):
    llama = random_llama(dtype="bfloat16")
    model.save(llama, tmp_path)
    tensors = {name: p.detach().clone() for name, p in llama.named_parameters()}
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, tmp_path / hf.WEIGHTS)
    # config.json says bfloat16; rounding would be silent.
    assert model.load(tmp_path).config.dtype == "float32"


def test_save_and_load_keep_every_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(hf, "MAX_SHARD_BYTES", 20_000)
    llama = random_llama(dtype="bfloat16")
    model.save(llama, tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    again = model.load(tmp_path)
    read = model.open_tensors(tmp_path)
    for (name, p), q in zip(llama.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(p.bfloat16().float(), q), name
        assert torch.equal(p.bfloat16(), read(name)), name


@pytest.mark.parametrize("change, part", [
    ({"model.norm.weight": None}, "has no tensor model.norm.weight .1 missing, 0 unknown"),
    ({"model.bias": torch.ones(3)}, "holds an unknown tensor model.bias .0 missing, 1 unknown"),
    ({"model.norm.weight": torch.ones(3)}, r"norm.weight has shape \(3,\), .* \(32,\)"),
    ({"model.norm.weight": torch.ones(32, dtype=torch.int8)}, "of type I8"),
])
def test_tensors_that_the_config_does_not_describe_are_refused_by_name(change, part, tmp_path):
    model.save(random_llama(), tmp_path)
    tensors = load_file(tmp_path / hf.WEIGHTS)
    for name, value in change.items():
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value
    save_file(tensors, tmp_path / hf.WEIGHTS)
    with pytest.raises(UserError, match=part):
        model.load(tmp_path)


@pytest.mark.parametrize("change, part", [
    ({"sliding_window": 32}, "sliding_window 32"),
    ({"attention_bias": True}, "attention_bias"),
    ({"hidden_act": "gelu"}, "gelu"),
    ({"rope_parameters": {"rope_type": "yarn"}}, "yarn"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "lacks low_freq_factor, high"),
    ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel"),
    ({"num_key_value_heads": 3}, "evenly"),
    ({"hidden_size": None}, "hidden_size"),
    ({"dtype": "int8"}, "int8"),
])
def test_config_refuses_by_name(change, part, tmp_path):
    tiny_config().write(tmp_path / "config.json")
    written = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**written, **change}))
    with pytest.raises(UserError, match=part):
        model.Config.read(tmp_path)


MISTRAL = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}


def write_mistral(folder, **changes):
    """Write a config.json that says only what it must, as some Mistrals' do."""
    sizes = {"vocab_size": 64, "hidden_size": 128, "intermediate_size": 48, "num_hidden_layers": 2,
             "num_attention_heads": 16}
    write_json(folder / "config.json", {**sizes, **MISTRAL, **changes})


@pytest.mark.parametrize("changes, positions, key_value_heads", [
    ({"sliding_window": None, "max_position_embeddings": 32768}, 32768, 8),     # v0.2, v0.3
    # v0.1, as the error advises.
    ({"sliding_window": None, "max_position_embeddings": 4096}, 4096, 8),
    ({"sliding_window": None}, 131072, 8),
    ({"sliding_window": None, "num_key_value_heads": None}, 131072, 16),
    ({"sliding_window": None, "architectures": None}, 131072, 8),
    ({"sliding_window": None, "model_type": None}, 131072, 8),
    # The window is as long as the positions.
    ({"max_position_embeddings": 4096}, 4096, 8),
    ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, 2048, 16),
])
def test_what_a_mistral_leaves_out_means_mistral_s_defaults(changes, positions, key_value_heads,
                                                            tmp_path):
    """transformers' MistralConfig has other defaults than its LlamaConfig."""
    write_mistral(tmp_path, **changes)
    config = model.Config.read(tmp_path)
    assert (config.max_position_embeddings, config.num_key_value_heads) == (
        positions,
        key_value_heads,
    )
    # Once trained it is written as a Llama, where all of this is explicit.
    config.write(tmp_path / "config.json")
    assert model.Config.read(tmp_path) == config


@pytest.mark.parametrize("changes, window", [
    ({"sliding_window": 4096, "max_position_embeddings": 32768}, 4096),         # v0.1
    ({"max_position_embeddings": 32768}, 4096), ({}, 4096),
    # transformers goes by model_type.
    ({"architectures": ["LlamaForCausalLM"]}, 4096),
    # No Mistral looks at use_sliding_window.
    ({"sliding_window": 1024, "use_sliding_window": False}, 1024),
])
def test_the_window_of_a_mistral_is_in_use_unless_it_is_null(changes, window, tmp_path):
    write_mistral(tmp_path, **changes)
    advice = f"sliding_window {window} is in use .* null and max_position_embeddings to {window}"
    with pytest.raises(UserError, match=advice):
        model.Config.read(tmp_path)
    write_mistral(
        tmp_path, **{**changes, "sliding_window": None, "max_position_embeddings": window}
    )
    assert model.Config.read(tmp_path).max_position_embeddings == window


def test_a_mistral_is_read_as_transformers_reads_it(tmp_path):
    transformers = pytest.importorskip("transformers")
    for changes in ({}, {"sliding_window": None}, {"max_position_embeddings": 512},
                    {"num_key_value_heads": 4}):
        write_mistral(tmp_path, **changes)
        theirs = transformers.AutoConfig.from_pretrained(tmp_path)
        ours = hf.in_one_spelling(read_json(tmp_path / "config.json"))
        for name in (*hf.MISTRAL, "rms_norm_eps"):
            assert getattr(theirs, name) == ours[name], name
