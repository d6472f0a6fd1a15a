"""eval_kobest.py against hand-written prompts, a naive float64 scorer, scikit-learn and lm-evaluation-harness."""
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
    "boolq": ["ID", "Text", "Question", "Answer"], "copa": ["ID", "sentence", "question", "1", "2", "Answer"],
    "hellaswag": ["context", "choice1", "choice2", "choice3", "choice4", "label"], "sentineg": ["ID", "Text", "Label"],
    "wic": ["ID", "Target", "SENTENCE1", "Dictionary 1", "Link 1", "SENTENCE2", "Dictionary 2", "Link2", "ANSWER"]}
FIELDS = {  # the columns of HEADERS as the harness's templates call them
    "boolq": ["paragraph", "question"], "copa": ["premise", "question", "alternative_1", "alternative_2"],
    "hellaswag": ["context", "ending_1", "ending_2", "ending_3", "ending_4"], "sentineg": ["sentence"],
    "wic": ["word", "context_1", "context_2"]}


def write(root: Path, name: str, rows: list[list], split: str = "dev", header: list[str] | None = None) -> Path:
    """A TSV as KoBEST has it: CRLF and no final newline, HellaSwag apart."""
    file = root / "v1.0" / kobest.TASKS[name].folder / f"{split}.tsv"
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w", encoding="utf-8", newline="") as out:
        csv.writer(out, delimiter="\t", lineterminator="\n" if name == "hellaswag" else "\r\n").writerows(
            [header or HEADERS[name], *rows])
    if name != "hellaswag":
        file.write_bytes(file.read_bytes().removesuffix(b"\r\n"))
    return file


def random_row(rng: random.Random, name: str, i: int) -> list:
    text = lambda words: korean(rng, rng.randint(1, words)) + rng.choice(["", "", " ", "  "])
    answer = lambda: rng.choice(["TRUE", "True", "FALSE", "False"])
    return {"boolq": lambda: [i, rng.choice(["", " "]) + text(25), text(5), answer()],
            "copa": lambda: [i, text(6), rng.choice(["원인", "결과", "결과 "]), text(6), text(6), rng.choice("12")],
            "hellaswag": lambda: [*(text(12) for _ in range(5)), rng.choice("0123")],
            "sentineg": lambda: [i, text(8), rng.choice("01")],
            "wic": lambda: [i, korean(rng, 1), text(8), 1, "http://a", text(8), 2, "http://b", answer()]}[name]()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with model/ (random and far from uniform, its own tokenizer) and v1.0/ (30 random rows a task)."""
    root, rng = tmp_path_factory.mktemp("kobest"), random.Random(11)
    (root / "text.txt").write_text("\n".join([*(korean(rng, 30) for _ in range(60)),
                                              *(f"질문: {word} 답변: 문장1: 2:" for word in ("예", "아니오", "긍정"))]))
    tokenizer.main(["train", "--input", str(root / "text.txt"), "--vocab_size", "800", "--text", "all", "--out",
                    str(root / "base.model")])
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


def test_prompts_are_the_harness_s_to_the_blank(tmp_path):
    read = lambda name, split="dev": [
        (e.row, e.context, e.choices, e.label) for e in kobest.read(tmp_path, name, split)]
    write(tmp_path, "boolq", [[1, '그는 "네"라고 했다. ', "물음?", "TRUE"], [2, "글", "물음", "False"]])
    assert read("boolq") == [(1, '그는 "네"라고 했다.  질문: 물음? 답변: ', ["아니오", "예"], 1),
                             (2, "글 질문: 물음 답변: ", ["아니오", "예"], 0)]
    write(tmp_path, "copa", [[1, "비가 왔다.", "원인 ", "가", "나", 1], [2, "{눈}이 왔다.", "결과", "다 ", "라", 2]])
    assert read("copa") == [(1, "비가 왔다.  왜냐하면", ["가", "나"], 0), (2, "{눈}이 왔다.  그래서", ["다 ", "라"], 1)]
    write(tmp_path, "hellaswag", [["일이 있다.", "가", "나", "다", "라", 3]])
    assert read("hellaswag") == [(1, "문장: 일이 있다.", ["가", "나", "다", "라"], 3)]
    write(tmp_path, "sentineg", [[1, "좋다", 1]], "train")
    write(tmp_path, "sentineg", [[1, 0, "좋지 않다", "좋다"]], "dev", ["ID", "Label", "Text", "Text_origin"])
    assert read("sentineg", "train") == [(1, "문장: 좋다 긍부정:", ["부정", "긍정"], 1)]
    assert read("sentineg") == [(1, "문장: 좋지 않다 긍부정:", ["부정", "긍정"], 0)]
    write(tmp_path, "wic", [[1, "배", "[배]를 탔다.", 1, "a", "[배]를 먹었다.", 2, "b", "FALSE"]])
    assert read("wic") == [(1, "문장1: [배]를 탔다. 문장2: [배]를 먹었다. 두 문장에서 배가 같은 뜻으로 쓰였나?",
                            ["아니오", "예"], 0)]


def test_reads_the_bytes_of_the_original_files(tmp_path):
    """A byte order mark, quotes that csv strips, a tab and a line's end inside quotes, an empty line, either folder."""
    file = tmp_path / "v1.0" / "BoolQ" / "test.tsv"
    file.parent.mkdir(parents=True)
    file.write_bytes(('\ufeffText\tQuestion\tAnswer\r\n"그는 ""네""\t했\r\n다"\t왜?\tTrue\r\n\r\n'
                      '그"는"\t왜\tFALSE').encode())
    for data in (tmp_path, tmp_path / "v1.0"):
        assert [(e.row, e.context, e.label) for e in kobest.read(data, "boolq", "test")] == [
            (1, '그는 "네"\t했\r\n다 질문: 왜? 답변: ', 1), (2, '그"는" 질문: 왜 답변: ', 0)]
    assert len(kobest.read(tmp_path, "boolq", "test", limit=1)) == 1


