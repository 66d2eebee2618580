"""The whole path on the two embedded members: small dev sets, every part of the report."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from langchain_ensemble import ChatEnsemble, EnsembleLLM, Member, choose_members
from langchain_ensemble.choose import drawing, page
from langchain_ensemble.choose.asking import Answers
from langchain_ensemble.choose.candidates import measure
from langchain_ensemble.choose.devset import read_dev_set
from langchain_ensemble.choose.report import Choice
from langchain_ensemble.choose.sizes import Size
from langchain_ensemble.choose.tables import tables
from langchain_ensemble.choose.trial import SAMPLED, VOTED, Alone, Trial
from langchain_ensemble.demo import members
from langchain_ensemble.errors import ConfigError, EnsembleWarning, MemberError
from langchain_ensemble.members.memory import HEADROOM
from langchain_ensemble.params import name_members

CAPITALS = {"France": "Paris", "Japan": "Tokyo", "Kenya": "Nairobi", "Norway": "Oslo"}
TAILS = {"Lily went to the park with her": "mom", "The dog wagged his": "tail"}
DEV: list[dict[str, Any]] = [
    *(
        {"prompt": f"Question: What is the capital of {country}?\nAnswer:", "answer": city}
        for country, city in CAPITALS.items()
    ),
    *({"prompt": prompt, "answer": word} for prompt, word in TAILS.items()),
]
SETTINGS: dict[str, Any] = {
    "metric": "contains",
    "max_tokens": 10,
    "stop": ["\n"],
    "fusions": ["unite", {"name": "average", "mean": "arithmetic"}],
}
PROMPTS = [item["prompt"] for item in DEV]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("choose") / "answers.jsonl"


@pytest.fixture(scope="module")
def choice(answers: Path) -> Choice:
    return choose_members(members(), DEV, answers=answers, **SETTINGS)


def test_every_system_answers_as_it_would_alone(choice: Choice) -> None:
    with EnsembleLLM.demo(fusion="unite", max_tokens=10, stop=("\n",)) as llm:
        assert choice.system("unite(facts+stories)").texts == tuple(llm.batch(PROMPTS))
        for name in ("facts", "stories"):
            assert choice.system(name).texts == tuple(llm.solo(name).batch(PROMPTS))
        sampled = llm.solo(choice.system(SAMPLED).members[0])
        drawn = sampled.generate(PROMPTS[:1], temperature=0.7, n=5, seed=0).generations[0]
    first = choice.system(SAMPLED).texts[0]
    assert first in [generation.text for generation in drawn[:2]]  # both members cost as much


def test_the_report_holds_together(choice: Choice) -> None:
    names = [system.name for system in choice.systems]
    assert names[:4] == ["facts", "stories", VOTED, SAMPLED]
    assert names[4:] == ["unite(facts+stories)", "average mean=arithmetic(facts+stories)"]
    assert choice.best == choice.best_in_memory == "facts"
    assert choice.level == pytest.approx(1 - 0.05 / 2)  # two ensembles
    assert set(choice.contests) == {*names} - {"facts"}
    for system in choice.systems:
        judged = [item["answer"].lower() in text.lower()
                  for item, text in zip(DEV, system.texts, strict=True)]  # fmt: skip
        assert [*system.right] == judged
    unite = choice.system("unite(facts+stories)")
    sizes = [choice.system(name).memory for name in ("facts", "stories")]
    assert unite.memory == sum(size or 0 for size in sizes)
    assert unite.fused is not None
    assert 0.5 < unite.fused <= 1
    assert choice.ceilings[0].oracle >= max(choice.system(n).accuracy for n in ("facts", "stories"))
    assert choice.verdict.kind in ("alone", "undecided", "ensemble")
    assert not choice.left_out
    assert not choice.skipped
    assert choice.confidence is None  # six answers teach nothing
    assert {one.name for one in choice.signals} >= {"token probability of facts"}


def test_the_suggestion_is_a_configuration_that_answers_the_same(choice: Choice) -> None:
    assert choice.suggested_class == "EnsembleLLM"
    with EnsembleLLM.from_config(choice.suggestion) as llm:
        assert set(llm.params.names) <= {"facts", "stories"}
        assert llm.invoke(PROMPTS[0]) in {system.texts[0] for system in choice.systems}


def test_json_says_everything(choice: Choice, tmp_path: Path) -> None:
    told = json.loads(choice.to_json(tmp_path / "choice.json"))
    assert json.loads((tmp_path / "choice.json").read_text("utf-8")) == told
    assert told["verdict"]["sentence"] == str(choice)
    row = told["systems"][0]
    assert row["accuracy"]["mean"] == choice.systems[0].accuracy
    assert row["right"] == [*choice.systems[0].right]
    assert json.dumps(told, allow_nan=False)


class Page(HTMLParser):
    """Text of a page, and what it refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href") and v]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href") and v]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_needs_nothing_else(choice: Choice, tmp_path: Path) -> None:
    html = choice.to_html(tmp_path / "choice.html")
    assert (tmp_path / "choice.html").read_text("utf-8") == html
    read = Page()
    read.feed(html)
    assert not read.open
    assert choice.verdict.sentence in read.text
    assert all(link.startswith("#") for link in read.links)
    assert "color-scheme: light dark" in html
    assert html.count("<svg") == 4
    assert "#010203" not in html  # the stand-in became the page's colour
    assert "currentColor" in html
    assert choice.to_html() == html  # the same numbers, the same page
    frame = Page()
    frame.feed(choice._repr_html_())
    assert frame.open == []


