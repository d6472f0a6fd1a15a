"""Week 5: what a loss is divided by, the order of windows, what a stage trains, a killed run.

python -m pytest exercises/test_week5.py
"""
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import data
import model
import tokenizer
import train
from common import checkpoint, cli, plan

torch.set_num_threads(1)  # tiny tensors, and one thread adds in the same order every time
STAGES = [
    "embed:512:5e-3",
    "odd:1024:5e-3",
]  # of four and eight steps; a checkpoint after every third


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with a model of random weights; shards `a` and `b` of text; and `chat`, shards of
    prompts and responses."""
    root = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)

    def words(n):
        return " ".join("".join(rng.choice(list("abcdefgh"), rng.integers(1, 6))) for _ in range(n))

    for name in (
        "a",
        "b",
        "chat",
    ):  # prompts of 1 to 30 words: some windows have much to learn, some little
        lines = [
            {"text": words(40), "prompt": words(rng.integers(1, 30)), "response": words(6)}
            for _ in range(90)
        ]
        (root / f"{name}.jsonl").write_text(
            "\n".join(json.dumps({"id": name, **line}) for line in lines)
        )
    tokenizer.main(
        [
            "train",
            "--input",
            f"{root}/a.jsonl",
            "--vocab_size",
            "290",
            "--text",
            "all",
            "--out",
            f"{root}/base.model",
        ]
    )
    torch.manual_seed(0)
    config = model.Config(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
    )
    (root / "model").mkdir()
    model.save(model.Llama(config), root / "model")
    tokenizer.save(root / "base.model", root / "model")
    for name in ("a", "b", "chat"):
        command = f"pack --input {root}/{name}.jsonl --tokenizer {root}/base.model"
        command += f" --out {root}/{name} --val_fraction 0.05"
        if name == "chat":
            command += " --prompt_field prompt --response_field response"
        data.main(command.split())
    return root


def flags(world: Path, out: Path, *stages: str, sources=("a=0.75", "b=0.25"), more=()) -> list[str]:
    """The command line of a short training run."""
    shards = [f"{world}/{source}" for source in sources]
    settings = "--seq_len 32 --batch_tokens 128 --save_every 3 --eval_bytes 500 --device cpu"
    return [
        *["--model", f"{world}/model", "--data", *shards, "--out", str(out)],
        *settings.split(),
        *["--stages", *stages, *more],
    ]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def steps(run: Path) -> list[tuple]:
    """(stage, step, loss, norm of the gradient) of every step that metrics.jsonl tells of."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        tuple(r[key] for key in ("stage", "step", "loss", "grad_norm"))
        for r in lines
        if "loss" in r
    ]


def loader(world: Path, seed: int = 0, sources=("a", "b"), weights=(0.75, 0.25)) -> data.Loader:
    return data.Loader([data.Shards(world / name) for name in sources], list(weights), 32, seed)


# ------------------------------------------------------------------------ what a loss is divided by


def test_a_target_is_the_token_after():
    """The prompt 5 6 7 is given, so 8 is the first target; without a prompt, 6 is."""
    tokens = np.array([5, 6, 7, 8, 9])
    inputs, targets = data.inputs_and_targets(tokens, np.array([True, True, True, False, False]))
    assert inputs.tolist() == [5, 6, 7, 8], "the prompt's tokens are inputs like all others"
    assert targets.tolist() == [-100, -100, 8, 9]
    inputs, targets = data.inputs_and_targets(tokens)
    assert (inputs.tolist(), targets.tolist()) == ([5, 6, 7, 8], [6, 7, 8, 9])
    assert tokens.tolist() == [5, 6, 7, 8, 9], "the caller's array is not yours to change"


def test_the_count_is_of_the_targets_of_the_whole_batch(world):
    """It is known before the first backward pass. It is not 4 x 32: prompts do not count."""
    mine, other = (loader(world, sources=["chat"], weights=[1]) for _ in range(2))
    for parts, origin, count, state in train.batches(mine, 5, 4, 2, "cpu"):
        expected_inputs, expected_targets, _ = other.next(4)
        assert [len(inputs) for inputs, _ in parts] == [2, 2], "two micro-batches of two windows"
        inputs, targets = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        assert (
            inputs.tolist() == expected_inputs.tolist()
            and targets.tolist() == expected_targets.tolist()
        )
        assert origin.tolist() == [0] * 4
        assert (
            count
            == sum(target != -100 for row in expected_targets.tolist() for target in row)
            < 4 * 32
        )
        assert state == other.state_dict(), (
            "the state after this batch: a checkpoint resumes at the next"
        )