def hugging_face(world: Path, out: Path, name: str, split: str, stem: str, task: str | None = None) -> None:
    """A TSV of the world as Hugging Face has it: JSON lines, the harness's names, labels that count from 0."""
    columns = dict(pair.split("=") for pair in kobest.TASKS[task or name].columns.split())
    with open(world / "v1.0" / kobest.TASKS[name].folder / f"{split}.tsv", encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file, delimiter="\t")
    (out / name).mkdir(exist_ok=True)
    with open(out / name / f"{stem}.jsonl", "w", encoding="utf-8") as lines:
        for row in rows:
            doc = {field: row[header.index(column)] for field, column in columns.items()}
            label = doc["label"].lower()
            doc["label"] = label == "true" if label in ("true", "false") else int(label) - (name == "copa")
            doc["label"] = int(doc["label"])
            lines.write(json.dumps(doc, ensure_ascii=False) + "\n")


@pytest.mark.parametrize("name", kobest.KOBEST)
def test_json_lines_hold_the_same_examples(world, tmp_path, name):
    hugging_face(world, tmp_path, name, "dev", "validation")
    assert kobest.read(tmp_path, name, "dev") == kobest.read(world, name, "dev")


def test_sentineg_s_originals(tmp_path):
    # "not bad" was "bad", "not good" was "good"
    rows = [[1, 1, "나쁘지 않다", "나쁘다", 0, "부정"], [2, 0, "좋지 않다", "좋다", 1, "부정"]]
    write(tmp_path, "sentineg", rows, "test", ["ID", "Label", "Text", "Text_origin", "Label_origin", "Category_neg"])
    hugging_face(tmp_path, tmp_path, "sentineg", "test", "test")
    hugging_face(tmp_path, tmp_path, "sentineg", "test", "test_originated", "sentineg_originated")
    for _ in ("TSV", "JSON lines"):
        read = lambda name: [(e.context, e.label) for e in kobest.read(tmp_path, name, "test")]
        assert read("sentineg") == [("문장: 나쁘지 않다 긍부정:", 1), ("문장: 좋지 않다 긍부정:", 0)]
        assert read("sentineg_originated") == [("문장: 나쁘다 긍부정:", 0), ("문장: 좋다 긍부정:", 1)]
        (tmp_path / "v1.0" / "SentiNeg" / "test.tsv").unlink(missing_ok=True)


def test_blanks_at_the_end_of_a_context_move_to_the_answer(world):
    sp = tokenizer.load(world / "model")
    for context, choice, blanks in (("답변: ", "예", "  "), ("답변:", "예", " "), ("나는 ", " 예 ", "   ")):
        ours = kobest.encode(kobest.encoder(sp, world / "model"), kobest.Example(1, context, [choice], 0))
        assert ours == [([1, *sp.encode(context.strip())],
                         sp.encode(context.strip() + blanks + choice.lstrip())[len(sp.encode(context.strip())):])]
        assert sp.id_to_piece(ours[0][1][0]).startswith("▁") and sp.decode(ours[0][0]) == context.strip()


