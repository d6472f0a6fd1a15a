"""Make a model directory, or a PEFT adapter, from a checkpoint of a run or a finished stage.

    # the newest checkpoint, as a model directory
    python export.py RUN --out DIR
    # a certain checkpoint
    python export.py RUN --stage 2 --step 500 --out DIR
    # the LoRA of a LoRA stage, finished or not, as a PEFT adapter
    python export.py RUN --adapter DIR

DIR can then be --model of train.py, eval_kobest.py and sample.py. export.py needs no GPU, only
memory for what the stage trains and for one file of weights (at most 5 GB). RUN may be training at
the same time: nothing in it is changed or locked.

A stage trains a part of the model, and a checkpoint holds only that part. Everything else is copied
unchanged from the directory that the stage started from. A LoRA is merged into the matrices beside
it; --adapter writes it by itself. When a stage ends, train.py writes its directory in the same way.
"""
import argparse
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

import model
import tokenizer
from common import (
    checkpoint,
    cli,
    dialogues,
    hf,
    parallel,
    plan,
    resume,
    special_tokens,
    tokenizer_json,
)
from common.cli import UserError

# The matrices of a block that have a LoRA, under PEFT's names: all seven.
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


# ------------------------------------------------------------------------------ a model directory


def trained_parts(name: str, trained: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What was trained of a tensor, gathered: nothing, the tensor itself, or its LoRA's A and B.
    All processes take part, because each holds some of the rows."""
    prefix = name.removesuffix("weight")
    parts = {}
    for part in (name, prefix + "lora_A", prefix + "lora_B"):
        if part in trained:
            parts[part] = parallel.full_tensor(trained[part]).detach()
    return parts


def finished_tensor(
    name: str,
    parts: dict[str, torch.Tensor],
    read: Callable[[str], torch.Tensor],
    stage: plan.Stage,
    config: model.Config,
    args: argparse.Namespace,
) -> torch.Tensor:
    """A tensor as it goes into the stage's directory. `parts`: what was trained of it. read(name)
    returns it as it was when the stage started."""
    if not parts:
        return read(name)
    if name not in parts:
        lora_a, lora_b = parts.values()
        return model.merge_lora(read(name), lora_a, lora_b, args.lora_alpha / args.lora_rank)
    if "new_rows" in stage.parts and name in plan.TABLES:
        # The old rows were not trained, but they were cast to the optimizer's dtype. Take them from
        # the start directory, so that they stay exactly the same.
        before = read(name)
        old_rows = config.base_vocab_size
        return torch.cat((before[:old_rows], parts[name][old_rows:].to(before.dtype)))
    return parts[name]


def save_stage(
    llama: model.Llama,
    stage: plan.Stage,
    start: Path,
    folder: Path,
    args: argparse.Namespace,
    state: dict,
) -> None:
    """Write a stage's model directory, one tensor at a time, so there is no second copy of the
    model in memory. For a LoRA stage, adapter/ holds what was trained, before merging.

    What was not trained is copied from the start directory, not from the model's copy in the
    compute dtype, so it passes through every stage unchanged. A LoRA is merged in float32 and
    rounded once.
    """
    # A LoRA has no tensors of its own here: it is merged into the matrix beside it.
    names = []
    for name, _ in llama.named_parameters():
        if not name.endswith(("lora_A", "lora_B")):
            names.append(name)
    trained = trained_parameters(llama)
    adapter = {}

    def finished(name: str, read: Callable[[str], torch.Tensor]) -> torch.Tensor:
        """The tensor as it goes into the directory; what was trained is noted for the adapter."""
        parts = {part: tensor.cpu() for part, tensor in trained_parts(name, trained).items()}
        if "lora" in stage.parts:
            adapter.update(parts)
        return finished_tensor(name, parts, read, stage, llama.config, args)

    remaining = iter(names)

    def write() -> None:
        try:
            read = model.open_tensors(start)
            tensors = ((name, finished(name, read)) for name in remaining)
            with cli.new_folder(folder) as temporary:
                hf.carry_files(start, temporary)
                model.save(llama, temporary, tensors)
                finish_settings(stage, start, temporary)
                cli.write_json(temporary / hf.STATE, state)
                if adapter:
                    save_adapter(adapter, llama.config, start, temporary / "adapter", args)
        finally:
            # If writing failed, the other processes still wait to gather the remaining tensors.
            for name in remaining:
                trained_parts(name, trained)

    # Rank 0 gathers and writes name by name; the others take part in gathering, and then wait.
    if parallel.rank() > 0:
        for name in remaining:
            trained_parts(name, trained)
    parallel.on_rank_zero(write)


def finish_settings(stage: plan.Stage, start: Path, folder: Path) -> None:
    """Change what a stage changes in a directory besides the weights. All other files stay as they
    were copied from `start`, because users may have edited them by hand."""
    vocabulary = tokenizer.load(start)
    if not (folder / "tokenizer.json").exists():
        tokenizer.write(vocabulary, folder, start)

    # The model has learned that documents end with the tokenizer's EOS. If neither file names that
    # token, the base was trained without init.py. (If only one does, the other was changed on
    # purpose.)
    settings = {}
    ends = []
    for name in ("config.json", "generation_config.json"):
        settings[name] = cli.read_json(folder / name)
        ends += special_tokens.id_list(settings[name].get("eos_token_id"))
    if vocabulary.eos not in ends:
        for name, before in settings.items():
            amended = special_tokens.with_eos(before, vocabulary.eos, name)
            cli.write_json(folder / name, amended)

    # Instruction tuning teaches a chat format, which replaces any that the model had.
    if "sft" in stage.parts:
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        if (folder / hf.TEMPLATES).exists():
            shutil.rmtree(folder / hf.TEMPLATES)
        config = cli.read_json_if_any(folder / "tokenizer_config.json")
        config["chat_template"] = sft_template(vocabulary, folder)
        cli.write_json(folder / "tokenizer_config.json", config)


def sft_template(vocabulary: tokenizer.Vocabulary, folder: Path) -> str:
    """The chat template that `sft` teaches, for the tokenizer.json in `folder`."""
    # Prompts were packed with the space that SentencePiece puts before a text. transformers may not
    # put one there, because BOS comes before the prompt.
    config = special_tokens.read_config(folder)
    content = cli.read_json_if_any(folder / "tokenizer.json")
    start = ""
    if vocabulary.adds_space and not tokenizer_json.prefix_everywhere(config, content):
        start = " "
        # An EOS that strips the spaces after it would remove the space, but not the symbol ▁.
        described = special_tokens.described(folder)
        if vocabulary.eos in described and described[vocabulary.eos]["rstrip"]:
            start = "▁"
    names = {i: text for text, i in vocabulary.controls.items()}
    return dialogues.chat_template(names[vocabulary.bos], names[vocabulary.eos], start)


def trained_parameters(llama: model.Llama) -> dict[str, torch.Tensor]:
    """The parameters that a stage trains, by name."""
    return {name: p for name, p in llama.named_parameters() if p.requires_grad}


# ------------------------------------------------------------------------------ a LoRA by itself


def peft_name(name: str) -> str:
    """A parameter's name in an adapter of PEFT (Hugging Face's library for LoRA).

    >>> peft_name("model.layers.0.self_attn.q_proj.lora_A")
    'base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight'
    """
    if name.endswith(("lora_A", "lora_B")):
        name += ".weight"
    return f"base_model.model.{name}"


def save_adapter(
    trained: dict[str, torch.Tensor],
    config: model.Config,
    start: Path,
    folder: Path,
    args: argparse.Namespace,
) -> None:
    """Write what a LoRA stage trained as a PEFT adapter, to be used with the model in `start`."""
    folder.mkdir(exist_ok=True)
    # An embedding or head that was trained too is stored as a whole. For PEFT tied ones are two
    # modules.
    tables = {name: trained[name] for name in plan.TABLES if name in trained}
    embedding, head = plan.TABLES
    if config.tie_word_embeddings and embedding in tables:
        tables[head] = tables[embedding].clone()
    tensors = {}
    for name, value in {**trained, **tables}.items():
        tensors[peft_name(name)] = value.contiguous()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})

    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        # PEFT would look up a relative path that does not exist on the Hugging Face hub.
        "base_model_name_or_path": os.path.abspath(start),
        "r": args.lora_rank,
        "lora_alpha": args.lora_alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(LORA_TARGETS),
        "modules_to_save": [name.split(".")[-2] for name in tables] or None,
        "inference_mode": True,
    }
    if config.tie_word_embeddings and tables:
        settings["ensure_weight_tying"] = True
    cli.write_json(folder / "adapter_config.json", settings)


# ---------------------------------------------------------------------------- out of a checkpoint


def read_checkpoint(
    folder: Path, stage: plan.Stage, start: Path, settings: argparse.Namespace
) -> model.Llama:
    """The model of `stage` at this checkpoint. What the stage trains is in memory; everything else
    is on the meta device, with names and shapes only."""
    master_dtype = plan.MASTER[settings.optimizer]

    def before_load(llama: model.Llama) -> None:
        if "lora" in stage.parts:
            model.add_lora(llama, settings.lora_rank, settings.lora_alpha, master_dtype)
        for name, p in llama.named_parameters():
            p.requires_grad_(plan.is_trained(name, stage.what))

    llama = model.load(start, "meta", master_dtype, before_load)
    parameters = checkpoint.load_parameters(folder, trained_parameters(llama))
    for name, value in parameters.items():
        model.assign(llama, name, value)
    if llama.config.tie_word_embeddings:
        llama.lm_head.weight = llama.model.embed_tokens.weight
    return llama


def which_stage(run: Path, stages: list[plan.Stage], asked: int | None) -> int:
    """The number of the stage to export: the one asked for, or the newest. UserError if the run has
    no such stage."""
    if asked is None:
        return newest_stage(run, stages)
    if not 1 <= asked <= len(stages):
        raise UserError(f"--stage {asked}: {run} has stages 1 to {len(stages)}")
    return asked


def newest_stage(run: Path, stages: list[plan.Stage]) -> int:
    """The number of the last stage that has a checkpoint or is finished. UserError if there is
    none."""
    newest = 0
    for number, stage in enumerate(stages, 1):
        if checkpoint.find(run, number) or checkpoint.stage_folder(run, number, stage).exists():
            newest = number
    if newest == 0:
        raise UserError(f"{run} has no checkpoint yet; train.py saves the first after --save_every "
                        "steps, or when it is stopped with Ctrl-C or SIGTERM")
    return newest


def what_there_is(run: Path, stages: list[plan.Stage]) -> str:
    """The checkpoints and finished stages of a run, for messages."""
    found = []
    for number, stage in enumerate(stages, 1):
        steps = []
        for folder in reversed(checkpoint.find(run, number)):
            steps.append(str(checkpoint.step_of(folder)))
        if steps:
            found.append(f"stage {number} step {', '.join(steps)}")
        finished = checkpoint.stage_folder(run, number, stage)
        if finished.exists():
            found.append(f"stage {number}, finished, in {finished}")
    return "; ".join(found) or "nothing"


def find_checkpoint(
    run: Path, stages: list[plan.Stage], number: int, step: int | None
) -> tuple[Path, dict]:
    """The checkpoint of a stage at this step, or its newest complete one, and its counters.
    UserError if there is none."""
    there_is = f"there is {what_there_is(run, stages)}"
    if step is None:
        found = checkpoint.newest(run, number)
        if found is None:
            raise UserError(f"{run} has no complete checkpoint of stage {number}; including "
                            f"broken ones, {there_is}")
        return found

    folder = checkpoint.folder_of(run, number, step)
    if not folder.exists():
        raise UserError(f"{run} has no checkpoint of stage {number} step {step}; {there_is}")
    try:
        return folder, checkpoint.read_counters(folder)
    except UserError as error:
        raise UserError(f"checkpoint {folder} is broken ({error}); {there_is}") from None


def start_of_stage(
    run: Path,
    stages: list[plan.Stage],
    number: int,
    settings: argparse.Namespace,
    moved: Path | None,
) -> Path:
    """The model directory that a stage started from. `moved`: where the run's first one is now, if
    it was moved. UserError if that is not what the run started from."""
    if number > 1:
        return checkpoint.stage_folder(run, number - 1, stages[number - 2])
    if settings.config:
        return checkpoint.random_start(run)

    # Older runs did not record where their relative paths start.
    started_in = getattr(settings, "started_in", os.getcwd())
    start = moved or Path(resume.where_now(settings.model, False, started_in, "--model DIR"))
    for noted, sha256 in cli.read_json(run / "inputs.json").items():
        file = start / Path(noted).name
        if file.suffix != ".safetensors":
            continue  # the index.json of a source
        if not file.exists() or cli.sha256(file) != sha256:
            raise UserError(f"{file} is missing, or not what {run} started from; give --model, "
                            "where its model directory is now")
    return start


# -------------------------------------------------------------------------------------- the program


def check_target(flag: str, folder: Path, run: Path, mark: str) -> None:
    """UserError if a folder to be written lies inside the run, or holds something that neither
    training nor export wrote. They leave a file called `mark` in it."""
    if run.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise UserError(f"{flag} {folder} lies inside the run {run}; choose a folder of its own")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / mark).exists():
        raise UserError(f"{flag} {folder} holds something else already (it has no {mark}); choose "
                        "another folder")


def export_finished(
    folder: Path, start: Path | None, is_last: bool, args: argparse.Namespace
) -> None:
    """Copy the adapter of a finished stage, with the present path of the stage's `start` in it.
    UserError if --out asks for the stage's model, which exists already."""
    if args.out:
        published = args.run / "model"
        if is_last and published.exists():
            folder = published
        raise UserError(f"there is nothing to export: that stage is finished, and its model is "
                        f"{folder} (for an earlier checkpoint, give --stage and --step)")
    if not (folder / "adapter").exists():
        raise UserError(f"{folder} has no adapter/, because an older version of train.py wrote it; "
                        "export a checkpoint of that stage with --step, if there is one")
    with cli.new_folder(args.adapter) as temporary:
        shutil.copytree(folder / "adapter", temporary, dirs_exist_ok=True)
        # The run may have been moved, so write where the start is now.
        adapter_config = cli.read_json(temporary / "adapter_config.json")
        adapter_config["base_model_name_or_path"] = os.path.abspath(start)
        cli.write_json(temporary / "adapter_config.json", adapter_config)
    print(f"{args.adapter}: the adapter of {folder}")


