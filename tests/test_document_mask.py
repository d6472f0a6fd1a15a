"""--document_mask: the documents in a window are trained on as if each were alone."""
import inspect
import json
import math
import sys

import pytest
import torch
from conftest import tiny_config
from test_parallel import close, torchrun
from test_plan import as_a_stage, measured_peak, saved_bytes
from test_train import exact, flags, records, weights
from torch.nn.attention.varlen import varlen_attn

import data
import model
import train
from common import checkpoint, cli, plan
from studies import document_mask

BOS = 1
MASK = ["--document_mask"]

# Windows of 32 tokens, given by where documents begin in them.
BEGINNINGS = [
    [5, 20],            # the first and the last are cut
    [0, 9],             # none is cut at the start of the window
    [7, 8, 10],         # one of a single token, one of two
    [31],               # one of which only the BOS is in the window
    [],                 # the middle of one
    list(range(32)),    # 32 documents of a single token
]


def windows(beginnings: list[list[int]] = BEGINNINGS, length: int = 32) -> torch.Tensor:
    """Random tokens (B, length) with a BOS at these positions and nowhere else."""
    tokens = torch.randint(3, 512, (len(beginnings), length))
    for row, places in zip(tokens, beginnings, strict=True):
        row[places] = BOS
    return tokens


def segments(row: torch.Tensor) -> list[slice]:
    """The documents of a window, found without model.find_documents."""
    starts = sorted({0, *(row == BOS).nonzero().flatten().tolist()})
    ends = [*starts[1:], len(row)]
    return [slice(start, end) for start, end in zip(starts, ends, strict=True)]


def gradients(llama: model.Llama) -> dict[str, torch.Tensor]:
    found = {n: p.grad.clone() for n, p in llama.named_parameters() if p.grad is not None}
    llama.zero_grad()
    return found


def alone(llama: model.Llama, inputs, targets) -> tuple[torch.Tensor, dict]:
    """Loss and gradients, one document at a time, each in its own pass."""
    total = torch.zeros(())
    for row, expected in zip(inputs, targets, strict=True):
        for part in segments(row):
            loss, _ = llama(row[None, part], expected[None, part])
            loss.backward()
            total += loss.detach()
    return total, gradients(llama)


def together(llama: model.Llama, inputs, targets) -> tuple[torch.Tensor, dict]:
    """Loss and gradients of whole windows, in one pass, with their documents."""
    loss, _ = llama(inputs, targets, model.find_documents(inputs, BOS))
    loss.backward()
    return loss.detach(), gradients(llama)


def assert_same(one: tuple[torch.Tensor, dict], other: tuple[torch.Tensor, dict]) -> None:
    torch.testing.assert_close(one[0], other[0], rtol=1e-5, atol=1e-5)
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        torch.testing.assert_close(gradient, other[1][name], rtol=1e-4, atol=1e-5, msg=name)


class StandIn:
    """Replaces varlen_attn by its definition, sequence by sequence. It takes the arguments of the
    real one in this version of torch, and records them."""
    def __init__(self):
        self.shapes = []

    def __call__(self, *args, **options):
        given = inspect.signature(varlen_attn).bind(*args, **options).arguments
        q, k, v = given["query"], given["key"], given["value"]
        starts = given["cu_seq_q"]
        self.shapes.append((q.shape, k.shape))
        assert torch.equal(starts, given["cu_seq_k"])
        assert starts.dtype == torch.int32 and starts[0] == 0 and starts[-1] == len(q)
        assert given["window_size"] == (-1, 0)  # causal
        assert q.shape[1] == k.shape[1] or given["enable_gqa"]
        out = []
        for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            assert 0 <= end - start <= given["max_q"] == given["max_k"]
            if start < end:
                part = [x[None, start:end].transpose(1, 2) for x in (q, k, v)]
                out.append(model.attention_reference(*part)[0].transpose(0, 1))
        return torch.cat(out)


SHARES = [False, True] if model.VARLEN_SHARES_KEYS else [False]