@pytest.mark.parametrize("said, bos", [({"add_bos_token": True}, [1]), ({"add_bos_token": False}, []), ({}, [1])])
def test_bos_as_the_tokenizer_s_configuration_says(world, tmp_path, said, bos):
    sp = tokenizer.load(world / "model")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    assert kobest.encoder(sp, tmp_path)("예") == bos + sp.encode("예")
    (tmp_path / "tokenizer_config.json").unlink()
    assert kobest.encoder(sp, tmp_path)("예") == [1, *sp.encode("예")]


@pytest.mark.parametrize("class_name", ["LlamaTokenizer", "PreTrainedTokenizerFast"])
def test_tokens_equal_transformers(world, tmp_path, class_name):
    transformers = pytest.importorskip("transformers")
    for file in (world / "model").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    said = cli.read_json(tmp_path / "tokenizer_config.json")
    cli.write_json(tmp_path / "tokenizer_config.json", {**said, "tokenizer_class": class_name})
    peer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = kobest.encoder(tokenizer.load(tmp_path), tmp_path)
    for text in ("예", " 예", "  예 아니오", "가  나 ", "질문: 12", *(korean(random.Random(i), 5) for i in range(5))):
        assert ours(text) == peer.encode(text), text


def naive(llama: model.Llama, context: list[int], continuation: list[int]) -> float:
    """One request by the definition, in float64: cut on the left, run, add up."""
    tokens = (context + continuation)[-(llama.config.max_position_embeddings + 1):]
    with torch.inference_mode():
        logp = torch.log_softmax(llama(torch.tensor([tokens[:-1]]))[0], -1)
    return sum(logp[-i, tokens[-i]].item() for i in range(1, len(continuation) + 1))


def test_loglikelihoods_equal_a_naive_float64_scorer(world):
    """Truncated requests, shared inputs and one-token answers among them; whatever the batch."""
    llama, rng = model.load(world / "model"), random.Random()
    exact = copy.deepcopy(llama).double()
    exact.compute_dtype = torch.float64
    tokens = lambda n: [rng.randrange(1, 800) for _ in range(n)]
    requests = [(tokens(rng.choice([1, 9, 30, 150, 300])), tokens(rng.choice([1, 1, 2, 20, 160]))) for _ in range(12)]
    requests += [(c, a + tokens(n)) for c, a in requests for n in (0, 1, 5) if len(a) < 30]
    requests += [(c, a[:1]) for c, a in requests[:8]]
    expected = [naive(exact, *request) for request in requests]
    for batch_tokens in (1, 200, 700, 10**6):
        ours = kobest.loglikelihoods(llama, requests, batch_tokens)
        np.testing.assert_allclose(ours, expected, rtol=2e-6, atol=2e-4)


def test_a_plan_runs_each_context_once():
    """Every request is answered by the very tokens it sees; contexts that branch are run once, whatever the budget."""
    rng, limit = random.Random(), 60
    tokens = lambda n: [rng.randrange(1, 9) for _ in range(n)]
    contexts = [[1, *tokens(rng.randrange(0, 70))] for _ in range(30)]
    requests = [(c, tokens(rng.randrange(1, 6))) for c in contexts for _ in range(rng.choice([1, 2, 4]))]
    for budget in (1, 150, 10**6):
        answered = []
        for prefixes, rows in kobest.plan(requests, limit, budget):
            assert len({len(prefix) for prefix in prefixes}) == 1
            width = len(prefixes[0]) or max(len(row) for row, *_ in rows)
            assert len(prefixes) == 1 or len(prefixes) * width <= budget
            for row, first, members, context in rows:
                seen = prefixes[context] + row
                answered += members
                for i in members:
                    expected = (requests[i][0] + requests[i][1])[-(limit + 1):-1]
                    assert seen[:len(expected)] == expected
                    assert len(prefixes[context]) + first + len(requests[i][1]) == len(expected)
        assert sorted(answered) == list(range(len(requests)))
    context, answers = tokens(50), [[2, 3, 4], [2, 3, 5, 6], [3], [7, 2], [7, 4]]
    for budget in (1, 10**6):
        [(prefixes, rows)] = kobest.plan([(context, a) for a in answers], limit, budget)
        assert prefixes == [context[:-1]]
        assert rows == [([context[-1], 7], 0, [4, 3], 0), ([context[-1], 2, 3, 5], 0, [1, 0, 2], 0)]
    assert [(p, len(rows)) for p, rows in kobest.plan([(context, [1]), (context, [2])], limit, 1)] == [([[]], 1)]


