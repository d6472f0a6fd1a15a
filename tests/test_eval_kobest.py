"""eval_kobest.py against hand-written prompts, a naive scorer, scikit-learn and the harness."""
import copy
import csv
import inspect
import json
import os
import random
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import korean, tiny_config

import eval_kobest as kobest
import model
import tokenizer
from common import cli

HEADERS = {
    "boolq": "ID Text Question Answer".split(),
    "copa": "ID sentence question 1 2 Answer".split(),
    "hellaswag": "context choice1 choice2 choice3 choice4 label".split(),
    "sentineg": "ID Text Label".split(),
    "wic": "ID,Target,SENTENCE1,Dictionary 1,Link 1,SENTENCE2,Dictionary 2,Link2,ANSWER".split(","),
}
FIELDS = {  # the columns of HEADERS under the names in the harness's templates
    "boolq": ["paragraph", "question"],
    "copa": ["premise", "question", "alternative_1", "alternative_2"],
    "hellaswag": ["context", "ending_1", "ending_2", "ending_3", "ending_4"],
    "sentineg": ["sentence"],
    "wic": ["word", "context_1", "context_2"],
}


def tsv(root: Path, name: str, split: str) -> Path:
    return root / "v1.0" / kobest.TASKS[name].folder / f"{split}.tsv"