@pytest.fixture(params=["mask", *(f"varlen, keys shared: {shared}" for shared in SHARES)])
def way(request, monkeypatch) -> str:
    """Both ways of attending within documents, on a CPU."""
    if request.param != "mask":
        monkeypatch.setattr(model, "varlen_attn", StandIn())
        monkeypatch.setattr(model, "varlen_runs", lambda *_: True)
        monkeypatch.setattr(model, "VARLEN_SHARES_KEYS", request.param.endswith("True"))
    return request.param


# ------------------------------------------------------------------------------ where documents are


def test_documents_begin_at_a_bos_and_at_the_window_s_start():
    tokens = windows()
    documents = model.find_documents(tokens, BOS)
    numbers = []
    parts = []
    for row in tokens:
        parts += segments(row)
    for number, part in enumerate(parts):
        numbers += [number] * (part.stop - part.start)
    assert documents.numbers.flatten().tolist() == numbers
    assert documents.numbers.dtype == torch.int32
    room = documents.room
    assert room > numbers[-1] and room == 2 ** round(math.log2(room)) and room <= 2 * numbers[-1]


def test_starts_are_those_of_all_documents_and_the_rest_are_empty(monkeypatch):
    monkeypatch.setattr(model, "varlen_runs", lambda *_: True)
    tokens = windows()
    documents = model.find_documents(tokens, BOS)
    expected = []
    for i, row in enumerate(tokens):
        expected += [32 * i + part.start for part in segments(row)]
    starts = documents.ready(torch.bfloat16).starts.tolist()
    assert starts[:len(expected)] == expected
    assert set(starts[len(expected):]) == {tokens.numel()} and len(starts) == documents.room + 1

    # A single window, as train.find_cause looks at it: numbers may start anywhere.
    for row, window in zip(tokens, documents.split(1), strict=True):
        found = window.ready(torch.bfloat16).starts.unique().tolist()
        assert found == [*(part.start for part in segments(row)), 32]


@pytest.mark.parametrize("device, dtype, runs", [
    ("cpu", torch.bfloat16, False), ("meta", torch.float32, False), ("meta", torch.bfloat16, True),
])
def test_a_mask_is_made_where_flash_attention_cannot_run(device, dtype, runs):
    """The device "meta" stands in for a GPU."""
    documents = model.find_documents(windows(), BOS)
    documents = documents._replace(numbers=documents.numbers.to(device)).ready(dtype)
    assert (documents.mask is None) == runs and (documents.starts is None) != runs


@pytest.mark.parametrize("major, runs", [(7, False), (8, True), (9, True)])
def test_flash_attention_begins_with_ampere(major, runs, monkeypatch):
    class OnGPU:
        device = torch.device("cuda")
        is_cuda = True
    properties = type("Properties", (), {"major": major})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert model.varlen_runs(OnGPU, torch.bfloat16) == runs


# ----------------------------------------------------------------- equal to documents by themselves


@pytest.mark.parametrize("shape", [
    dict(), dict(num_key_value_heads=4), dict(num_key_value_heads=1),
])
@pytest.mark.parametrize("recompute", ["none", "attention", "full"])
def test_windows_train_as_their_documents_do_alone(shape, recompute, way):
    llama = model.Llama(tiny_config(**shape))
    inputs = windows()
    targets = torch.randint(0, 512, inputs.shape)
    targets[targets < 30] = data.IGNORE
    expected = alone(llama, inputs, targets)
    llama.recompute = recompute
    assert_same(together(llama, inputs, targets), expected)


@pytest.mark.parametrize("what", ["embed", "odd", "lora", "lora+embed"])
def test_so_does_a_part_of_the_model(what, way):
    llama = as_a_stage(tiny_config(), what, torch.float32, "adamw", "attention")
    inputs = windows()
    targets = torch.randint(0, 512, inputs.shape)
    assert_same(together(llama, inputs, targets), alone(llama, inputs, targets))