def examples(labels, choices=("가", "나")):
    return [kobest.Example(i, "", list(choices), label) for i, label in enumerate(labels, 1)]


def test_macro_f1_by_hand():
    assert kobest.macro_f1([0, 0, 1, 1], [0, 0, 0, 0]) == pytest.approx(1 / 3)      # a constant answer
    assert kobest.macro_f1([1, 1], [1, 1]) == 1                                     # one class only
    assert kobest.macro_f1([0, 1], [1, 0]) == 0                                     # none right
    assert kobest.macro_f1([0, 0], [0, 1]) == pytest.approx(1 / 3)                  # a class that is only predicted
    assert kobest.macro_f1([0, 1, 2, 3], [0, 0, 0, 0]) == pytest.approx(0.1)
    assert kobest.macro_f1([0, 0, 1], [0, 1, 1]) == pytest.approx(2 / 3)


def test_macro_f1_equals_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = random.Random()
    for classes in (1, 2, 4):
        for n in (1, 2, 5, 5, 40):
            labels, predictions = ([rng.randrange(classes) for _ in range(n)] for _ in range(2))
            for guess in (predictions, labels, [0] * n, [classes] * n):
                theirs = sklearn.f1_score(labels, guess, average="macro", zero_division=0)
                assert kobest.macro_f1(labels, guess) == pytest.approx(theirs)


def test_accuracy_its_error_and_its_interval():
    labels, scores = [0, 1, 1, 0, 1], [[-1.0, -2.0], [-3.0, -3.0], [-9.0, -1.0], [-2.0, -1.0], [-2.0, -1.0]]
    result = kobest.metrics(examples(labels), scores, by_length=False)
    assert [e["prediction"] for e in result["examples"]] == [0, 0, 1, 1, 1]         # of equal scores the first
    assert result["acc"] == pytest.approx(0.6) and "acc_norm" not in result
    assert result["acc_stderr"] == pytest.approx(statistics.stdev([1, 0, 1, 0, 1]) / 5**0.5)
    assert kobest.metrics(examples([0]), [[0.0, -1.0]], by_length=False)["acc_stderr"] is None
    assert kobest.wilson(0.5, 100) == pytest.approx([0.4038315, 0.5961685], abs=1e-6)
    assert kobest.wilson(0, 10) == pytest.approx([0, 0.2775328], abs=1e-6)


def test_acc_norm_divides_by_characters():
    rows = examples([1, 0], choices=["가", "가나다라"])
    result = kobest.metrics(rows, [[-2.0, -4.0], [-1.0, -8.0]], by_length=True)     # a character: -2, -1; -1, -2
    assert result["acc"] == 0.5 and result["acc_norm"] == 1.0


def harness_scores(world: Path, name: str, folder: Path, shots: int):
    """Log-likelihoods and metrics of lm-evaluation-harness, its own task file over our rows."""
    pytest.importorskip("lm_eval")
    huggingface = pytest.importorskip("lm_eval.models.huggingface")  # needs accelerate
    import datasets
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml
    label = {"true": 1, "false": 0} if name in ("boolq", "wic") else {str(i): i - (name == "copa") for i in range(5)}
    columns = [pair.partition("=")[2] for pair in kobest.TASKS[name].columns.split()][:-1]

    def docs(split):
        with open(world / "v1.0" / kobest.TASKS[name].folder / f"{split}.tsv", encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file, delimiter="\t")
        return datasets.Dataset.from_list([
            {**{f: row[header.index(c)] for f, c in zip(FIELDS[name], columns, strict=True)},
             "label": label[row[-1].lower()]} for row in rows])

    splits = datasets.DatasetDict(train=docs("train"), validation=docs("dev"), test=docs("dev"))
    config = load_yaml(Path(inspect.getfile(load_yaml)).parent / "kobest" / f"kobest_{name}.yaml")
    del config["dataset_path"], config["dataset_name"]
    task = ConfigurableTask(config={**config, "custom_dataset": lambda **_: splits})
    task.set_config(key="num_fewshot", value=shots)
    task.set_fewshot_seed(1234)                  # the harness's default
    task.build_all_requests()
    lm = huggingface.HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=7)
    scores = iter(lm.loglikelihood(task.instances, disable_tqdm=True))
    results = [[next(scores) for i in task.instances if i.doc_id == d] for d in range(30)]
    metrics = [task.process_results(doc, result) for doc, result in zip(task.test_docs(), results, strict=True)]
    means = {key: task.aggregation()[key]([m[key] for m in metrics]) for key in metrics[0]}
    return [[value for value, _ in result] for result in results], means, task.VERSION