def test_the_page_can_be_read_by_keyboard_and_aloud(choice: Choice) -> None:
    html = choice.to_html()
    for scrolls in re.findall(r'<(?:div class="wide"|pre)([^>]*)>', html):
        assert 'tabindex="0"' in scrolls
        assert re.search(r'role="\w+".* aria-label="[^"]+"|aria-label="[^"]+".* role', scrolls)
    assert "<th></th>" not in re.sub(r' scope="\w+"', "", html)
    rows = html.count("<tr>") - html.count("<thead>")
    assert html.count('<th scope="row">') == rows
    assert html.count("<main>") == 1


def test_names_are_text_and_nothing_else(choice: Choice) -> None:
    sly = "<script>alert(1)</script>$\\frac{$--><b>日"
    first, *others = choice.systems
    texts = (sly, *first.texts[1:])
    told = replace(choice, systems=(replace(first, texts=texts), *others), left_out={sly: sly})
    told = replace(told, questions=(sly, *choice.questions[1:]), skipped={"$\\frac{$": sly})
    for html in (told.to_html(), drawing.drawn(lambda a: a.set_title(sly), 2, 2, "#000000")):
        assert "<script" not in html
        assert "<b>" not in html
        assert "&lt;script&gt;" in html


def test_without_matplotlib_there_are_tables(
    choice: Choice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing, "find_spec", lambda name: None)
    html = page.page(choice)
    assert "<svg" not in html
    assert "langchain-ensemble[plots]" in html
    assert html.count("<table") >= 4


def test_texts_are_escaped(choice: Choice) -> None:
    evil = replace(choice.verdict, sentence="<script>alert(1)</script>")
    assert "<script>" not in replace(choice, verdict=evil).to_html()


def test_a_later_run_asks_nothing_again(choice: Choice, answers: Path) -> None:
    before = answers.read_bytes()
    seen: list[tuple[str, int, int]] = []
    again = choose_members(
        members(), DEV, answers=answers, on_progress=lambda *call: seen.append(call), **SETTINGS
    )
    assert answers.read_bytes() == before
    assert seen
    assert all(done == total for _, done, total in seen)
    assert again == choice


def test_weights_that_changed_are_asked_again(tmp_path: Path) -> None:
    folder = tmp_path / "facts"
    folder.mkdir()
    for file in Path(members()["facts"]).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    items = read_dev_set(DEV[:1])
    first = measure(Member(str(folder)), items, 8)
    assert measure(Member(str(folder)), items, 8) == first
    os.utime(folder / "model.safetensors", (1, 1))
    assert measure(Member(str(folder)), items, 8).stamp != first.stamp
    assert first.memory == int((first.weights or 0) * HEADROOM) + first.own
    assert first.own > 0
    stored = load_file(folder / "model.safetensors")
    assert first.parameters == sum(tensor.numel() for tensor in stored.values())
    assert first.weights == 4 * first.parameters  # float32 on the CPU


