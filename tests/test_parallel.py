"""common/parallel.py: several processes train what one process trains, and hand over to any other number of them."""
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import tiny_config
from test_train import exact, flags, records, weights

import data
import model
import tokenizer
import train
from common import checkpoint

ROOT = Path(train.__file__).parent
STAGES = ["embed:1280:5e-3", "odd:3840:5e-3", "lora:1280:5e-3"]  # 10, 30 and 10 steps, a checkpoint after each third
FOUR = ["--micro_batch", "1"]  # a window a process


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return str(s.getsockname()[1])


def torchrun(processes: int, argv: list[str], script: str = "train.py", **kwargs) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}",
               f"--master_port={free_port()}", script, *argv]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300,
                          env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}, **kwargs)


def close(one: Path, other: Path, loss: float = 1e-4, weight: float = 2e-3) -> None:
    """The same steps, losses, validation and weights, up to the order of sums."""
    a, b = exact(one), exact(other)
    assert [x[:3] for x in a] == [x[:3] for x in b] and len(a) >= 10
    assert [x[3:] for x in a] == [pytest.approx(x[3:], abs=loss) for x in b]
    for x, y in zip(records(one, "validation"), records(other, "validation"), strict=True):
        for name, score in x["validation"].items():
            assert score == pytest.approx(y["validation"][name], abs=loss)
    for name, tensor in weights(one / "model").items():
        torch.testing.assert_close(weights(other / "model")[name], tensor, rtol=0, atol=weight)


def dying(folder: Path, step: int) -> str:
    """train.py, whose second process is killed in this step."""
    script = folder / "dies.py"
    script.write_text(f"""
import os, signal, train
from common import cli
norm, calls = train.gradient_norm, []
def stop(*args):
    calls.append(1)
    if len(calls) == {step} and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return norm(*args)
train.gradient_norm = stop
cli.run(train.main)
""")
    return str(script)


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
    """Back to the middle of the second stage, and on from there with fewer processes."""
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
        assert out.returncode == 0 and "02-00000015" in out.stdout + out.stderr, out.stderr
    close(alone, run)


@pytest.mark.slow
def test_a_tied_head_new_rows_and_bfloat16_weights(world, tmp_path):
    """Two processes: embedding, norm and head in one group; old rows untouched; the same random rounding as alone."""
    torch.manual_seed(3)
    folder = tmp_path / "tied"
    folder.mkdir()
    model.save(model.Llama(tiny_config(tie_word_embeddings=True, base_vocab_size=300)), folder)
    tokenizer.save(world / "base.model", folder)
    argv = flags(world, "", "new_rows:640:5e-3", "full:640:5e-3", more=FOUR)
    argv[argv.index("--model") + 1] = str(folder)
    for more in ([], ["--optimizer", "adamw_bf16"]):
        runs = [tmp_path / f"{n}{len(more)}" for n in (1, 2)]
        argv[argv.index("--out") + 1] = str(runs[0])
        train.main([*argv, *more])
        argv[argv.index("--out") + 1] = str(runs[1])
        out = torchrun(2, [*argv, *more])
        assert out.returncode == 0, out.stderr
        old, new = weights(folder), weights(runs[1] / "stages/1-new_rows")
        table = "model.embed_tokens.weight"
        assert torch.equal(old[table][:300], new[table][:300]) and not torch.equal(old[table][300:], new[table][300:])
        # one unit of bfloat16 (1/128 of a weight) where a gradient's last bits carried a rounding over
        close(*runs, loss=1e-4 if not more else 5e-2, weight=2e-3 if not more else 3e-2)


@pytest.mark.slow
def test_two_agents_stand_for_two_machines(world, alone, tmp_path):
    run, port = tmp_path / "run", free_port()
    agents = [subprocess.Popen([sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node_rank={i}",
                                "--nproc_per_node=1", "--master_addr=localhost", f"--master_port={port}", "train.py",
                                *flags(world, run, *STAGES, more=FOUR)], cwd=ROOT, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
              for i in range(2)]
    outputs = [agent.communicate(timeout=300)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], outputs
    close(alone, run)


@pytest.mark.slow
def test_two_processes_killed_and_resumed_end_in_the_same_bits(world, tmp_path):
    """With all that has a state of its own: moving weights of the sources, random rounding, masked prompts."""
    rows = [{"question": f"문제 {i} 더하기 {i}?", "answer": f"답은 {2 * i}."} for i in range(300)]  # "what is i + i?"
    (tmp_path / "dialogues.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    data.main(["pack", "--input", f"{tmp_path}/dialogues.jsonl", "--tokenizer", f"{world}/base.model", "--out",
               f"{tmp_path}/sft", "--prompt_field", "question", "--response_field", "answer"])
    more = [*FOUR, "--optimizer", "adamw_bf16", "--data", f"{world}/shards/ko=0.2:0.6", f"{tmp_path}/sft=0.4:0.8"]
    argv = lambda run: flags(world, run, "odd:1280:5e-3", "sft:1280:5e-3", more=more)
    whole = torchrun(2, argv(tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    killed = torchrun(2, argv(tmp_path / "run"), dying(tmp_path, step=18))
    assert killed.returncode != 0 and not (tmp_path / "run/model").exists()
    assert "another process of this run is gone" in killed.stderr  # and then torchrun's own report
    assert "Traceback" not in killed.stderr.split("torch/distributed/elastic")[0].split("torch.distributed.elastic")[0]
    resumed = torchrun(2, ["--resume", str(tmp_path / "run")])
    assert resumed.returncode == 0 and "02-00000006" in resumed.stdout + resumed.stderr, resumed.stderr
    assert exact(tmp_path / "run") == exact(tmp_path / "whole") and len(exact(tmp_path / "run")) == 20
    for name, tensor in weights(tmp_path / "whole/model").items():
        assert torch.equal(tensor, weights(tmp_path / "run/model")[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["begin", "counters", "stage"])
def test_a_fault_of_the_first_process_is_one_line(moment, world, tmp_path):
    """A full disk at three moments at which the first process alone writes."""
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
    """Windows of a pass that were derived, or asked for, on one process need not suit two."""
    for more in ([], ["--micro_batch", "4"]):
        run = tmp_path / f"run{len(more)}"
        argv = flags(world, run, "odd:640:1e-3", "full:640:1e-3")
        i = argv.index("--micro_batch")
        train.main(argv[:i] + argv[i + 2:] + more)
        for folder in (run / "model", *run.glob("stages/2-*")):
            shutil.rmtree(folder)
        out = torchrun(2, ["--resume", str(run)])
        assert out.returncode == 0 and (run / "model").exists(), out.stderr


def test_the_cause_of_a_non_finite_loss_is_found_on_any_process(world, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(world / "model", folder)
    llama = model.load(folder)
    llama.model.norm.weight.data[0] = torch.inf
    model.save(llama, folder)
    argv = flags(world, tmp_path / "run", "odd:640:1e-3")
    argv[argv.index("--model") + 1] = str(folder)
    out = torchrun(2, argv)
    assert out.returncode != 0 and "the cause is a window of" in out.stderr
    assert out.stderr.count("the cause is") == 1  # one process speaks


def test_more_processes_than_torchrun_started(world, tmp_path, refused, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    refused(train, flags(world, tmp_path / "run", "embed:400:1e-3"), "torchrun")


def test_the_batch_must_divide_among_the_processes(world, tmp_path, refused, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    refused(train, flags(world, tmp_path / "run", "embed:400:1e-3"), "a multiple of --micro_batch 2 times 3 processes")