@pytest.mark.parametrize("name", kobest.KOBEST)
@pytest.mark.parametrize("positions, shots", [(160, 0), (60, 0), (2000, 3), (160, 3)])  # 60, 160 with shots: truncated
def test_scores_equal_the_harness_s(world, tmp_path, name, positions, shots):
    for file in (world / "model").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = cli.read_json(tmp_path / "config.json")
    cli.write_json(tmp_path / "config.json", {**config, "max_position_embeddings": positions})
    theirs, means, version = harness_scores(world, name, tmp_path, shots)
    kobest.main(["--model", str(tmp_path), "--data", str(world), "--split", "dev", "--tasks", name, "--device", "cpu",
                 "--batch_tokens", "500", "--shots", str(shots), "--out", str(tmp_path / "out.json")])
    ours = cli.read_json(tmp_path / "out.json")["tasks"][name]
    np.testing.assert_allclose([e["loglikelihoods"] for e in ours["examples"]], theirs, atol=1e-3)
    assert ours["acc"] == pytest.approx(means["acc"]) and ours["macro_f1"] == pytest.approx(means["f1"])
    assert ours.get("acc_norm") == pytest.approx(means["acc_norm"]) if name == "hellaswag" else "acc_norm" not in ours
    assert ours["version"] == version


def test_shots_as_one_generator_draws_them():
    """Two examples, three in the pool: the second draw goes on where the first one ended."""
    pool = [kobest.Example(i, f"글{i} 답: ", ["가", "나"], i % 2) for i in range(3)]
    rng, text = random.Random(1234), lambda i: f"글{i} 답:  {'가나'[i % 2]}\n\n"
    expected = ["".join(map(text, rng.sample(range(3), 2))) + "글" for _ in range(2)]
    shot = kobest.add_shots([kobest.Example(1, "글", ["가", "나"], 0)] * 2, pool, 2)
    assert [e.context for e in shot] == expected


def test_the_report_holds_every_example_and_the_means(world, tmp_path, capsys):
    argv = ["--model", str(world / "model"), "--data", str(world), "--split", "dev", "--device", "cpu"]
    kobest.main([*argv, "--out", str(tmp_path / "all.json")])
    report, printed = cli.read_json(tmp_path / "all.json"), capsys.readouterr().out
    tasks = report["tasks"]
    assert list(tasks) == kobest.KOBEST and all(len(task["examples"]) == 30 for task in tasks.values())
    assert [e["id"] for e in tasks["copa"]["examples"]] == list(range(1, 31))
    for name, task in tasks.items():
        assert task["acc"] == np.mean([e["label"] == e["prediction"] for e in task["examples"]])
        assert all(e["prediction"] == np.argmax(e["loglikelihoods"]) for e in task["examples"])
        assert f"acc {task['acc']:.4f} [{task['ci95'][0]:.4f}, {task['ci95'][1]:.4f}]" in printed and name in printed
    assert report["mean_macro_f1"] == pytest.approx(np.mean([task["macro_f1"] for task in tasks.values()]))
    for name, rows in (("boolq", 31), ("copa", 5)):
        with open(world / "v1.0" / kobest.TASKS[name].folder / "dev.tsv", encoding="utf-8", newline="") as file:
            table = list(csv.reader(file, delimiter="\t"))[1:rows]
        right = [e["prediction"] + 1 for e in tasks["copa"]["examples"]]            # four rows, all answered rightly
        write(tmp_path, name, [[*cells[:-1], right[i]] if name == "copa" else cells for i, cells in enumerate(table)])
    argv[3] = str(tmp_path)
    kobest.main([*argv, "--tasks", "boolq", "copa", "--out", str(tmp_path / "two.json")])
    two, a = cli.read_json(tmp_path / "two.json"), tasks["boolq"]["acc"]
    assert two["mean_acc"] == pytest.approx((a + 1) / 2) and two["weighted_acc"] == pytest.approx((30 * a + 4) / 34)
    full = [e["loglikelihoods"] for e in tasks["copa"]["examples"][:4]]
    np.testing.assert_allclose([e["loglikelihoods"] for e in two["tasks"]["copa"]["examples"]], full, rtol=1e-4)


