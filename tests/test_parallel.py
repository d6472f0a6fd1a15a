"""common/parallel.py: several processes train like one, and other numbers of them can continue."""
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, tiny_config
from test_train import exact, flags, records, weights

import data
import model
import tokenizer
import train
from common import checkpoint, parallel

# 10, 30 and 10 steps, with a checkpoint after each third.
STAGES = ["embed:1280:5e-3", "odd:3840:5e-3", "lora:1280:5e-3"]

# One window per process.
FOUR = ["--micro_batch", "1"]


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return str(s.getsockname()[1])


def torchrun(processes: int, argv: list[str], script: str = "train.py"):
    """Run train.py or another script in this many processes; a subprocess.CompletedProcess."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nproc_per_node={processes}",
        f"--master_port={free_port()}",
        script,
        *argv,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


def replaced(argv: list[str], flag: str, value: str) -> list[str]:
    """The same command line with another value for one of its flags."""
    argv = list(argv)
    argv[argv.index(flag) + 1] = value
    return argv


def close(one: Path, other: Path, loss: float = 1e-4, weight: float = 2e-3) -> None:
    """Check that steps, losses, validation and weights agree, up to the order of sums."""
    steps = exact(one)
    other_steps = exact(other)
    assert len(steps) >= 10
    assert [step[:3] for step in steps] == [step[:3] for step in other_steps]
    expected = [pytest.approx(step[3:], abs=loss) for step in other_steps]
    assert [step[3:] for step in steps] == expected
    for x, y in zip(records(one, "validation"), records(other, "validation"), strict=True):
        for name, score in x["validation"].items():
            assert score == pytest.approx(y["validation"][name], abs=loss)
    other_weights = weights(other / "model")
    for name, tensor in weights(one / "model").items():
        torch.testing.assert_close(other_weights[name], tensor, rtol=0, atol=weight)


def dying(folder: Path, step: int) -> str:
    """train.py, whose second process is killed in this step."""
    script = folder / "dies.py"
    script.write_text(f"""
import os, signal, train
from common import cli
norm = train.gradient_norm
calls = []
def stop(*args):
    calls.append(1)
    if len(calls) == {step} and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return norm(*args)
train.gradient_norm = stop
cli.run(train.main)
""")
    return str(script)


def test_a_single_process_exchanges_nothing():
    """One process, without torchrun: each function returns what it was given."""
    x = torch.arange(6.0).reshape(3, 2)
    assert (parallel.rank(), parallel.size()) == (0, 1)
    assert parallel.all_reduce_sum(1, 2.5) == [1, 2.5]
    assert parallel.gather(iter("ab")) == ["a", "b"]
    assert parallel.broadcast("x") == "x"
    assert parallel.on_rank_zero(lambda: "done") == "done"
    assert parallel.local(x) is parallel.full_tensor(x) is x
    assert parallel.rows(x) == (0, 3)
    with pytest.raises(KeyError):
        parallel.on_rank_zero({}.popitem)


@pytest.fixture(scope="module")
def alone(world, tmp_path_factory):
    run = tmp_path_factory.mktemp("alone") / "run"
    train.main(flags(world, run, *STAGES, more=FOUR))
    return run


@pytest.fixture(scope="module")
def four(world, tmp_path_factory):
    run = tmp_path_factory.mktemp("four") / "run"
    out = torchrun(4, flags(world, run, *STAGES, more=[*FOUR, "--keep", "99"]))
    assert out.returncode == 0, out.stderr
    return run


@pytest.mark.slow
def test_four_processes_train_what_one_trains(alone, four):
    close(alone, four)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_checkpoint_of_four_resumes_on_one_and_on_two(processes, alone, four, tmp_path):
    """Back to the middle of the second stage, and from there with fewer processes."""
    run = tmp_path / "run"
    shutil.copytree(four, run)
    shutil.rmtree(run / "model")
    later = [folder for folder in checkpoint.find(run) if folder.name > "02-00000015"]
    for folder in [*run.glob("stages/[23]-*"), *later]:
        shutil.rmtree(folder)
    if processes == 1:
        train.main(["--resume", str(run)])
    else:
        out = torchrun(processes, ["--resume", str(run)])
        assert out.returncode == 0, out.stderr
        assert "02-00000015" in out.stdout + out.stderr
    close(alone, run)


@pytest.mark.slow
def test_a_tied_head_new_rows_and_bfloat16_weights(world, tmp_path):
    """Two processes: embedding, norm and head in one group; old rows unchanged; the same random
    rounding as with one process."""
    torch.manual_seed(3)
    folder = tmp_path / "tied"
    folder.mkdir()
    model.save(model.Llama(tiny_config(tie_word_embeddings=True, base_vocab_size=300)), folder)
    tokenizer.save(world / "base.model", folder)
    argv = flags(world, "", "new_rows:640:5e-3", "full:640:5e-3", more=FOUR)
    argv = replaced(argv, "--model", str(folder))
    for optimizer in ("adamw", "adamw_bf16"):
        one = tmp_path / f"1-{optimizer}"
        two = tmp_path / f"2-{optimizer}"
        more = ["--optimizer", optimizer]
        train.main([*replaced(argv, "--out", str(one)), *more])
        out = torchrun(2, [*replaced(argv, "--out", str(two)), *more])
        assert out.returncode == 0, out.stderr

        table = "model.embed_tokens.weight"
        old = weights(folder)[table]
        new = weights(two / "stages/1-new_rows")[table]
        assert torch.equal(old[:300], new[:300])
        assert not torch.equal(old[300:], new[300:])
        if optimizer == "adamw":
            close(one, two)
        else:
            # One unit of bfloat16 (1/128 of a weight) where the last bits of a gradient decided.
            close(one, two, loss=5e-2, weight=3e-2)


@pytest.mark.slow
def test_two_agents_stand_for_two_machines(world, alone, tmp_path):
    run = tmp_path / "run"
    port = free_port()
    agents = []
    for node in range(2):
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nnodes=2",
            f"--node_rank={node}",
            "--nproc_per_node=1",
            "--master_addr=localhost",
            f"--master_port={port}",
            "train.py",
            *flags(world, run, *STAGES, more=FOUR),
        ]
        agent = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        agents.append(agent)
    outputs = [agent.communicate(timeout=300)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], outputs
    close(alone, run)


@pytest.mark.slow
def test_two_processes_killed_and_resumed_end_in_the_same_bits(world, tmp_path):
    """With everything that has its own state: source weights that change, random rounding, masked
    prompts."""
    lines = []
    for i in range(300):
        # "What is i + i?" "It is 2 i."
        row = {"question": f"문제 {i} 더하기 {i}?", "answer": f"답은 {2 * i}."}
        lines.append(json.dumps(row, ensure_ascii=False))
    (tmp_path / "dialogues.jsonl").write_text("\n".join(lines))
    data.main([
        "pack",
        "--input", f"{tmp_path}/dialogues.jsonl",
        "--tokenizer", f"{world}/base.model",
        "--out", f"{tmp_path}/sft",
        "--prompt_field", "question",
        "--response_field", "answer",
    ])
    sources = ["--data", f"{world}/shards/ko=0.2:0.6", f"{tmp_path}/sft=0.4:0.8"]
    more = [*FOUR, "--optimizer", "adamw_bf16", *sources]
    whole = tmp_path / "whole"
    run = tmp_path / "run"
    stages = ["odd:1280:5e-3", "sft:1280:5e-3"]

    finished = torchrun(2, flags(world, whole, *stages, more=more))
    assert finished.returncode == 0, finished.stderr
    killed = torchrun(2, flags(world, run, *stages, more=more), dying(tmp_path, step=18))
    assert killed.returncode != 0
    assert not (run / "model").exists()
    # One line of ours, then torchrun's own report with its tracebacks.
    assert "another process of this run is gone" in killed.stderr, killed.stderr
    ours = re.split(r"torch[./]distributed[./]elastic", killed.stderr)[0]
    assert "Traceback" not in ours

    resumed = torchrun(2, ["--resume", str(run)])
    assert resumed.returncode == 0, resumed.stderr
    assert "02-00000006" in resumed.stdout + resumed.stderr
    assert exact(run) == exact(whole)
    assert len(exact(run)) == 20
    ended = weights(run / "model")
    for name, tensor in weights(whole / "model").items():
        assert torch.equal(tensor, ended[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["begin", "counters", "stage"])
def test_a_fault_of_rank_zero_is_one_line(moment, world, tmp_path):
    """A full disk at three moments when only rank 0 writes."""
    script = tmp_path / "full.py"
    script.write_text(f"""