def main(argv: list[str] | None = None) -> None:
    """Find the checkpoint, and write the model directory or the adapter."""
    parser = cli.Parser(description=__doc__, prog="export.py")
    flag = parser.add_argument
    flag("run", type=Path, metavar="RUN", help="run folder of train.py")
    flag("--out", type=Path, help="model directory to write (this or --adapter is required)")
    flag("--adapter", type=Path,
         help="folder to write a LoRA stage's adapter to, for PEFT; instead of --out")
    flag("--stage", type=int,
         help="number of the stage, counted from 1 (default: the last that has a checkpoint or is "
              "finished)")
    flag("--step", type=int,
         help="step of the checkpoint in that stage (default: the newest complete checkpoint)")
    flag("--model", type=Path,
         help="model directory that RUN started from, if it was moved since")
    args = parser.parse_args(argv)
    cli.settings(args)

    # Check what is asked for
    if (args.out is None) == (args.adapter is None):
        raise UserError("give --out for a model directory, or --adapter for a LoRA by itself")
    if parallel.size() > 1:
        raise UserError("export.py runs as one process; start it without torchrun")
    settings = argparse.Namespace(**checkpoint.read_settings(args.run))
    stages = [plan.parse_stage(text) for text in settings.stages]
    if args.out:
        check_target("--out", args.out, args.run, hf.STATE)
    else:
        check_target("--adapter", args.adapter, args.run, "adapter_config.json")

    # Find the stage
    number = which_stage(args.run, stages, args.stage)
    stage = stages[number - 1]
    if args.adapter and "lora" not in stage.parts:
        raise UserError(f"stage {number} of {args.run} is {stage.what}, which has no LoRA; there "
                        f"is {what_there_is(args.run, stages)}")
    finished = checkpoint.stage_folder(args.run, number, stage)
    if finished.exists() and args.step is None:
        start = None
        if args.adapter:
            start = start_of_stage(args.run, stages, number, settings, args.model)
        export_finished(finished, start, number == len(stages), args)
        return

    # Find the checkpoint
    folder, counters = find_checkpoint(args.run, stages, number, args.step)
    start = start_of_stage(args.run, stages, number, settings, args.model)
    llama = read_checkpoint(folder, stage, start, settings)
    if args.out:
        if args.out.resolve() == start.resolve():
            raise UserError(f"--out {args.out} is what that stage of {args.run} started from; "
                            "choose another folder")
        state = {name: value for name, value in counters.items() if name != "files"}
        save_stage(llama, stage, start, args.out, settings, state)
        tokenizer.warn_of_ties(tokenizer.load(args.out))
    else:
        with cli.new_folder(args.adapter) as temporary:
            save_adapter(trained_parameters(llama), llama.config, start, temporary, settings)
    print(f"{args.out or args.adapter}: stage {number} ({stage.what}) step {counters['step']} of "
          f"{args.run}, {counters['tokens']:,} tokens")


if __name__ == "__main__":
    cli.run(main)