def test_answer_only_sees_no_context(world, tmp_path):
    argv = ["--model", str(world / "model"), "--data", str(world), "--split", "dev", "--tasks", "sentineg", "hellaswag"]
    kobest.main([*argv, "--device", "cpu", "--answer_only", "--out", str(tmp_path / "out.json")])
    tasks = cli.read_json(tmp_path / "out.json")["tasks"]
    assert len({tuple(e["loglikelihoods"]) for e in tasks["sentineg"]["examples"]}) == 1
    sp, llama = tokenizer.load(world / "model"), model.load(world / "model")
    row = kobest.read(world, "hellaswag", "dev")[0]
    blanks = " " * (len(row.context) - len(row.context.rstrip()) + 1)
    expected = [naive(llama, [1], sp.encode("가" + blanks + choice)[len(sp.encode("가")):]) for choice in row.choices]
    np.testing.assert_allclose(tasks["hellaswag"]["examples"][0]["loglikelihoods"], expected, rtol=1e-4)


def test_two_processes_find_what_one_finds(world, tmp_path):
    argv = ["--model", str(world / "model"), "--data", str(world), "--split", "dev", "--device", "cpu", "--shots", "1",
            "--batch_tokens", "300", "--out"]
    kobest.main([*argv, str(tmp_path / "one.json")])
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
                           kobest.__file__, *argv, str(tmp_path / "two.json")],
                          capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("settings:") == 1 and done.stdout.count("boolq  ") == 1            # one rank talks
    one, two = (cli.read_json(tmp_path / file) for file in ("one.json", "two.json"))
    assert one["tasks"] == two["tasks"] and one["mean_acc"] == two["mean_acc"]                  # to the last bit


def test_mcnemar_by_hand():
    assert kobest.mcnemar(0, 0) == kobest.mcnemar(3, 3) == 1
    assert kobest.mcnemar(0, 5) == kobest.mcnemar(5, 0) == 2 / 2**5
    assert kobest.mcnemar(1, 5) == 2 * (1 + 6) / 2**6
    assert kobest.mcnemar(2, 3) == 1                                                # 2 · (1 + 5 + 10) / 32


def test_compare_names_what_changed(tmp_path, capsys, refused):
    def file(name, **predictions):
        tasks = {task: {"acc": 0.5, "macro_f1": 0.25, "examples": [
            {"id": i, "label": 1, "loglikelihoods": [], "prediction": p} for i, p in enumerate(guesses, 1)]}
            for task, guesses in predictions.items()}
        cli.write_json(tmp_path / name, {"tasks": tasks})
        return str(tmp_path / name)

    a, b = file("a", copa=[1, 0, 1, 0, 2], wic=[1]), file("b", copa=[1, 1, 0, 0, 3], boolq=[1])
    kobest.main(["--compare", a, b])
    assert capsys.readouterr().out.splitlines() == [
        "copa       acc 0.5000 → 0.5000   macro-F1 0.2500 → 0.2500   McNemar's p 1", "           lost 1: [3]",
        "           gained 1: [2]", "           wrong both times: [5]", "together   lost 1, gained 1, McNemar's p 1"]
    refused(kobest, ["--compare", a, file("c", hellaswag=[1])], "no task in common")
    refused(kobest, ["--compare", a, file("d", copa=[1])], "different examples of copa")
    refused(kobest, ["--compare", a, str(tmp_path / "none")], "cannot read")
    (tmp_path / "list").write_text("[]")
    refused(kobest, ["--compare", str(tmp_path / "list"), a], "did --out write both?")


def break_model(root: Path, world: Path, change) -> list[str]:
    (root / "model").mkdir()
    for file in (world / "model").iterdir():
        (root / "model" / file.name).write_bytes(file.read_bytes())
    llama = model.load(root / "model")
    change(llama)
    model.save(llama, root / "model")
    return ["--model", str(root / "model")]