def test_so_do_windows_of_packed_shards(world, way):
    """Short documents, several per window, as data.py pack stores them."""
    llama = model.load(world / "model")
    loader = data.Loader([data.Shards(world / "shards" / x) for x in ("ko", "en")], [1, 1], 64, 3)
    (part,), _, _, _ = next(train.batches(loader, 1, 8, 8, "cpu", document_mask=True))
    inputs, targets, documents = part
    assert documents.numbers[-1, -1] > 8  # more documents than windows
    loss, _ = llama(*part)
    loss.backward()
    assert_same((loss.detach(), gradients(llama)), alone(llama, inputs, targets))


def test_windows_longer_than_the_blocks_that_attention_is_computed_in():
    """All keys in a late document's first blocks are hidden."""
    tokens = windows([[700, 1499], [0, 1300]], length=1500)
    documents = model.find_documents(tokens, BOS)
    q, k, v = (torch.randn(2, heads, 1500, 16, requires_grad=True) for heads in (4, 2, 2))
    out = model.attention_within(q, k, v, documents.ready(torch.float32))
    expected = model.attention_reference(q, k, v, documents.numbers)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    upstream = torch.randn_like(out)
    pairs = zip(torch.autograd.grad(out, (q, k, v), upstream),
                torch.autograd.grad(expected, (q, k, v), upstream), strict=True)
    for got, want in pairs:
        torch.testing.assert_close(got, want, rtol=1e-4, atol=2e-5)


def test_the_definition_is_that_of_the_documents_alone():
    tokens = windows()
    numbers = model.find_documents(tokens, BOS).numbers
    q, k, v = (torch.randn(len(tokens), heads, 32, 8) for heads in (4, 2, 2))
    out = model.attention_reference(q, k, v, numbers)
    for i, row in enumerate(tokens):
        for part in segments(row):
            own = [x[i:i + 1, :, part] for x in (q, k, v)]
            torch.testing.assert_close(out[i:i + 1, :, part], model.attention_reference(*own))


def test_the_content_of_other_documents_does_not_matter(way):
    llama = model.Llama(tiny_config()).requires_grad_(False)
    tokens = windows([[10, 20]])
    other = tokens.clone()
    other[:, :10] = torch.randint(3, 512, (1, 10))
    other[:, 21:] = torch.randint(3, 512, (1, 11))
    documents = model.find_documents(tokens, BOS)
    one, two = (llama(x, documents=documents)[:, 10:20] for x in (tokens, other))
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(llama(tokens)[:, 10:20], one, atol=1e-3)


def test_keys_are_repeated_only_where_they_cannot_be_shared(way):
    if way == "mask":
        pytest.skip("varlen_attn's")
    inputs = windows()
    together(model.Llama(tiny_config()), inputs, inputs)
    heads = {(q[1], k[1]) for q, k in model.varlen_attn.shapes}
    assert heads == {(4, 2 if model.VARLEN_SHARES_KEYS else 4)}


# --------------------------------------------------------------------------------------- on a GPU


@pytest.mark.parametrize("recompute", ["none", "attention", "full"])
def test_a_step_with_documents_never_waits_for_its_device(recompute):
    """The device "meta" stands in for a GPU, and has PyTorch's own varlen_attn: its tensors have no
    values, so reading one raises."""
    with torch.device("meta"):
        llama = model.Llama(tiny_config()).bfloat16()
    llama.compute_dtype, llama.recompute = torch.bfloat16, recompute
    tokens = windows()
    documents = model.find_documents(tokens, BOS)
    documents = documents._replace(numbers=documents.numbers.to("meta"))
    hidden = llama.hidden(tokens.to("meta"), documents=documents)
    hidden.sum().backward()
    assert hidden.is_meta and all(p.grad.is_meta for p in llama.model.parameters())