def test_micro_batches_are_one_batch(world, tmp_path):
    """Prompts differ in length, so micro-batches hold different numbers of targets. Loss and
    gradient are those of one batch all the same."""
    runs = []
    for n in ("4", "1"):
        train.main(
            flags(
                world, tmp_path / n, "sft:512:1e-3", sources=["chat=1"], more=["--micro_batch", n]
            )
        )
        runs.append(np.array(steps(tmp_path / n)))
    np.testing.assert_allclose(runs[1], runs[0], rtol=1e-4)


def test_the_loss_is_the_mean_over_the_targets(world, tmp_path):
    """The first step's, worked out token by token from the start model."""
    train.main(
        flags(
            world, tmp_path / "run", "sft:128:1e-3", sources=["chat=1"], more=["--micro_batch", "2"]
        )
    )
    llama = model.load(world / "model")
    inputs, targets, _ = loader(world, sources=["chat"], weights=[1]).next(4)
    losses = []
    for row, row_targets in zip(torch.from_numpy(inputs), targets.tolist(), strict=True):
        logp = llama(row[None])[0].log_softmax(-1).detach()
        losses += [
            -float(logp[i, target]) for i, target in enumerate(row_targets) if target != -100
        ]
    assert steps(tmp_path / "run")[0][2] == pytest.approx(sum(losses) / len(losses), rel=1e-5)


# --------------------------------------------------------------------- where the next window stands


def test_the_order_of_the_sources_by_hand():
    """They are behind by (½ ⅜ ⅛), (0 ¾ ¼), (½ ⅛ ⅜), (0 ½ ½), which is a tie, (½ -⅛ ⅝), (1 ¼ -¼),
    (½ ⅝ -⅛), (1 0 0)."""
    counts = [0, 0, 0]
    order = []
    for _ in range(8):
        order.append(data.furthest_behind([0.5, 0.375, 0.125], [0.5, 0.375, 0.125], counts, 8))
        counts[order[-1]] += 1
    assert order == [0, 1, 0, 1, 2, 0, 1, 0]
    # Two that change places over a stage of 4 windows are due s - s²/8 and s²/8.
    fading = [
        data.furthest_behind([1.0, 0.0], [0.0, 1.0], counts, 4)
        for counts in ([0, 0], [1, 0], [2, 0], [2, 1])
    ]
    assert fading == [0, 0, 1, 1]


def rows_of(batch: tuple) -> list[list]:
    """[inputs, targets] of each row of a loader's batch."""
    inputs, targets, _ = batch
    return [list(row) for row in zip(inputs.tolist(), targets.tolist(), strict=True)]


def test_every_window_comes_once_an_epoch_in_another_order(world):
    shards = data.Shards(world / "a")
    n = shards.windows(32)
    as_packed = [[part.tolist() for part in shards.window(i, 32)] for i in range(n)]
    deal = loader(world, sources=["a"], weights=[1])
    first = rows_of(deal.next(n))
    second = rows_of(deal.next(n))
    assert sorted(first) == sorted(second) == sorted(as_packed)
    assert first != second and first != as_packed


def test_the_order_is_a_function_of_the_seed_and_the_counts(world):
    """Over more than two epochs: for a loader that dealt all of them, in pieces of any size, and
    for one that was resumed."""
    n = 3 * data.Shards(world / "a").windows(32)
    whole, _, _ = loader(world).next(n)
    assert loader(world, seed=1).next(n)[0].tolist() != whole.tolist()
    pieces = loader(world)
    inputs = [pieces.next(size)[0] for size in (3, 40, n - 43)]
    assert np.concatenate(inputs).tolist() == whole.tolist()
    stopped = loader(world)
    stopped.next(n - 30)
    resumed = loader(world)
    resumed.load_state_dict(stopped.state_dict())
    assert resumed.next(30)[0].tolist() == whole[-30:].tolist()


def test_processes_share_a_batch_and_agree_on_the_order(world):
    loaders = [loader(world) for _ in range(3)]
    parts = [one.next(6, slice(2 * rank, 2 * rank + 2)) for rank, one in enumerate(loaders)]
    whole = loader(world).next(6)
    for i, name in enumerate(("inputs", "targets", "sources")):
        assert np.concatenate([part[i] for part in parts]).tolist() == whole[i].tolist(), name
    assert loaders[0].state_dict() == loaders[1].state_dict() == loaders[2].state_dict()


# ------------------------------------------------------------------------------ what a stage trains