def test_wrong_data_is_named_by_file_and_row(world, tmp_path, refused):
    argv = ["--model", str(world / "model"), "--data", str(tmp_path), "--device", "cpu", "--split", "dev"]
    bad = lambda part, *more: refused(kobest, [*argv, *more], part)
    bad(f"no file {tmp_path}/BoolQ/dev.tsv, nor {tmp_path}/boolq/validation.jsonl; --data takes the folder")
    good = [1, "글", "물음", "True"]
    file = write(tmp_path, "boolq", [good], "train")
    bad("validation.jsonl; try --split train", "--tasks", "boolq")
    for rows, header, part in (
            ([[1, "글", "True"]], ["ID", "Text", "Answer"], "row 1: no column 'Question', only ID, Text, Answer"),
            ([good, [2, "글", "물음", "Maybe"]], None, "row 2: 'Answer' is 'Maybe', not one of false, true"),
            ([good, good, [3, "글", " ", "True"]], None, "row 3: column 'Question' is empty"),
            ([good, [2, "글"]], None, "row 2: column 'Question' is empty"),
            ([], None, "has no rows")):
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
    argv = ["--model", str(world / "model"), "--data", str(tmp_path), "--split", "dev", "--tasks", "copa"]
    good = {"premise": "글", "question": "원인", "alternative_1": "가", "alternative_2": "나", "label": 0}
    file = tmp_path / "copa" / "validation.jsonl"
    file.parent.mkdir()
    for changes, part in (({"label": 2}, "'label' is '2', not one of 0, 1"), ({"premise": " "}, "'premise' is empty"),
                          ({"question": "왜"}, "not one of 원인, 결과"), ({"premise": None}, "'premise' is empty")):
        file.write_text(json.dumps(good) + "\n\n" + json.dumps({**good, **changes}))
        refused(kobest, argv, f"{file}, row 2: ")
        refused(kobest, argv, part)
    for line, part in (('{"label": 0}', "no column 'premise', only label"), ("[1]", "a JSON object a line"),
                       ('{"', "a JSON object a line")):
        file.write_text(json.dumps(good) + "\n" + line)
        refused(kobest, argv, f"{file}, row 2: ")
        refused(kobest, argv, part)
    file.write_text("")
    refused(kobest, argv, f"{file} has no rows")


def test_wrong_models_and_flags(world, tmp_path, refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    argv = ["--data", str(world), "--split", "dev", "--tasks", "sentineg"]
    good = ["--model", str(world / "model")]
    refused(kobest, [*argv, "--model", str(tmp_path)], "tokenizer.model")
    refused(kobest, [*argv, *good, "--tasks", "boolk"], "boolk")
    refused(kobest, [*argv, *good, "--limit", "0"], "--limit 0")
    refused(kobest, [*argv, *good, "--out", str(tmp_path)], "is a folder")
    refused(kobest, [*argv, *good, "--device", "cuda"], "no GPU")
    refused(kobest, [*argv, *good, "--anser_only"], "did you mean --answer_only?")
    (tmp_path / "nan").mkdir()
    nan = break_model(tmp_path / "nan", world, lambda llama: llama.model.norm.weight.data.fill_(float("nan")))
    refused(kobest, [*argv, *nan], "sentineg, row 1: log-likelihood nan")
    (tmp_path / "short").mkdir()
    short = break_model(tmp_path / "short", world, lambda llama: setattr(llama.config, "max_position_embeddings", 2))
    refused(kobest, [*argv, *short, "--tasks", "hellaswag"], "the model takes 1…2")

    def shrink(llama):
        llama.config.vocab_size = 500
        for table in (llama.model.embed_tokens, llama.lm_head):
            table.weight = torch.nn.Parameter(table.weight[:500].clone())

    (tmp_path / "small").mkdir()
    refused(kobest, [*argv, *break_model(tmp_path / "small", world, shrink)], "its tokenizer has 800 pieces")
    refused(kobest, [*argv, *good, "--shots", "41"], "--shots 41: the train split has 40 examples")
    refused(kobest, [*argv, *good, "--shots", "-1"], "--shots -1")
    refused(kobest, [*argv, *good, "--shots", "1", "--answer_only"], "choose one")
    refused(kobest, [*argv, *good, "--batch_tokens", "0"], "--batch_tokens 0")
    refused(kobest, argv, "required: --model, --data")
    assert not list(tmp_path.glob("*.json"))
