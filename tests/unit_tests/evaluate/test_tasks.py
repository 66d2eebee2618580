"""Question sets: prompts as the papers write them, answers counted, failures kept."""

from __future__ import annotations

import io
import json
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from langchain_ensemble import ChatEnsemble, ConfigError, EnsembleLLM
from langchain_ensemble.choose.devset import read_dev_set
from langchain_ensemble.choose.stats import clopper_pearson
from langchain_ensemble.errors import EnsembleWarning
from langchain_ensemble.evaluate import Task, evaluate, paper_task
from langchain_ensemble.evaluate.__main__ import main
from langchain_ensemble.evaluate.metrics import METRICS


def write(path: Path, *rows: Any) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


# --- reading ------------------------------------------------------------------------------------


def test_a_line_becomes_a_prompt(tmp_path):
    rows = [
        {"question": "1 {x} \\boxed{2}?", "answer": 3},
        {"question": "Who\u2028?", "answer": ["A", "B"]},
    ]
    task = Task(
        "t", write(tmp_path / "q.jsonl", rows[0], "", rows[1]), "Q: {question}\nA:", examples="{e}"
    )
    first, second = task.questions()
    assert first.prompt == "{e}Q: 1 {x} \\boxed{2}?\nA:"
    assert (first.line, second.line) == (1, 3)
    assert (first.answers, second.answers) == (("3",), ("A", "B"))
    assert [q.line for q in task.questions(1)] == [1]
    dev = read_dev_set(task.dev_set())
    assert [(i.prompt, i.answers, i.metric) for i in dev] == [
        (q.prompt, q.answers, "exact_match") for q in (first, second)
    ]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "no questions"),
        (["{"], "line 1 is no JSON"),
        ([{"question": "a", "answer": "b"}, [1]], "line 2 is no object"),
        ([{"answer": "b"}], "line 1 has no field 'question'; it has answer"),
        ([{"question": "a"}], "line 1: 'answer' is None"),
        ([{"question": "a", "answer": ""}], "line 1: 'answer' is ''"),
        ([{"question": "a", "answer": []}], "line 1"),
        ([{"question": "a", "answer": ["b", None]}], "line 1"),
    ],
)
def test_a_file_that_is_no_question_set(tmp_path, rows, says):
    task = Task("t", write(tmp_path / "q.jsonl", *rows), "{question}")
    with pytest.raises(ConfigError, match=says):
        task.questions()


def test_gold_that_the_metric_cannot_read_is_refused_before_anything_runs(tmp_path):
    file = write(
        tmp_path / "q.jsonl", {"question": "a", "answer": "3"}, {"question": "a", "answer": "x"}
    )
    with pytest.raises(ConfigError, match=r"line 2: gold answer .* holds no number"):
        Task("t", file, "{question}", metric="last_number").questions()


def test_what_else_cannot_be(tmp_path):
    with pytest.raises(ConfigError, match="cannot read"):
        Task("t", tmp_path / "none.jsonl", "x").questions()
    with pytest.raises(ConfigError, match="exact_match"):
        Task("t", tmp_path, "x", metric="exact")
    with pytest.raises(ConfigError, match="limit=0"):
        Task("t", tmp_path, "x").questions(0)
    with pytest.raises(ConfigError, match="gsm8k"):
        paper_task("gsm", tmp_path)
    with pytest.raises(ConfigError, match=r"prompts\.json"):
        paper_task("gsm8k", tmp_path)


def test_the_papers_tasks(shared):
    folder = shared / "eval"
    gsm8k = paper_task("gsm8k", folder)
    first = gsm8k.questions(1)[0]
    assert first.prompt.count("Question: ") == 5
    assert first.prompt.count("\n\n\nQuestion: ") == 4  # as between the examples
    assert first.prompt.endswith("\nLet's think step by step\n")
    assert gsm8k.right("... so the answer is \\boxed{18}.", first)
    assert not gsm8k.right("", first)
    assert (gsm8k.max_tokens, gsm8k.stop) == (512, ("Question:",))

    nq = paper_task("nq", folder)
    first = nq.questions(1)[0]
    assert first.prompt.count("\n\nQuestion: ") == 5
    assert "\n\n\n" not in first.prompt
    assert first.prompt.endswith("\nAnswer:")
    assert nq.right(" 2002", first)

    arc, piqa = paper_task("arc_challenge", folder), paper_task("piqa", folder)
    assert arc.questions(1)[0].prompt.startswith("Answer the question by replying A, B, C or D.\n")
    assert arc.right(" C", arc.questions(1)[0])
    assert [len(t.questions()) for t in (gsm8k, arc, piqa, nq)] == [1319, 1172, 1838, 1600]
    assert len(paper_task("gsm8k", folder, "dev300.jsonl").questions()) == 300
    for task in (gsm8k, arc, piqa, nq):  # gold is right
        asked = task.questions()
        right = [task.right(q.answers[-1], q) for q in asked]
        assert right.count(False) == (22 if task is arc else 0)  # those without choices
    for question in gsm8k.questions():
        value = question.answers[0].rsplit("answer is", 1)[1].replace(",", "")
        assert gsm8k.right(f"So it is {value}.", question)