def test_a_run_that_was_killed_goes_on(choice: Choice, answers: Path, tmp_path: Path) -> None:
    lines = answers.read_text("utf-8").splitlines(keepends=True)
    torn = tmp_path / "torn.jsonl"
    torn.write_text("".join(lines[:3]) + lines[3][:40], encoding="utf-8")
    Answers(torn)
    assert torn.read_text("utf-8") == "".join(lines[:3])
    torn.write_text(lines[0] + lines[1].rstrip("\n"), encoding="utf-8")  # all but its end
    Answers(torn).put("next", [])
    assert len(Answers(torn)._kept) == 2
    torn.write_text(lines[0] + '{"other": 1}\n' + lines[1], encoding="utf-8")
    with pytest.raises(ConfigError, match="line 2 is no answer of an earlier run"):
        Answers(torn)


def test_conversations_go_through_chat_templates(answers: Path) -> None:
    rows = [
        {"messages": [("user", f"What is the capital of {country}?")], "answer": city}
        for country, city in [*CAPITALS.items()][:1]
    ]
    settings = {"metric": "contains", "max_tokens": 8, "fusions": ["unite"], "answers": answers}
    found = choose_members(members(), rows, **settings)
    assert found.suggested_class == "ChatEnsemble"
    with ChatEnsemble.demo(fusion="unite", max_tokens=8) as chat:
        said = tuple(chat.invoke([("user", item["messages"][0][1])]).text for item in rows)
    assert found.system("unite(facts+stories)").texts == said
    assert ChatEnsemble.from_config(found.suggestion).max_tokens == 8
    prompts = [{"prompt": row["messages"][0][1], "answer": row["answer"]} for row in rows]
    same = choose_members(members(), prompts, chat=True, **settings)
    assert same.system("facts").texts == found.system("facts").texts


def test_a_candidate_that_does_not_load_is_told_and_left_out(answers: Path, tmp_path: Path) -> None:
    three = {**members(), "gone": str(tmp_path / "nowhere")}
    with pytest.warns(EnsembleWarning, match="candidate 'gone' is left out: .*does not exist"):
        found = choose_members(three, DEV, answers=answers, **SETTINGS)
    assert "does not exist" in found.left_out["gone"]
    assert "candidate gone was left out" in found.to_html()
    assert found.members == ("facts", "stories")
    with pytest.warns(EnsembleWarning), pytest.raises(MemberError, match="main='gone'"):
        choose_members(three, DEV, answers=answers, main="gone", **SETTINGS)


def test_memory_leaves_out_and_keeps_apart(choice: Choice, answers: Path) -> None:
    facts, stories = (choice.system(name).memory or 0 for name in ("facts", "stories"))
    tight = choose_members(members(), DEV, answers=answers, vram=(facts + 1) / 1e9, **SETTINGS)
    assert tight.members == ("facts",)
    assert "no other candidate fits beside facts" in tight.skipped["ensemble"]
    assert "with it the members need" in tight.reasons["stories"]
    assert tight.verdict.kind == "alone"
    assert len(tight.systems) == 2
    assert tight.to_html()
    with pytest.warns(EnsembleWarning, match=r"its memory is 0\.01 GB, vram is"):
        one = choose_members(
            members(), DEV, answers=answers, vram=(facts + stories) / 2e9, **SETTINGS
        )
    assert [system.name for system in one.systems] == ["stories"]
    assert one.left_out.keys() == {"facts"}