def write(
    root: Path,
    name: str,
    rows: list[list],
    split: str = "dev",
    header: list[str] | None = None,
) -> Path:
    """Write a TSV like KoBEST's: CRLF and no final newline, except in HellaSwag."""
    file = tsv(root, name, split)
    file.parent.mkdir(parents=True, exist_ok=True)
    line_end = "\n" if name == "hellaswag" else "\r\n"
    with open(file, "w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out, delimiter="\t", lineterminator=line_end)
        writer.writerows([header or HEADERS[name], *rows])
    if name != "hellaswag":
        file.write_bytes(file.read_bytes().removesuffix(b"\r\n"))
    return file


def read_table(file: Path) -> list[list[str]]:
    """The lines of a TSV, starting with its header."""
    with open(file, encoding="utf-8", newline="") as lines:
        return list(csv.reader(lines, delimiter="\t"))


def random_row(rng: random.Random, name: str, i: int) -> list:
    def text(words: int) -> str:
        return korean(rng, rng.randint(1, words)) + rng.choice(["", "", " ", "  "])

    def answer() -> str:
        return rng.choice(["TRUE", "True", "FALSE", "False"])

    if name == "boolq":
        return [i, rng.choice(["", " "]) + text(25), text(5), answer()]
    if name == "copa":
        question = rng.choice(["원인", "결과", "결과 "])     # cause, effect
        return [i, text(6), question, text(6), text(6), rng.choice("12")]
    if name == "hellaswag":
        return [text(12), text(12), text(12), text(12), text(12), rng.choice("0123")]
    if name == "sentineg":
        return [i, text(8), rng.choice("01")]
    assert name == "wic"
    return [i, korean(rng, 1), text(8), 1, "http://a", text(8), 2, "http://b", answer()]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with model/ (random and far from uniform, its own tokenizer) and v1.0/ (30 random
    rows per task in dev, 40 in train)."""
    root = tmp_path_factory.mktemp("kobest")
    rng = random.Random(11)
    lines = [korean(rng, 30) for _ in range(60)]
    lines += [f"질문: {word} 답변: 문장1: 2:" for word in ("예", "아니오", "긍정")]
    (root / "text.txt").write_text("\n".join(lines))
    tokenizer.main(["train", "--input", str(root / "text.txt"), "--vocab_size", "800",
                    "--text", "all", "--out", str(root / "base.model")])
    torch.manual_seed(3)
    llama = model.Llama(tiny_config(vocab_size=832, max_position_embeddings=160))
    for p in llama.parameters():
        p.data.normal_(std=0.3)
    (root / "model").mkdir()
    model.save(llama, root / "model")
    tokenizer.save(root / "base.model", root / "model")
    for name in kobest.KOBEST:
        for split, n in (("dev", 30), ("train", 40)):
            write(root, name, [random_row(rng, name, i) for i in range(1, n + 1)], split)
    return root


# ----------------------------------------------------------------------------- prompts and files


def test_prompts_are_the_harness_s_to_the_space(tmp_path):
    def read(name, split="dev"):
        examples = kobest.read(tmp_path, name, split)
        return [(e.row, e.context, e.choices, e.label) for e in examples]

    write(tmp_path, "boolq", [[1, '그는 "네"라고 했다. ', "물음?", "TRUE"],
                              [2, "글", "물음", "False"]])
    assert read("boolq") == [
        (1, '그는 "네"라고 했다.  질문: 물음? 답변: ', ["아니오", "예"], 1),
        (2, "글 질문: 물음 답변: ", ["아니오", "예"], 0),
    ]
    write(tmp_path, "copa", [[1, "비가 왔다.", "원인 ", "가", "나", 1],
                             [2, "{눈}이 왔다.", "결과", "다 ", "라", 2]])
    assert read("copa") == [
        (1, "비가 왔다.  왜냐하면", ["가", "나"], 0),
        (2, "{눈}이 왔다.  그래서", ["다 ", "라"], 1),
    ]
    write(tmp_path, "hellaswag", [["일이 있다.", "가", "나", "다", "라", 3]])
    assert read("hellaswag") == [(1, "문장: 일이 있다.", ["가", "나", "다", "라"], 3)]
    write(tmp_path, "sentineg", [[1, "좋다", 1]], "train")
    write(tmp_path, "sentineg", [[1, 0, "좋지 않다", "좋다"]], "dev",
          ["ID", "Label", "Text", "Text_origin"])
    assert read("sentineg", "train") == [(1, "문장: 좋다 긍부정:", ["부정", "긍정"], 1)]
    assert read("sentineg") == [(1, "문장: 좋지 않다 긍부정:", ["부정", "긍정"], 0)]
    write(tmp_path, "wic", [[1, "배", "[배]를 탔다.", 1, "a", "[배]를 먹었다.", 2, "b", "FALSE"]])
    context = "문장1: [배]를 탔다. 문장2: [배]를 먹었다. 두 문장에서 배가 같은 뜻으로 쓰였나?"
    assert read("wic") == [(1, context, ["아니오", "예"], 0)]


def test_reads_the_bytes_of_the_original_files(tmp_path):
    """A byte order mark, quotes that csv strips, a tab and a line end inside quotes, an empty line;
    from either folder."""
    file = tmp_path / "v1.0" / "BoolQ" / "test.tsv"
    file.parent.mkdir(parents=True)
    file.write_bytes(('\ufeffText\tQuestion\tAnswer\r\n"그는 ""네""\t했\r\n다"\t왜?\tTrue\r\n\r\n'
                      '그"는"\t왜\tFALSE').encode())
    for data in (tmp_path, tmp_path / "v1.0"):
        found = [(e.row, e.context, e.label) for e in kobest.read(data, "boolq", "test")]
        assert found == [
            (1, '그는 "네"\t했\r\n다 질문: 왜? 답변: ', 1),
            (2, '그"는" 질문: 왜 답변: ', 0),
        ]
    assert len(kobest.read(tmp_path, "boolq", "test", limit=1)) == 1


def hugging_face(world: Path, out: Path, task: str, split: str, name: str, stem: str) -> None:
    """Write a TSV of the world as it is on Hugging Face, NAME/STEM.jsonl: JSON lines, the harness's
    names, labels that count from 0."""
    header, *rows = read_table(tsv(world, task, split))
    (out / name).mkdir(exist_ok=True)
    with open(out / name / f"{stem}.jsonl", "w", encoding="utf-8") as lines:
        for row in rows:
            document = {}
            for field, column in kobest.TASKS[task].columns.items():
                document[field] = row[header.index(column)]
            label = document["label"].lower()
            if label in ("true", "false"):
                document["label"] = int(label == "true")
            elif name == "copa":
                document["label"] = int(label) - 1
            else:
                document["label"] = int(label)
            lines.write(json.dumps(document, ensure_ascii=False) + "\n")


@pytest.mark.parametrize("name", kobest.KOBEST)
def test_json_lines_hold_the_same_examples(world, tmp_path, name):
    hugging_face(world, tmp_path, name, "dev", name, "validation")
    assert kobest.read(tmp_path, name, "dev") == kobest.read(world, name, "dev")


def test_sentineg_s_originals(tmp_path):
    def read(name):
        return [(e.context, e.label) for e in kobest.read(tmp_path, name, "test")]

    # "not bad" was "bad", "not good" was "good"
    rows = [[1, 1, "나쁘지 않다", "나쁘다", 0, "부정"], [2, 0, "좋지 않다", "좋다", 1, "부정"]]
    header = ["ID", "Label", "Text", "Text_origin", "Label_origin", "Category_neg"]
    write(tmp_path, "sentineg", rows, "test", header)
    hugging_face(tmp_path, tmp_path, "sentineg", "test", "sentineg", "test")
    hugging_face(tmp_path, tmp_path, "sentineg_originated", "test", "sentineg", "test_originated")
    for _ in ("TSV", "JSON lines"):
        assert read("sentineg") == [
            ("문장: 나쁘지 않다 긍부정:", 1), ("문장: 좋지 않다 긍부정:", 0)]
        assert read("sentineg_originated") == [
            ("문장: 나쁘다 긍부정:", 0), ("문장: 좋다 긍부정:", 1)]
        tsv(tmp_path, "sentineg", "test").unlink(missing_ok=True)


# ------------------------------------------------------------------------------------- tokens


@pytest.mark.parametrize("context, choice, spaces", [
    ("답변: ", "예", "  "), ("답변:", "예", " "), ("나는 ", " 예 ", "   ")])
def test_spaces_at_the_end_of_a_context_move_to_the_answer(world, context, choice, spaces):
    sp = tokenizer.load(world / "model")
    tokens = kobest.encoder(sp, world / "model")
    [(ours, answer)] = kobest.encode(tokens, kobest.Example(1, context, [choice], 0))
    body = sp.encode(context.strip(), bos=False)
    assert ours == [1, *body]
    assert answer == sp.encode(context.strip() + spaces + choice.lstrip(), bos=False)[len(body):]
    assert sp.pieces[answer[0]].text.startswith("▁")
    assert sp.decode(ours) == context.strip()


@pytest.mark.parametrize("said, bos", [
    ({"add_bos_token": True}, [1]), ({"add_bos_token": False}, []), ({}, [1])])
def test_bos_as_the_tokenizer_s_configuration_says(world, tmp_path, said, bos):
    sp = tokenizer.load(world / "model")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    assert kobest.encoder(sp, tmp_path)("예") == bos + sp.encode("예", bos=False)
    (tmp_path / "tokenizer_config.json").unlink()
    assert kobest.encoder(sp, tmp_path)("예") == [1, *sp.encode("예", bos=False)]


@pytest.mark.parametrize("class_name", ["LlamaTokenizer", "PreTrainedTokenizerFast"])
def test_tokens_equal_transformers(world, tmp_path, class_name):
    transformers = pytest.importorskip("transformers")
    copy_files(world / "model", tmp_path)
    said = cli.read_json(tmp_path / "tokenizer_config.json")
    cli.write_json(tmp_path / "tokenizer_config.json", {**said, "tokenizer_class": class_name})
    peer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = kobest.encoder(tokenizer.load(tmp_path), tmp_path)
    texts = ["예", " 예", "  예 아니오", "가  나 ", "질문: 12"]
    texts += [korean(random.Random(i), 5) for i in range(5)]
    for text in texts:
        assert ours(text) == peer.encode(text), text


def copy_files(source: Path, target: Path) -> None:
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())


# ------------------------------------------------------------------------------------- scoring


def naive(llama: model.Llama, context: list[int], continuation: list[int]) -> float:
    """One request by the definition, in float64: truncate on the left, run, and sum."""
    tokens = (context + continuation)[-(llama.config.max_position_embeddings + 1):]
    with torch.inference_mode():
        logp = torch.log_softmax(llama(torch.tensor([tokens[:-1]]))[0], -1)
    return sum(logp[-i, tokens[-i]].item() for i in range(1, len(continuation) + 1))


def some_tokens(rng: random.Random, n: int) -> list[int]:
    return [rng.randrange(1, 800) for _ in range(n)]


def test_loglikelihoods_equal_a_naive_float64_scorer(world):
    """Including truncated requests, shared inputs and one-token answers, for any batch size."""
    llama = model.load(world / "model")
    exact = copy.deepcopy(llama).double()
    exact.compute_dtype = torch.float64
    rng = random.Random()
    requests = []
    for _ in range(12):
        context = some_tokens(rng, rng.choice([1, 9, 30, 150, 300]))
        requests.append((context, some_tokens(rng, rng.choice([1, 1, 2, 20, 160]))))
    for context, answer in requests[:]:             # the same, longer, and with another ending
        for n in (0, 1, 5):
            if len(answer) < 30:
                requests.append((context, answer + some_tokens(rng, n)))
    requests += [(context, answer[:1]) for context, answer in requests[:8]]
    expected = [naive(exact, *request) for request in requests]
    for batch_tokens in (1, 200, 700, 10**6):
        ours = kobest.loglikelihoods(llama, requests, batch_tokens)
        np.testing.assert_allclose(ours, expected, rtol=2e-6, atol=2e-4)


def spy_on_batches(monkeypatch) -> list[list[tuple[int, ...]]]:
    """A list to which the inputs of every batch are added."""
    batches = []
    add_batch = kobest.add_batch

    def spy(llama, batch, answers, totals):
        batches.append(batch)
        add_batch(llama, batch, answers, totals)

    monkeypatch.setattr(kobest, "add_batch", spy)
    return batches


@pytest.mark.parametrize("budget", [1, 150, 10**6])
def test_batches_keep_their_budget_and_run_every_input_once(world, monkeypatch, budget):
    """Longest first; long inputs are truncated on the left; the last token is not an input."""
    llama = model.load(world / "model")
    limit = llama.config.max_position_embeddings
    rng = random.Random()
    requests = []
    for _ in range(30):
        context = [1, *some_tokens(rng, rng.randrange(0, limit + 10))]
        for _ in range(rng.choice([1, 2, 4])):
            requests.append((context, some_tokens(rng, rng.randrange(1, 6))))
    batches = spy_on_batches(monkeypatch)
    kobest.loglikelihoods(llama, requests, budget)
    for batch in batches:
        assert len(batch) == 1 or len(batch) * len(batch[0]) <= budget
    inputs = [row for batch in batches for row in batch]
    assert [len(row) for row in inputs] == sorted(map(len, inputs), reverse=True)
    assert len(inputs) == len(set(inputs))
    assert set(inputs) == {tuple((c + answer)[-limit - 1:-1]) for c, answer in requests}


def test_answers_of_one_token_share_a_row(world, monkeypatch):
    llama = model.load(world / "model")
    batches = spy_on_batches(monkeypatch)
    kobest.loglikelihoods(llama, [([1, 5], [7]), ([1, 5], [8]), ([1, 5], [8, 9])], 100)
    assert batches == [[(1, 5, 8), (1, 5)]]


# ------------------------------------------------------------------------------------- metrics


def examples(labels, choices=("가", "나")):
    return [kobest.Example(i, "", list(choices), label) for i, label in enumerate(labels, 1)]


def test_macro_f1_by_hand():
    approx = pytest.approx
    assert kobest.macro_f1([0, 0, 1, 1], [0, 0, 0, 0]) == approx(1 / 3)     # a constant answer
    assert kobest.macro_f1([1, 1], [1, 1]) == 1                             # one class only
    assert kobest.macro_f1([0, 1], [1, 0]) == 0                             # none right
    assert kobest.macro_f1([0, 0], [0, 1]) == approx(1 / 3)     # a class that is only predicted
    assert kobest.macro_f1([0, 1, 2, 3], [0, 0, 0, 0]) == approx(0.1)
    assert kobest.macro_f1([0, 0, 1], [0, 1, 1]) == approx(2 / 3)


def test_macro_f1_equals_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = random.Random()
    for classes in (1, 2, 4):
        for n in (1, 2, 5, 5, 40):
            labels = [rng.randrange(classes) for _ in range(n)]
            predictions = [rng.randrange(classes) for _ in range(n)]
            for guess in (predictions, labels, [0] * n, [classes] * n):
                theirs = sklearn.f1_score(labels, guess, average="macro", zero_division=0)
                assert kobest.macro_f1(labels, guess) == pytest.approx(theirs)


def test_accuracy_its_error_and_its_interval():
    labels = [0, 1, 1, 0, 1]
    scores = [[-1.0, -2.0], [-3.0, -3.0], [-9.0, -1.0], [-2.0, -1.0], [-2.0, -1.0]]
    result = kobest.metrics(examples(labels), scores, by_length=False)
    # The first of equal scores.
    assert [e["prediction"] for e in result["examples"]] == [0, 0, 1, 1, 1]
    assert result["acc"] == pytest.approx(0.6) and "acc_norm" not in result
    assert result["acc_stderr"] == pytest.approx(statistics.stdev([1, 0, 1, 0, 1]) / 5**0.5)
    one = kobest.metrics(examples([0]), [[0.0, -1.0]], by_length=False)
    assert one["acc_stderr"] is None
    assert kobest.wilson(0.5, 100) == pytest.approx([0.4038315, 0.5961685], abs=1e-6)
    assert kobest.wilson(0, 10) == pytest.approx([0, 0.2775328], abs=1e-6)


def test_chance_and_the_commonest_answer():
    scores = [[0.0, -1.0]] * 5
    result = kobest.metrics(examples([0, 1, 1, 0, 1]), scores, by_length=False)
    assert (result["chance"], result["majority"]) == (0.5, 0.6)
    four = examples([3, 3, 2], choices=["가", "나", "다", "라"])
    result = kobest.metrics(four, [[0.0, -1.0, -1.0, -1.0]] * 3, by_length=False)
    assert (result["chance"], result["majority"]) == (0.25, pytest.approx(2 / 3))


def test_acc_norm_divides_by_characters():
    rows = examples([1, 0], choices=["가", "가나다라"])
    scores = [[-2.0, -4.0], [-1.0, -8.0]]           # per character: -2, -1; -1, -2
    result = kobest.metrics(rows, scores, by_length=True)
    assert result["acc"] == 0.5 and result["acc_norm"] == 1.0


# ------------------------------------------------------------------------ beside the harness


def harness_scores(world: Path, name: str, folder: Path, shots: int):
    """Log-likelihoods and metrics of lm-evaluation-harness, with its own task file over our
    rows."""
    pytest.importorskip("lm_eval")
    huggingface = pytest.importorskip("lm_eval.models.huggingface")  # needs accelerate
    import datasets
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml
    if name in ("boolq", "wic"):
        label = {"true": 1, "false": 0}
    elif name == "copa":
        label = {"1": 0, "2": 1}
    else:
        label = {str(i): i for i in range(4)}
    columns = [kobest.TASKS[name].columns[field] for field in FIELDS[name]]

    def docs(split):
        header, *rows = read_table(tsv(world, name, split))
        documents = []
        for row in rows:
            document = {"label": label[row[-1].lower()]}
            for field, column in zip(FIELDS[name], columns, strict=True):
                document[field] = row[header.index(column)]
            documents.append(document)
        return datasets.Dataset.from_list(documents)

    splits = datasets.DatasetDict(train=docs("train"), validation=docs("dev"), test=docs("dev"))
    tasks = Path(inspect.getfile(load_yaml)).parent
    config = load_yaml(tasks / "kobest" / f"kobest_{name}.yaml")
    del config["dataset_path"], config["dataset_name"]
    task = ConfigurableTask(config={**config, "custom_dataset": lambda **_: splits})
    task.set_config(key="num_fewshot", value=shots)
    task.set_fewshot_seed(1234)                  # the harness's default
    task.build_all_requests()
    lm = huggingface.HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=7)
    scores = iter(lm.loglikelihood(task.instances, disable_tqdm=True))
    results = [[next(scores) for i in task.instances if i.doc_id == d] for d in range(30)]
    metrics = []
    for doc, result in zip(task.test_docs(), results, strict=True):
        metrics.append(task.process_results(doc, result))
    means = {key: task.aggregation()[key]([m[key] for m in metrics]) for key in metrics[0]}
    return [[value for value, _ in result] for result in results], means, task.VERSION


@pytest.mark.parametrize("name", kobest.KOBEST)
@pytest.mark.parametrize("positions, shots", [
    (160, 0), (60, 0), (2000, 3), (160, 3)])        # 60, and 160 with shots: truncated
def test_scores_equal_the_harness_s(world, tmp_path, name, positions, shots):
    copy_files(world / "model", tmp_path)
    config = cli.read_json(tmp_path / "config.json")
    cli.write_json(tmp_path / "config.json", {**config, "max_position_embeddings": positions})
    theirs, means, version = harness_scores(world, name, tmp_path, shots)
    kobest.main(["--model", str(tmp_path), "--data", str(world), "--split", "dev", "--tasks", name,
                 "--device", "cpu", "--batch_tokens", "500", "--shots", str(shots),
                 "--out", str(tmp_path / "out.json")])
    ours = cli.read_json(tmp_path / "out.json")["tasks"][name]
    values = [e["loglikelihoods"] for e in ours["examples"]]
    np.testing.assert_allclose(values, theirs, atol=1e-3)
    assert ours["acc"] == pytest.approx(means["acc"])
    assert ours["macro_f1"] == pytest.approx(means["f1"])
    if name == "hellaswag":
        assert ours["acc_norm"] == pytest.approx(means["acc_norm"])
    else:
        assert "acc_norm" not in ours
    assert ours["version"] == version


def test_requests_that_lose_context_are_counted(world, tmp_path, capsys):
    """Per task, and on the screen only if there are any; the control loses none."""
    copy_files(world / "model", tmp_path)
    config = cli.read_json(tmp_path / "config.json")
    cli.write_json(tmp_path / "config.json", {**config, "max_position_embeddings": 60})
    argv = ["--model", str(tmp_path), "--data", str(world), "--split", "dev", "--device", "cpu",
            "--tasks", "boolq", "copa", "--limit", "8", "--out", str(tmp_path / "out.json")]
    kobest.main(argv)
    screen = capsys.readouterr().out
    tasks = cli.read_json(tmp_path / "out.json")["tasks"]
    tokens = kobest.encoder(tokenizer.load(world / "base.model"), tmp_path)
    for name in ("boolq", "copa"):
        cut = []
        for example in kobest.read(world, name, "dev", 8):
            requests = kobest.encode(tokens, example)
            cut += [context for context, answer in requests if len(context + answer) > 61]
        assert tasks[name]["truncated"] == len(cut)
        assert (f" {len(cut)} of 16 requests are longer than" in screen) == bool(cut)
    assert 0 < tasks["boolq"]["truncated"] < 16

    kobest.main([*argv, "--answer_only"])
    tasks = cli.read_json(tmp_path / "out.json")["tasks"]
    assert [task["truncated"] for task in tasks.values()] == [0, 0]
    assert "requests are longer" not in capsys.readouterr().out


def test_shots_as_one_generator_draws_them():
    """Two examples, three in the pool: the second draw continues where the first one ended."""
    pool = [kobest.Example(i, f"글{i} 답: ", ["가", "나"], i % 2) for i in range(3)]
    solved = ["글0 답:  가\n\n", "글1 답:  나\n\n", "글2 답:  가\n\n"]
    rng = random.Random(1234)
    expected = ["".join(rng.sample(solved, 2)) + "글" for _ in range(2)]
    shot = kobest.add_shots([kobest.Example(1, "글", ["가", "나"], 0)] * 2, pool, 2)
    assert [e.context for e in shot] == expected


# --------------------------------------------------------------------------------- the program


def command(world: Path, data: Path, *more: str) -> list[str]:
    return ["--model", str(world / "model"), "--data", str(data), "--split", "dev",
            "--device", "cpu", *more]


def test_the_report_holds_every_example_and_the_means(world, tmp_path, capsys):
    kobest.main(command(world, world, "--out", str(tmp_path / "all.json")))
    report = cli.read_json(tmp_path / "all.json")
    printed = capsys.readouterr().out
    tasks = report["tasks"]
    assert list(tasks) == kobest.KOBEST
    assert [e["id"] for e in tasks["copa"]["examples"]] == list(range(1, 31))
    for name, task in tasks.items():
        assert len(task["examples"]) == 30
        assert task["acc"] == np.mean([e["label"] == e["prediction"] for e in task["examples"]])
        assert all(e["prediction"] == np.argmax(e["loglikelihoods"]) for e in task["examples"])
        low, high = task["ci95"]
        [line] = [line for line in printed.splitlines() if line.startswith(name)]
        assert f"acc {task['acc']:.4f} [{low:.4f}, {high:.4f}]" in line
        chance = 0.25 if name == "hellaswag" else 0.5
        assert f"(chance {chance:.4f}, majority {task['majority']:.4f})" in line
    mean_f1 = np.mean([task["macro_f1"] for task in tasks.values()])
    assert report["mean_macro_f1"] == pytest.approx(mean_f1)

    # Thirty rows of BoolQ, and four of COPA that are all answered correctly.
    write(tmp_path, "boolq", read_table(tsv(world, "boolq", "dev"))[1:])
    right = [e["prediction"] + 1 for e in tasks["copa"]["examples"]]
    rows = read_table(tsv(world, "copa", "dev"))[1:5]
    write(tmp_path, "copa", [[*cells[:-1], right[i]] for i, cells in enumerate(rows)])
    kobest.main(command(world, tmp_path, "--tasks", "boolq", "copa",
                        "--out", str(tmp_path / "two.json")))
    two = cli.read_json(tmp_path / "two.json")
    acc = tasks["boolq"]["acc"]
    assert two["mean_acc"] == pytest.approx((acc + 1) / 2)
    assert two["weighted_acc"] == pytest.approx((30 * acc + 4) / 34)
    full = [e["loglikelihoods"] for e in tasks["copa"]["examples"][:4]]
    again = [e["loglikelihoods"] for e in two["tasks"]["copa"]["examples"]]
    np.testing.assert_allclose(again, full, rtol=1e-4)


def test_answer_only_sees_no_context(world, tmp_path):
    kobest.main(command(world, world, "--tasks", "sentineg", "hellaswag", "--answer_only",
                        "--out", str(tmp_path / "out.json")))
    tasks = cli.read_json(tmp_path / "out.json")["tasks"]
    assert len({tuple(e["loglikelihoods"]) for e in tasks["sentineg"]["examples"]}) == 1
    sp = tokenizer.load(world / "model")
    llama = model.load(world / "model")
    row = kobest.read(world, "hellaswag", "dev")[0]
    spaces = " " * (len(row.context) - len(row.context.rstrip()) + 1)
    before = len(sp.encode("가", bos=False))
    expected = []
    for choice in row.choices:
        answer = sp.encode("가" + spaces + choice, bos=False)[before:]
        expected.append(naive(llama, [1], answer))
    ours = tasks["hellaswag"]["examples"][0]["loglikelihoods"]
    np.testing.assert_allclose(ours, expected, rtol=1e-4)


def test_two_processes_find_what_one_finds(world, tmp_path):
    argv = command(world, world, "--shots", "1", "--batch_tokens", "300", "--out")
    kobest.main([*argv, str(tmp_path / "one.json")])
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
         kobest.__file__, *argv, str(tmp_path / "two.json")],
        capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    # Only one process prints.
    assert done.stdout.count("settings:") == 1 and done.stdout.count("boolq  ") == 1
    one = cli.read_json(tmp_path / "one.json")
    two = cli.read_json(tmp_path / "two.json")
    assert one["tasks"] == two["tasks"]                                     # to the last bit
    assert one["mean_acc"] == two["mean_acc"]


def test_mcnemar_by_hand():
    assert kobest.mcnemar(0, 0) == kobest.mcnemar(3, 3) == 1
    assert kobest.mcnemar(0, 5) == kobest.mcnemar(5, 0) == 2 / 2**5
    assert kobest.mcnemar(1, 5) == 2 * (1 + 6) / 2**6
    assert kobest.mcnemar(2, 3) == 1                                        # 2 · (1 + 5 + 10) / 32


def test_compare_names_what_changed(tmp_path, capsys, refused):
    def file(name, **predictions):
        tasks = {}
        for task, guesses in predictions.items():
            rows = [{"id": i, "label": 1, "loglikelihoods": [], "prediction": p}
                    for i, p in enumerate(guesses, 1)]
            tasks[task] = {"acc": 0.5, "macro_f1": 0.25, "examples": rows}
        cli.write_json(tmp_path / name, {"tasks": tasks})
        return str(tmp_path / name)

    a = file("a", copa=[1, 0, 1, 0, 2], wic=[1])
    b = file("b", copa=[1, 1, 0, 0, 3], boolq=[1])
    kobest.main(["--compare", a, b])
    assert capsys.readouterr().out.splitlines() == [
        "copa       acc 0.5000 → 0.5000   macro-F1 0.2500 → 0.2500   McNemar's p 1",
        "           lost 1: [3]",
        "           gained 1: [2]",
        "           wrong by another answer: [5]",
        "together   lost 1, gained 1, McNemar's p 1",
    ]
    refused(kobest, ["--compare", a, file("c", hellaswag=[1])], "no task in common")
    refused(kobest, ["--compare", a, file("d", copa=[1])], "different examples of copa")
    refused(kobest, ["--compare", a, str(tmp_path / "none")], "cannot read")
    (tmp_path / "list").write_text("[]")
    refused(kobest, ["--compare", str(tmp_path / "list"), a], "did --out write both?")


# ------------------------------------------------------------------------------- what is refused


def test_wrong_data_is_named_by_file_and_row(world, tmp_path, refused):
    def bad(part, *more):
        refused(kobest, command(world, tmp_path, *more), part)

    bad(f"no file {tmp_path}/BoolQ/dev.tsv, nor {tmp_path}/boolq/validation.jsonl; "
        "--data takes the folder")
    good = [1, "글", "물음", "True"]
    write(tmp_path, "boolq", [good], "train")
    bad("validation.jsonl; try --split train", "--tasks", "boolq")
    for rows, header, part in (
        ([[1, "글", "True"]], ["ID", "Text", "Answer"],
         "row 1: no column 'Question', only ID, Text, Answer"),
        ([good, [2, "글", "물음", "Maybe"]], None,
         "row 2: 'Answer' is 'Maybe', not one of false, true"),
        ([good, good, [3, "글", " ", "True"]], None, "row 3: column 'Question' is empty"),
        ([good, [2, "글"]], None, "row 2: column 'Question' is empty"),
        ([], None, "has no rows"),
    ):
        file = write(tmp_path, "boolq", rows, "dev", header)
        bad(f"{file}", "--tasks", "boolq")
        bad(part, "--tasks", "boolq")
    file.write_bytes("ID\tText\tQuestion\tAnswer\r\n1\t글\t물음\tTrue".encode("cp949"))
    bad("dev.tsv, row 0: not a UTF-8 table with tabs", "--tasks", "boolq")
    file.write_bytes(b"")
    bad("dev.tsv has no rows", "--tasks", "boolq")
    write(tmp_path, "copa", [[1, "글", "이유", "가", "나", 1]])
    bad("row 1: 'question' is '이유', not one of 원인, 결과", "--tasks", "copa")
    write(tmp_path, "hellaswag", [["글", "가", "나", "다", "라", 4]])
    bad("row 1: 'label' is '4', not one of 0, 1, 2, 3", "--tasks", "hellaswag")


def test_wrong_json_lines_are_named_by_file_and_row(world, tmp_path, refused):
    argv = command(world, tmp_path, "--tasks", "copa")
    good = {"premise": "글", "question": "원인", "alternative_1": "가", "alternative_2": "나",
            "label": 0}
    file = tmp_path / "copa" / "validation.jsonl"
    file.parent.mkdir()
    for changes, part in (
        ({"label": 2}, "'label' is '2', not one of 0, 1"),
        ({"premise": " "}, "'premise' is empty"),
        ({"question": "왜"}, "not one of 원인, 결과"),
        ({"premise": None}, "'premise' is empty"),
    ):
        file.write_text(json.dumps(good) + "\n\n" + json.dumps({**good, **changes}))
        refused(kobest, argv, f"{file}, row 2: ")
        refused(kobest, argv, part)
    for line, part in (
        ('{"label": 0}', "no column 'premise', only label"),
        ("[1]", "one JSON object per line"),
        ('{"', "one JSON object per line"),
    ):
        file.write_text(json.dumps(good) + "\n" + line)
        refused(kobest, argv, f"{file}, row 2: ")
        refused(kobest, argv, part)
    file.write_text("")
    refused(kobest, argv, f"{file} has no rows")


def break_model(root: Path, world: Path, change) -> list[str]:
    """The flag of a copy of the world's model after `change`."""
    (root / "model").mkdir(parents=True)
    copy_files(world / "model", root / "model")
    llama = model.load(root / "model")
    change(llama)
    model.save(llama, root / "model")
    return ["--model", str(root / "model")]


def test_wrong_models(world, tmp_path, refused):
    def make_nan(llama):
        llama.model.norm.weight.data.fill_(float("nan"))

    def shorten(llama):
        llama.config.max_position_embeddings = 2

    def shrink(llama):
        llama.config.vocab_size = 500
        for table in (llama.model.embed_tokens, llama.lm_head):
            table.weight = torch.nn.Parameter(table.weight[:500].clone())

    argv = ["--data", str(world), "--split", "dev", "--device", "cpu", "--tasks", "sentineg"]
    refused(kobest, [*argv, "--model", str(tmp_path)], "tokenizer.model")
    none = str(tmp_path / "none")
    refused(kobest, [*argv, "--model", none], f"no model directory {none}")
    nan = break_model(tmp_path / "nan", world, make_nan)
    refused(kobest, [*argv, *nan], "sentineg, row 1: log-likelihood nan")
    short = break_model(tmp_path / "short", world, shorten)
    refused(kobest, [*argv, *short, "--tasks", "hellaswag"], "the model takes 1 to 2")
    small = break_model(tmp_path / "small", world, shrink)
    refused(kobest, [*argv, *small], "ids up to 799,")
    refused(kobest, [*argv, "--model", str(tmp_path / "small")], f"{tmp_path}/small/model")


def test_wrong_flags(world, tmp_path, refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    argv = ["--data", str(world), "--split", "dev", "--tasks", "sentineg"]
    good = [*argv, "--model", str(world / "model")]
    refused(kobest, [*good, "--tasks", "boolk"], "boolk")
    refused(kobest, [*good, "--limit", "0"], "--limit 0")
    refused(kobest, [*good, "--out", str(tmp_path)], "is a folder")
    refused(kobest, [*good, "--device", "cuda"], "no GPU")
    refused(kobest, [*good, "--anser_only"], "did you mean --answer_only?")
    refused(kobest, [*good, "--shots", "41"], "--shots 41: the train split has 40 examples")
    refused(kobest, [*good, "--shots", "-1"], "--shots -1")
    refused(kobest, [*good, "--shots", "1", "--answer_only"], "choose one")
    refused(kobest, [*good, "--batch_tokens", "0"], "--batch_tokens 0")
    refused(kobest, argv, "required: --model, --data")
    assert not list(tmp_path.iterdir())