# --- running --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llm():
    with EnsembleLLM.demo() as demo:
        yield demo


@pytest.fixture
def questions(tmp_path):
    rows = [{"question": f"Once upon a time {n}", "answer": "x"} for n in range(5)]
    return write(tmp_path / "q.jsonl", *rows)


def test_answers_are_the_ensemble_own_and_counted(llm, tmp_path, questions):
    plain = Task("t", questions, "{question}", max_tokens=6, stop=(".",))
    said = [llm.invoke(q.prompt, max_tokens=6, stop=["."]) for q in plain.questions()]
    rows = [
        {"question": q.prompt, "answer": text if n % 2 else "no"}
        for n, (q, text) in enumerate(zip(plain.questions(), said, strict=True))
    ]
    task = Task("t", write(tmp_path / "r.jsonl", *rows), "{question}", max_tokens=6, stop=(".",))
    seen: list[tuple[str, int, int]] = []
    result = evaluate(llm, task, batch=2, on_progress=lambda *done: seen.append(done))
    assert [item.text for item in result.items] == said
    assert [item.right for item in result.items] == [False, True, False, True, False]
    assert result.accuracy == 0.4
    assert result.interval == (0.4, *clopper_pearson(2, 5))
    assert seen == [("t", 2, 5), ("t", 4, 5), ("t", 5, 5)]
    assert result.letters is None
    assert not result.errors
    several = llm.model_copy(update={"n": 2, "temperature": 0.5, "seed": 1})
    assert evaluate(several, task, limit=1).items[0].text == several.invoke(
        rows[0]["question"], max_tokens=6, stop=["."], n=1
    )
    assert len(evaluate(llm, task, limit=3).items) == 3

    result.write(tmp_path / "out.jsonl")
    lines = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["text"] for line in lines] == said


def test_one_question_that_does_not_fit_is_kept_as_an_error(llm, tmp_path):
    rows = [{"question": q, "answer": "x"} for q in ("short", "word " * 5000, "brief")]
    task = Task("t", write(tmp_path / "q.jsonl", *rows), "{question}", max_tokens=2)
    with pytest.warns(EnsembleWarning, match="1 of 3 questions"):
        result = evaluate(llm, task)
    assert [item.error is None for item in result.items] == [True, False, True]
    assert "longer than the context" in str(result.errors[0].error)
    assert result.items[0].text == llm.invoke("short", max_tokens=2)
    assert result.accuracy == 0


def test_what_is_wrong_with_every_question_ends_the_run(llm, questions):
    task = Task("t", questions, "{question}", max_tokens=0)
    with pytest.raises(ConfigError, match="max_tokens"):
        evaluate(llm, task)
    with pytest.raises(ConfigError, match="batch"):
        evaluate(llm, Task("t", questions, "{question}"), batch=0)
    with pytest.raises(ConfigError, match="letters"):
        evaluate(llm, Task("t", questions, "{question}"), letters="likely")  # type: ignore[arg-type]


def test_letters_by_score_take_the_likeliest(llm, tmp_path):
    rows = [{"question": "The fox and the", "answer": "B"}, {"question": "x ", "answer": "A"}]
    file = write(tmp_path / "q.jsonl", *rows)
    task = Task("t", file, "{question}", metric="letter", letters=("A", "B"), max_tokens=1)
    result = evaluate(llm, task, letters="score")
    for item, (lead, prompt) in zip(
        result.items, [(" ", "The fox and the"), (" ", "x")], strict=True
    ):
        a, b = (llm.score(lead + name, prompt).logprob for name in ("A", "B"))
        assert item.text == ("A" if a >= b else "B")
    assert result.letters == "score"
    assert evaluate(llm, task).items[0].text == llm.invoke("The fox and the", max_tokens=1)