@pytest.mark.gpu
@pytest.mark.parametrize("heads, kv_heads", [(4, 4), (8, 2)])
def test_flash_attention_within_documents_is_its_definition(heads, kv_heads):
    """The real varlen_attn, with empty documents at the end, and with a model's strides."""
    tokens = windows([[0, 300], [5, 6, 1000], []], length=1024)
    documents = model.find_documents(tokens, BOS).to("cuda")
    ready = documents.ready(torch.bfloat16)
    assert ready.mask is None and ready.starts[-1] == ready.starts[-2]

    def new(n):
        return torch.randn(3, 1024, n, 64, device="cuda").bfloat16().transpose(1, 2)

    inputs = [new(heads), new(kv_heads), new(kv_heads)]
    upstream = new(heads)

    def results(attend, dtype):
        given = [x.to(dtype).requires_grad_() for x in inputs]
        out = attend(*given)
        return [out, *torch.autograd.grad(out, given, upstream.to(dtype))]

    def defined(q, k, v):
        return model.attention_reference(q, k, v, documents.numbers)

    ours = results(lambda q, k, v: model.attention_within(q, k, v, ready), torch.bfloat16)
    peer = results(defined, torch.bfloat16)
    true = results(defined, torch.float64)
    eps = torch.finfo(torch.bfloat16).eps
    for a, b, exactly in zip(ours, peer, true, strict=True):
        constant = 4 * eps * max(1, exactly.abs().max())
        assert (a - exactly).abs().max() <= (b - exactly).abs().max() + constant


@pytest.mark.gpu
def test_a_compiled_block_with_documents_is_one_graph_on_a_gpu():
    llama = model.Llama(tiny_config(head_dim=16)).to("cuda")
    llama.compute_dtype = torch.bfloat16
    tokens = windows()
    documents = model.find_documents(tokens, BOS).to("cuda")
    tokens = tokens.to("cuda")
    plain, _ = llama(tokens, tokens, documents)
    for block in llama.model.layers:
        block.compile(dynamic=False, fullgraph=True)
    compiled, _ = llama(tokens, tokens, documents)
    compiled.backward()
    torch.testing.assert_close(plain, compiled, rtol=2e-2, atol=0)


# ------------------------------------------------------------------------------------- in training


def test_batches_find_the_documents_of_each_micro_batch(world):
    loader = data.Loader([data.Shards(world / "shards/ko")], [1], 32, 0)
    again = data.Loader([data.Shards(world / "shards/ko")], [1], 32, 0)
    with_documents = train.batches(loader, 3, 4, 2, "cpu", document_mask=True)
    for (parts, *rest), (plain, *others) in zip(
        with_documents, train.batches(again, 3, 4, 2, "cpu"), strict=True
    ):
        assert len(parts) == len(plain) == 2 and str(rest) == str(others)
        for (inputs, targets, documents), (same_inputs, same_targets) in zip(
            parts, plain, strict=True
        ):
            assert torch.equal(inputs, same_inputs) and torch.equal(targets, same_targets)
            found = model.find_documents(inputs, BOS)
            assert torch.equal(found.numbers, documents.numbers) and documents.numbers[0, 0] == 0


def test_the_flag_changes_training_and_nothing_before_it(world, tmp_path):
    """It is saved. Validation reads one document at a time in any case."""
    argv = ["full:640:1e-3"]
    train.main(flags(world, tmp_path / "off", *argv))
    train.main(flags(world, tmp_path / "on", *argv, more=MASK))
    for name, value in (("off", False), ("on", True)):
        assert cli.read_json(tmp_path / name / "config.json")["document_mask"] is value
    first = [records(tmp_path / name, "validation")[0] for name in ("off", "on")]
    assert first[0] == first[1]
    assert exact(tmp_path / "off")[0] != exact(tmp_path / "on")[0]


def test_micro_batches_and_recomputation_make_no_difference(world, tmp_path):
    ways = {
        "one": ["--micro_batch", "4"],
        "four": ["--micro_batch", "1"],
        "recomputed": ["--micro_batch", "4", "--recompute", "full"],
    }
    for name, more in ways.items():
        train.main(flags(world, tmp_path / name, "odd:640:1e-4", more=[*MASK, *more]))
    assert exact(tmp_path / "one") == exact(tmp_path / "recomputed")
    for a, b in zip(exact(tmp_path / "one"), exact(tmp_path / "four"), strict=True):
        assert a == pytest.approx(b, abs=1e-5)