import errno, os, pathlib, model, train
from common import checkpoint, cli
write = cli.write_json
def full(path, value):
    if "{moment}" in ("begin" if path.name == "inputs.json" else path.name):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    write(path, value)
checkpoint.write_json = full
def refuse(llama, folder, tensors):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
if "{moment}" == "stage":
    model.save = refuse
cli.run(train.main)
""")
    out = torchrun(2, flags(world, tmp_path / "run", *STAGES, more=FOUR), str(script))
    assert out.returncode != 0
    own = [line for line in out.stderr.splitlines() if line.startswith("full.py:")]
    assert len(own) == 1 and "No space left" in own[0], out.stderr
    assert not list((tmp_path / "run").rglob(".*.partial"))


def test_a_run_of_one_resumes_on_two_without_being_told_how(world, tmp_path):
    """A micro-batch derived or given on one process need not fit two."""
    for micro_batch in ("0", "4"):  # 0: derived
        run = tmp_path / f"run{micro_batch}"
        argv = flags(world, run, "odd:640:1e-3", "full:640:1e-3")
        train.main(replaced(argv, "--micro_batch", micro_batch))
        for folder in (run / "model", *run.glob("stages/2-*")):
            shutil.rmtree(folder)
        out = torchrun(2, ["--resume", str(run)])
        assert out.returncode == 0, out.stderr
        assert (run / "model").exists()


def test_the_cause_of_a_non_finite_loss_is_found_on_any_process(world, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(world / "model", folder)
    llama = model.load(folder)
    llama.model.norm.weight.data[0] = torch.inf
    model.save(llama, folder)
    argv = flags(world, tmp_path / "run", "odd:640:1e-3")
    out = torchrun(2, replaced(argv, "--model", str(folder)))
    assert out.returncode != 0
    assert "the cause is a window of" in out.stderr
    assert out.stderr.count("the cause is") == 1  # only one process prints


def test_more_processes_than_torchrun_started(world, tmp_path, refused, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    refused(train, flags(world, tmp_path / "run", "embed:400:1e-3"), "torchrun")


def test_the_batch_must_divide_among_the_processes(world, tmp_path, refused, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    argv = flags(world, tmp_path / "run", "embed:400:1e-3")
    refused(train, argv, "a multiple of --micro_batch 2 times 3 processes")