def test_templates_that_prompts_go_past_are_told() -> None:
    items = read_dev_set(DEV[:1])
    candidates = {
        m.name or "": m for m in name_members({**members(), "copy": "a/b", "base": "c/d"})
    }
    sizes = {name: Size(1, 1, 1, name != "base") for name in candidates}
    trial = Trial(items, False, candidates, {}, 0, Answers(), lambda *_: None)
    with pytest.warns(EnsembleWarning, match="candidates 'copy' have a chat template") as seen:
        trial.warn_of_templates(Alone(sizes=sizes))
    assert len(seen) == 1
    replace(trial, chat=True).warn_of_templates(Alone(sizes=sizes))  # a warning is an error here


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (({"one": "x"}, DEV), "at least 2 are needed"),
        (([], DEV), "candidates holds nobody; to choose, at least 2"),
        ((members(), []), "has no items"),
        ((members(), None), "dev_set is None"),
        ((members(), [{**DEV[0], "metric": "exact"}]), "Did you mean 'exact_match'"),
    ],
)
def test_what_cannot_be_chosen_from(arguments: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        choose_members(*arguments)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"main": "fact"}, "Did you mean 'facts'"),
        ({"size": 1}, "size is 1"),
        ({"size": "2"}, "size is '2'"),
        ({"level": "0.9"}, "level is '0.9'"),
        ({"contexts": {"fact": "x"}}, "Did you mean 'facts'"),
        ({"fusions": ["unit"]}, "Did you mean 'unite'"),
        ({"gates": ["save"]}, "Did you mean 'safe'"),
        ({"fusions": [object()]}, "fusions holds an object"),
        ({"fusions": []}, r"fusions is \[\]; give a list with at least one"),
        ({"fusions": "unite"}, "fusions is 'unite'; give a list"),
        ({"gates": ()}, r"gates is \(\); give a list with at least one"),
        ({"level": 1.5}, "level is 1.5"),
        ({"vram": "much"}, "vram is 'much'"),
        ({"vram": -1}, "vram is -1"),
        ({"fusion": "unite"}, "decides fusion itself"),
        ({"weights": {"facts": 1.0, "stories": 0.0}}, "weights must be a rule"),
        ({"max_tokes": 3}, "Did you mean 'max_tokens'"),
        ({"max_tokens": 0}, "max_tokens is 0"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_loaded(
    settings: dict[str, Any], said: str
) -> None:
    nowhere = {"facts": "/nowhere/facts", "stories": "/nowhere/stories"}
    with pytest.raises(ConfigError, match=said):  # a warning would be an error, too
        choose_members(nowhere, DEV, **settings)


def test_a_question_that_is_too_long_is_named_at_once(answers: Path) -> None:
    long = {"prompt": "fox " * 3000, "answer": "x"}
    told = r"'facts' is left out: dev set, item 7 \('fox fox.*\) has \d+ tokens, .* 2048 positions"
    with pytest.warns(EnsembleWarning) as seen, pytest.raises(MemberError, match="no candidate"):
        choose_members(members(), [*DEV, long], answers=answers, **SETTINGS)
    assert re.search(told, str(seen[0].message))


def test_samples_that_cannot_be_drawn_take_nothing_else_away(
    answers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise MemberError("no room for 5 answers")

    monkeypatch.setattr(Trial, "_samples", full)
    with pytest.warns(EnsembleWarning, match="left out: no room"):
        found = choose_members(members(), DEV, answers=answers, **SETTINGS)
    assert "no room" in found.skipped[SAMPLED]
    assert [one.kind for one in found.systems] == [*["candidate"] * 2, "vote", *["ensemble"] * 2]
    assert found.to_html()


def test_a_metric_that_fails_is_named_with_its_question(choice: Choice, answers: Path) -> None:
    assert choice.questions  # all is answered

    def broken(text: str, gold: Any) -> bool:
        raise KeyError("Tokyo") if "Tokyo" in gold else ZeroDivisionError

    with pytest.raises(
        ConfigError, match=r"broken' failed at dev set, item 1 \('Question: What"
    ) as e:
        choose_members(members(), DEV, answers=answers, **{**SETTINGS, "metric": broken})
    assert isinstance(e.value.__cause__, ZeroDivisionError)


@pytest.mark.slow
def test_the_page_of_docs_quotes_what_the_command_measures() -> None:
    docs = Path(__file__).resolve().parents[3] / "docs"
    text = (docs / "choose.md").read_text("utf-8")
    found = choose_members(
        members(),
        docs / "choose_dev.jsonl",
        metric="contains",
        max_tokens=16,
        stop=["\n"],
        fusions=["unite", "average"],
    )
    quoted = [
        tuple(cell.strip() for cell in line.strip("|").split("|"))
        for line in text.split("| sign test p |")[1].splitlines()[2:8]
    ]
    assert quoted == [row[:5] for row in tables(found)[0].rows]
    assert f"> {found.verdict.sentence}" in text