def test_a_run_that_was_stopped_is_resumed_with_its_mask(world, tmp_path, monkeypatch):
    stages = ["odd:256:1e-3", "lora:640:1e-3"]
    train.main(flags(world, tmp_path / "whole", *stages, more=MASK))
    write_line = train.write_line

    class Killed(Exception):
        pass

    def kill(file, record):
        if record.get("step") == 5 and record["stage"] == 2 and "loss" in record:
            raise Killed
        write_line(file, record)
    with monkeypatch.context() as patch:
        patch.setattr(train, "write_line", kill)
        with pytest.raises(Killed):
            train.main(flags(world, tmp_path / "killed", *stages, more=MASK))
    assert checkpoint.newest(tmp_path / "killed", 2)
    train.main(["--resume", str(tmp_path / "killed")])
    assert exact(tmp_path / "killed") == exact(tmp_path / "whole")
    after = weights(tmp_path / "killed/model")
    assert all(torch.equal(x, after[name]) for name, x in weights(tmp_path / "whole/model").items())


def test_the_source_of_a_loss_that_is_not_finite_is_found_within_documents():
    """The second window's own document does not contain the token whose embedding is broken."""
    llama = model.Llama(tiny_config())
    tokens = windows([[10], [20], [5]])
    tokens[2, 30] = 511
    with torch.no_grad():
        llama.model.embed_tokens.weight[511] = torch.inf
    part = (tokens, tokens.clamp(max=400), model.find_documents(tokens, BOS))
    assert train.find_cause(llama, [part], [0, 0, 1], ["ko", "en"]) == "a window of en"


@pytest.mark.slow
def test_compiled_blocks_train_the_same_within_documents(world, tmp_path):
    for name, more in {"plain": [], "compiled": ["--compile"]}.items():
        argv = flags(world, tmp_path / name, "odd:640:1e-4", "lora:640:1e-4",
                     more=["--clip", "0", *MASK, *more])
        train.main(argv)
    for a, b in zip(exact(tmp_path / "plain"), exact(tmp_path / "compiled"), strict=True):
        assert a == pytest.approx(b, abs=1e-5)


@pytest.mark.slow
def test_two_processes_train_what_one_does_within_documents(world, tmp_path):
    argv = ["full:1280:1e-3", "lora:640:1e-3"]
    more = [*MASK, "--micro_batch", "1"]
    train.main(flags(world, tmp_path / "alone", *argv, more=more))
    done = torchrun(2, flags(world, tmp_path / "two", *argv, more=more))
    assert done.returncode == 0, done.stderr
    close(tmp_path / "alone", tmp_path / "two")


# ------------------------------------------------------------------------------------ what it costs