@pytest.mark.parametrize(
    "what, trained",
    [
        ("embed", "tables"),
        ("new_rows", "tables"),
        ("odd", "1 3 11"),
        ("even", "0 10"),
        ("body", "0 1 3 10 11 norm"),
        ("full", "tables 0 1 3 10 11 norm"),
        ("sft", "tables 0 1 3 10 11 norm"),
        ("lora", "lora"),
        ("odd+embed", "tables 1 3 11"),
        ("lora+embed", "tables lora"),
    ],
)
def test_what_a_stage_trains(what, trained):
    kinds = {
        "model.embed_tokens.weight": "tables",
        "lm_head.weight": "tables",
        "model.norm.weight": "norm",
    }
    kinds |= {
        f"model.layers.{i}.{part}.weight": str(i)
        for i in (0, 1, 3, 10, 11)
        for part in ("input_layernorm", "self_attn.o_proj", "mlp.down_proj")
    }
    for name, kind in kinds.items():
        assert bool(plan.is_trained(name, what)) == (kind in trained.split()), f"{what}: {name}"
    if "lora" in trained:
        assert plan.is_trained("model.layers.0.mlp.up_proj.lora_A", what)
        assert plan.is_trained("model.layers.1.self_attn.q_proj.lora_B", what)


def test_a_frozen_weight_keeps_its_bits(world, tmp_path):
    train.main(flags(world, tmp_path / "run", "odd:640:1e-2"))
    before = weights(world / "model")
    after = weights(tmp_path / "run/model")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.startswith("model.layers.1.")}


# ----------------------------------------------------------------------------- a run that is killed


def make_checkpoint(run: Path, stage: int, step: int) -> Path:
    """A folder that looks like a checkpoint: one file, and its hash in counters.json."""
    folder = run / "checkpoints" / f"{stage:02d}-{step:08d}"
    folder.mkdir(parents=True)
    (folder / "weights").write_text(f"{stage} {step}")
    cli.write_json(
        folder / "counters.json",
        {"stage": stage, "step": step, "files": {"weights": cli.sha256(folder / "weights")}},
    )
    return folder


def test_the_newest_whole_checkpoint(tmp_path, capsys):
    old, middle, new = (make_checkpoint(tmp_path, *at) for at in ((1, 9), (2, 3), (2, 6)))
    assert checkpoint.newest(tmp_path)[0] == new and checkpoint.newest(tmp_path)[1]["step"] == 6
    assert checkpoint.newest(tmp_path, 1)[0] == old and checkpoint.newest(tmp_path, 3) is None
    (new / "weights").write_text("2 7")  # as long as before, one bit changed
    assert checkpoint.newest(tmp_path)[0] == middle and new.name in capsys.readouterr().err, (
        "say what is passed over"
    )
    (middle / "weights").unlink()
    assert checkpoint.newest(tmp_path)[0] == old
    (old / "counters.json").write_text('{"stage": 1, "st')  # cut short
    assert checkpoint.newest(tmp_path) is None
    assert checkpoint.newest(tmp_path / "nothing here") is None


def test_metrics_go_back_to_the_checkpoint(tmp_path):
    file = tmp_path / "metrics.jsonl"
    checkpoint.rewind_metrics(file, 1, 3)  # no file: nothing to do
    lines = [json.dumps({"stage": stage, "step": step}) for stage in (1, 2) for step in (1, 2, 3)]
    file.write_text("\n".join(lines) + '\n{"stage": 2, "st')  # the kill cut a line short
    checkpoint.rewind_metrics(file, 2, 2)
    assert file.read_text() == "\n".join(lines[:5]) + "\n"


# A training run that kills itself at the ninth norm of a gradient.
KILLED = """
import os
import signal

import torch

import train

torch.set_num_threads(1)
gradient_norm = train.gradient_norm
calls = []


def killed(given):
    calls.append(1)
    if len(calls) == 9:
        os.kill(os.getpid(), signal.SIGKILL)
    return gradient_norm(given)


train.gradient_norm = killed
train.main(FLAGS)
"""


def test_a_killed_run_ends_in_the_same_bits(world, tmp_path):
    """kill -9 in step 5 of the second stage, in a process of its own; then --resume."""
    whole = tmp_path / "whole"
    run = tmp_path / "run"
    train.main(flags(world, whole, *STAGES))
    code = KILLED.replace("FLAGS", repr(flags(world, run, *STAGES)))
    root = Path(train.__file__).parent
    killed = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert killed.returncode == -9, killed.stderr
    assert steps(run)[-1][:2] == (2, 4) and not (run / "model").exists()
    train.main(["--resume", str(run)])
    assert steps(run) == steps(whole)
    resumed = weights(run / "model")
    for name, tensor in weights(whole / "model").items():
        assert torch.equal(tensor, resumed[name]), name