def test_a_right_answer_that_is_no_choice_is_said(llm, tmp_path):
    rows = [{"question": "q", "answer": "A"}, {"question": "q", "answer": "3"}]
    file = write(tmp_path / "q.jsonl", *rows)
    task = Task("t", file, "{question}", metric="letter", letters=("A", "B"), max_tokens=1)
    with pytest.warns(EnsembleWarning, match=r"1 of 2 questions is none of A, B \(line 2: '3'\)"):
        assert not evaluate(llm, task, letters="score").items[1].right


def test_a_chat_model_reads_prompts_as_messages(questions):
    task = Task("t", questions, "{question}", max_tokens=4)
    with ChatEnsemble.demo() as chat:
        result = evaluate(chat, task, limit=2, batch=2)
        assert [i.text for i in result.items] == [
            chat.invoke(q.prompt, max_tokens=4).text for q in task.questions(2)
        ]
        letters = Task("t", questions, "{question}", metric="letter", letters=("x", "y"))
        a, b = (chat.score(letters.questions(1)[0].prompt, name).logprob for name in ("x", "y"))
        chosen = evaluate(chat, letters, limit=1, letters="score").items[0].text
        assert chosen == ("x" if a >= b else "y")


def test_the_command_line(llm, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "data"
    (folder / "piqa").mkdir(parents=True)
    write(folder / "piqa/dev.jsonl", *[{"question": f"{n}", "answer": "A"} for n in range(4)])
    write(folder / "prompts.json", {"piqa": {"zero_shot": "{question}\nAnswer:"}})
    llm.to_config(tmp_path / "e.yaml")
    command = ["piqa", "--data", str(folder), "-c", str(tmp_path / "e.yaml"), "--letters", "score"]
    assert main([*command, "--out", str(tmp_path / "out"), "--limit", "3"]) == 0
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert head.startswith("| task | who | right | of | accuracy |")
    names = [row.split("|")[2].strip() for row in rows]
    assert names[:-1] == [*llm.params.names, llm.model_name]
    assert names[-1].startswith("minus ")
    task = paper_task("piqa", folder)
    right = sum(i.right for i in evaluate(llm, task, limit=3, letters="score").items)
    assert rows[-2].split("|")[3:5] == [f" {right} ", " 3 "]
    assert len(list((tmp_path / "out").iterdir())) == 3
    assert main([*command, "--out", str(tmp_path / "e.yaml")]) == 2
    assert "cannot make the folder" in capsys.readouterr().err
    assert main(["piqa", "--data", str(tmp_path), "-c", str(tmp_path / "e.yaml")]) == 2
    assert "prompts.json" in capsys.readouterr().err
    assert main([*command, "--no-members"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    config = llm.to_config()
    config["members"] = {f"my/{name}日": one for name, one in config["members"].items()}
    (tmp_path / "e.yaml").write_text(json.dumps(config), encoding="utf-8")
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")  # as Windows has it
    monkeypatch.setattr(sys, "stdout", narrow)
    assert main([*command, "--out", str(tmp_path / "named"), "--limit", "1"]) == 0
    narrow.flush()
    assert b"my/facts\\u65e5" in narrow.buffer.getvalue()
    made = {path.name for path in (tmp_path / "named").iterdir()}
    assert made == {f"piqa-{who}.jsonl" for who in ("my_facts日", "my_stories日", "ensemble")}


def test_nothing_warns_where_nothing_is_wrong(llm, questions):
    with warnings.catch_warnings():
        warnings.simplefilter("error", EnsembleWarning)
        evaluate(llm, Task("t", questions, "{question}", max_tokens=1))


def test_the_documented_configuration_is_one(tmp_path):
    page = (Path(__file__).parents[3] / "docs/evaluation.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```yaml\n(.*?)^```", page, re.M | re.S)
    (tmp_path / "e.yaml").write_text(block, encoding="utf-8")
    llm = EnsembleLLM.from_config(tmp_path / "e.yaml")
    assert llm.model_name == "unite(qwen2+llama3)"
    assert sorted(re.findall(r"^\| `(\w+)` \| (?=prediction|a gold|the )", page, re.M)) == sorted(
        METRICS
    )