@pytest.mark.parametrize("recompute", ["none", "attention", "full"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("what", ["embed", "odd", "lora", "full"])
def test_the_plan_knows_the_mask_to_the_byte(what, dtype, recompute):
    """Like the test of activations in test_plan.py."""
    config = tiny_config()
    batch = torch.cat((windows(), torch.randint(0, 512, (6, 1))), 1)
    llama = as_a_stage(config, what, dtype, "adamw", recompute)
    documents = model.find_documents(batch[:, :-1], BOS)
    measured = saved_bytes(llama, batch[:, :-1], batch[:, 1:], documents)
    if recompute != "none":
        # Objects that are called again hold their own arguments, which are not saved tensors.
        measured += 6 * 32 * 32 * dtype.itemsize

    of_the_loss = 6 * 32 * config.hidden_size * dtype.itemsize
    if plan.is_trained("lm_head.weight", what):
        of_the_loss += 4 * config.vocab_size * config.hidden_size
    step = plan.Step(32, dtype, "adamw", 6, recompute=recompute, document_mask=True)
    planned = plan.activations(config, what, 4, step)["activations"] + of_the_loss
    slack = batch.nbytes + documents.numbers.nbytes + 4 * 64 * config.head_dim
    assert 0 <= planned - measured <= slack, (planned, measured)


@pytest.mark.parametrize("what, dtype, recompute", [
    ("full", torch.float32, "none"), ("lora", torch.bfloat16, "attention"),
])
def test_the_plan_s_peak_holds_with_a_mask(what, dtype, recompute):
    config = tiny_config(
        vocab_size=1024, hidden_size=128, intermediate_size=384, head_dim=32,
        max_position_embeddings=256,
    )
    measured = measured_peak(
        config, what, "adamw", dtype, recompute, 4, 256, 2, document_mask=True
    )
    cost = plan.cost(
        config, plan.Stage(what, 1, 1e-3), 4, 256, dtype, micro_batch=4, accumulation=2,
        recompute=recompute, document_mask=True,
    )
    assert abs(cost["peak"] / measured - 1) < 0.1, (measured, cost)


def test_on_a_gpu_the_plan_has_no_mask_but_in_float32():
    def kept(dtype, document_mask):
        step = plan.Step(64, dtype, device="cuda", micro_batch=2, document_mask=document_mask)
        return plan.activations(tiny_config(), "full", 4, step)["activations"]
    assert kept(torch.bfloat16, True) - kept(torch.bfloat16, False) == 4 * 128
    assert kept(torch.float32, True) - kept(torch.float32, False) == 4 * 128 + 4 * 128 * 64


def test_the_plan_that_is_printed_has_it(world, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(plan, "table", lambda *_, **how: asked.append(how["document_mask"]) or "")
    for more in ([], MASK):
        train.main([*flags(world, tmp_path / "run", "full:640:1e-3", more=more), "--plan"])
    assert asked == [False, True]


# ---------------------------------------------------------------------------------------- the study


@pytest.mark.slow
def test_the_study_trains_pairs_on_the_same_windows(world, tmp_path, monkeypatch, capsys):
    (tmp_path / "long").symlink_to(world / "shards/ko")
    argv = ["--model", f"{world}/model", "--short", f"{world}/shards/ko",
            "--long", f"{tmp_path}/long", "--english", f"{world}/shards/en",
            "--out", f"{tmp_path}/study", "--seq_len", "32", "--tokens", "640",
            "--batch_tokens", "128", "--eval_bytes", "500", "--seeds", "2"]
    monkeypatch.setattr(
        document_mask.arms, "command", lambda argv, log: train.main([*map(str, argv[2:])])
    )
    monkeypatch.setattr(sys, "argv", ["document_mask.py", *argv])
    document_mask.main()
    table = capsys.readouterr().out
    found = json.loads((tmp_path / "study/document_mask.json").read_text())
    assert len(found["rows"]) == 8
    for off, on in zip(found["rows"][::2], found["rows"][1::2], strict=True):
        name = f"{off['trained on']}-{off['seed']}"
        states = []
        for run in (name, f"{name}-mask"):
            folder = tmp_path / "study" / run / "stages/1-full"
            states.append(cli.read_json(folder / "training_state.json")["loader"])
        assert states[0] == states[1] and off["start"] == on["start"]

    # The table's difference is the mean over seeds; short comes before long.
    difference = 0
    for off, on in ((0, 1), (4, 5)):
        rows = found["rows"]
        difference += (rows[on]["end"]["ko"] - rows[off]["end"]["ko"]) / 2
    assert f"| short | on - off | {difference:+.4f} ±" in table


def test_documents_per_window_are_counted_right(world):
    folder = str(world / "shards/ko")
    shards = data.Shards(folder)
    counts = []
    for i in range(shards.windows(64)):
        inputs, _ = shards.window(i, 64)
        found = model.find_documents(torch.from_numpy(inputs)[None], shards.index["bos_token_id"])
        counts.append(int(found.numbers[-1, -1]) + 1)
    expected = sum(counts) / len(counts)
    assert document_mask.documents_per_window(folder, 64) == pytest.approx(expected, rel=0.05)
