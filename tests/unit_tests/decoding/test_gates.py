"""Gates in whole answers: laws for every fusion, drafts, scores, grammars; who reads how often."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from langchain_ensemble import EnsembleLLM
from langchain_ensemble.decoding import fused, gate_rules
from langchain_ensemble.decoding.choose import drawn, generators_for, uniforms
from langchain_ensemble.decoding.drafts import LAG
from langchain_ensemble.decoding.fusing import voice_distribution
from langchain_ensemble.decoding.records import Answer
from langchain_ensemble.decoding.task import Opening
from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.errors import ConfigError
from langchain_ensemble.members.base import MemberPrompt
from langchain_ensemble.params import EnsembleParams, RequestParams
from tests.naive import _boundary, _distribution
from tests.unit_tests.decoding.automata import SENTENCES, admit
from tests.unit_tests.decoding.test_counts import DYNAMIC, watched

FUSIONS = ["average", "deepen", "gac", "unite"]
STORIES, BABY, BIT = "stories260K", "babyllama-361", "bitllama-1M"
PROMPTS = ["Once upon a time, there was a little", 'Zoë said: "é']
SHUT: dict[str, Any] = {"name": "threshold", "below": 1e-9}
OPEN: dict[str, Any] = {"name": "threshold", "below": 1.0}
HALF = 0.95
"""Main's best first key is likelier, some of its second keys are not."""
HOT = 3.0


def models(shared: Path, *names: str, **settings: Any) -> Ensemble:
    folders = [str(shared / "models" / name) for name in names]
    return Ensemble(EnsembleParams(members=folders, **settings))


@pytest.fixture(scope="module", params=FUSIONS)
def pair(shared: Path, request: pytest.FixtureRequest) -> Iterator[Ensemble]:
    with models(shared, STORIES, BABY, fusion=request.param) as owner:
        yield owner


@pytest.fixture(scope="module")
def unite(shared: Path) -> Iterator[Ensemble]:
    with models(shared, STORIES, BABY, fusion="unite") as owner:
        yield owner


def ask(gate: Any = "always", temperature: float = 0.0, **more: Any) -> RequestParams:
    settings: Any = {"max_tokens": 9, "speculation": "off", "seed": 5, **more}
    return RequestParams(gate=gate, temperature=temperature, **settings)


def told(answers: Sequence[Sequence[Answer]], gates: bool = True) -> list[Any]:
    return [
        (
            answer.text,
            [token.id for token in answer.tokens],
            [(token.gate, token.fused) for token in answer.tokens] if gates else None,
            answer.finish,
        )
        for row in answers
        for answer in row
    ]


def by_main(owner: Ensemble, prompt: str, request: RequestParams) -> list[int | None]:
    """Main alone by hand: its masked distribution over keys and END, read anew every step."""
    voice: Any = owner._ready().voices[0]
    ids, answer, state = list(voice.member.prompt(prompt).ids), [], 0
    generators = generators_for(request.seed, 1, 1) if request.temperature else None
    from langchain_ensemble.constraints.utf8 import state_after

    for _ in range(request.max_tokens or 0):
        logits = voice.member.session().prefill([MemberPrompt(tuple(ids))])
        said = voice_distribution(voice, logits, [state])
        scores = torch.cat([said.logprobs, said.end[:, None]], -1)
        if generators is None:
            column = int(scores.argmax(-1))
        else:
            probs = torch.softmax(scores / request.temperature, -1)
            column = int(drawn(probs, uniforms(generators)))
        if column == said.logprobs.shape[-1]:
            return [*answer, None]
        answer.append(column)
        ids.append(column)
        state = state_after(voice.vocabulary.token_bytes[column], state)
    return answer


# laws


def test_a_gate_that_is_always_shut_is_main_alone(pair: Ensemble) -> None:
    for temperature in (0.0, 0.9):
        for gate in (SHUT, {"name": "safe", "consensus": 1e-9}):
            got = pair.generate(PROMPTS[:2], ask(gate, temperature))
            for prompt, (answer,) in zip(PROMPTS, got, strict=False):
                expected = by_main(pair, prompt, ask(gate, temperature))
                assert [token.id for token in answer.tokens] == expected
                assert answer.usage.fused_steps == 0
                assert {token.gate for token in answer.tokens} <= {"sure", "consensus", "boundary"}
    alone = pair.generate(PROMPTS[:2], ask(weights=(1.0, 0.0)))
    assert told(alone, gates=False) == told(pair.generate(PROMPTS[:2], ask(SHUT)), gates=False)


def test_a_gate_that_is_always_open_is_none(pair: Ensemble) -> None:
    for temperature in (0.0, 0.9):
        always = pair.generate(PROMPTS, ask("always", temperature))
        for gate in (OPEN, {"name": "safe", "consensus": 0.9999999, "sharpen": False}):
            got = pair.generate(PROMPTS, ask(gate, temperature))
            assert told(got, gates=False) == told(always, gates=False)
            assert [a[0].usage for a in got] == [a[0].usage for a in always]


@pytest.mark.parametrize("gate", ["threshold", "safe"])
def test_rows_drafts_and_batches_change_nothing(pair: Ensemble, gate: str) -> None:
    for temperature in (0.0, 0.9):
        together = told(pair.generate(PROMPTS, ask(gate, temperature)))
        assert together == [
            row
            for prompt in PROMPTS
            for row in told(pair.generate([prompt], ask(gate, temperature)))
        ]
        shares = [fused for row in together for _, fused in row[2]]
        assert 0 < sum(shares) < len(shares)
        assert told(pair.generate(PROMPTS, ask(gate, temperature, speculation="on"))) == together


def test_every_row_obeys_the_rule(shared: Path) -> None:
    names = (STORIES, BABY, BIT)
    with models(shared, *names, fusion="average") as owner:
        request = ask("threshold", logprobs=True, max_tokens=20)
        for (answer,) in owner.generate(PROMPTS, request):
            for token in answer.tokens:
                assert (token.gate == "sure") == (not token.fused) or token.gate is None
                if token.gate == "sure":
                    own = token.members[STORIES]
                    assert own == pytest.approx(token.logprob, abs=1e-5)
                    assert own is not None
                    assert own >= math.log(0.5) - 1e-6  # greedy: main's best key
                assert token.members[BIT] is not None  # who wants to know is told


def test_tight_gates_fuse_less(unite: Ensemble) -> None:
    shares = []
    for below in (0.2, 0.6, 0.99):
        got = unite.generate(PROMPTS[:2], ask({"name": "threshold", "below": below}, max_tokens=20))
        shares.append(sum(a[0].usage.fused_steps for a in got))
    assert shares == sorted(shares)
    assert shares[0] < shares[-1]


def test_one_row_is_drawn_from_what_the_gate_left(shared: Path) -> None:
    """A gate half open: fused rows from the fusion, shut rows from main, by chi-square."""
    rows, gate = 900, {"name": "threshold", "below": HALF}
    settings = {"name": "average", "mean": "arithmetic"}
    request = RequestParams(
        max_tokens=2, temperature=HOT, top_k=3, n=rows, gate=gate, speculation="off", seed=2
    )
    with models(shared, STORIES, BIT, fusion=settings) as owner:
        built: Any = owner._ready()
        prompts = [voice.member.prompt("Once upon a time") for voice in built.voices]
        expected: dict[tuple[int, ...], float] = {}
        kinds = set()
        for first, p in _step(built, [prompt.ids for prompt in prompts], kinds).items():
            longer = [(*prompt.ids, first) for prompt in prompts]
            for second, q in _step(built, longer, kinds).items():
                expected[first, second] = p * q
        assert kinds == {True, False}
        ((*answers,),) = owner.generate(["Once upon a time"], request)
        counts = Counter(tuple(token.id for token in answer.tokens) for answer in answers)
        assert set(counts) <= set(expected)
        statistic = sum(
            (counts[key] - rows * p) ** 2 / (rows * p) for key, p in expected.items() if p > 0
        )
        degrees = len(expected) - 1
        assert statistic < degrees + 4 * math.sqrt(2 * degrees) + 6


def _step(built: Any, ids: Sequence[Any], kinds: set[bool]) -> dict[int, float]:
    said = [
        voice_distribution(voice, voice.member.session().prefill([MemberPrompt(tuple(own))]), [0])
        for voice, own in zip(built.voices, ids, strict=True)
    ]
    shut = float(said[0].logprobs.max().exp()) >= HALF
    kinds.add(shut)
    fused = said[0] if shut else built.fuser(said, torch.tensor([[0.5, 0.5]]))
    width = built.members[0].logits_width
    scores = torch.cat([fused.logprobs[:, :width], fused.end[:, None]], -1)[0] / HOT
    top = scores.topk(3)
    return dict(zip(top.indices.tolist(), top.values.softmax(-1).tolist(), strict=True))


def test_requests_with_other_gates_are_other_questions(unite: Ensemble) -> None:
    asked = [ask(gate, 0.9) for gate in ("always", "threshold", "safe", "threshold")]
    alone = [told(unite.generate(PROMPTS[:1], request)) for request in asked]
    running = [unite.open(PROMPTS[:1], request) for request in asked]
    for decoding in running:
        decoding.step()
    assert [told(decoding.answers()) for decoding in running] == alone


@pytest.mark.parametrize("gate", ["threshold", "safe"])
def test_a_device_is_never_waited_for(
    unite: Ensemble, monkeypatch: pytest.MonkeyPatch, gate: str
) -> None:
    """The way of a GPU, taken on the CPU: the same tokens, one transfer a step, fixed shapes."""
    requests = [ask(gate, temperature, max_tokens=6) for temperature in (0.0, 0.9)]
    host = [told(unite.generate(PROMPTS, request)) for request in requests]
    for module in (fused, gate_rules):
        monkeypatch.setattr(module, "on_host", lambda _: False)
    assert [told(unite.generate(PROMPTS, request)) for request in requests] == host
    watch = watched(unite, PROMPTS[:1], monkeypatch, gate=gate)
    assert all(len(reads) == 1 for reads in watch.reads)
    seen = {name for step in watch.steps for name in step}
    assert not [name for name in seen if any(word in name for word in DYNAMIC)]


# who reads how often


def forwards(owner: Ensemble, prompts: list[str], request: RequestParams) -> list[float]:
    """Forwards of each member a token, prefill left out."""
    with owner.open(prompts, request.model_copy(update={"speculation": "on"})) as decoding:
        found: list[int] = []
        while not decoding.done:
            decoding.step()
            drafts = decoding._loop._ahead._drafts
            found = found if drafts is None else list(drafts.forwards)
        steps = max(len(row.records) for row in decoding._loop.rows)
    return [count / steps for count in found]


def test_auxiliaries_read_as_rarely_as_they_are_asked(shared: Path) -> None:
    with models(shared, STORIES, BIT, fusion="unite") as owner:  # one vocabulary
        for below, most in ((1e-9, 0.0), (0.5, 0.6)):
            request = ask({"name": "threshold", "below": below}, max_tokens=40)
            share = owner.generate(PROMPTS[:1], request)[0][0].usage.fused_steps / 40
            main, other = forwards(owner, PROMPTS[:1], request)
            assert other <= share + 0.02
            assert other <= most
            assert main <= 1.1
        assert forwards(owner, PROMPTS[:1], ask("always", max_tokens=40))[1] > 0.45
        safe = ask("safe", max_tokens=40)
        assert forwards(owner, PROMPTS[:1], safe)[1] < 0.4  # main drafts, the other verifies
        watched = ask(SHUT, max_tokens=20, logprobs=True)
        assert forwards(owner, PROMPTS[:1], watched)[1] > 0.4  # who wants to know waits


def test_weighed_boundaries_are_read_late_but_read(unite: Ensemble) -> None:
    """Another tokenizer: the auxiliary is owed every position, at most LAG of them at once."""
    request = ask(SHUT, max_tokens=3 * LAG)
    _, other = forwards(unite, PROMPTS[:1], request)
    assert 2 / (3 * LAG) <= other < 0.35
    half = ask({"name": "threshold", "below": 0.4}, 0.8, max_tokens=30)
    plain = unite.generate(PROMPTS[:2], half)
    late = unite.generate(PROMPTS[:2], half.model_copy(update={"speculation": "on"}))
    assert told(late) == told(plain)
    for (one,), (two,) in zip(plain, late, strict=True):
        for x, y in zip(one.tokens, two.tokens, strict=True):  # the same c_i, the same weights
            assert x.logprob == pytest.approx(y.logprob, abs=2e-4)


def test_what_was_not_read_is_taken_back_and_handed_on(unite: Ensemble) -> None:
    request = ask("threshold", max_tokens=14, speculation="on")
    plain = told(unite.generate(PROMPTS, request.model_copy(update={"speculation": "off"})))
    with unite.open(PROMPTS, request) as decoding:
        loop, texts = decoding._loop, [""] * len(PROMPTS)
        number = 0
        while not loop.done:
            number += 1
            if number % 3 == 0 and all(row.finish is None for row in loop.rows):
                mark = loop.mark()
                loop.step()
                loop.step()
                if all(row.finish is None for row in loop.rows):
                    loop.rollback(mark)
            if not loop.done:
                loop.step()
        texts = [row.text(0, row.given) for row in loop.rows]
    assert texts == [text for text, *_ in plain]
    with admit(unite, PROMPTS[:2], request, keep=True) as decoding:
        decoding.answers()
        for row in range(2):
            for held in decoding.kept(row):
                assert held.session.lengths == [len(held.ids)]
                held.session.close()


# with everything else


@pytest.mark.parametrize("gate", ["threshold", "safe"])
@pytest.mark.filterwarnings("ignore:.*unfinished")
def test_under_a_grammar_and_beside_an_opening(unite: Ensemble, gate: str) -> None:
    for more in ({"automaton": SENTENCES}, {"opening": Opening(ids=(1,))}):
        seen = []
        for how in ("off", "on"):
            request = ask(gate, 0.9, speculation=how, max_tokens=14)
            with admit(unite, PROMPTS[:2], request, **more) as decoding:
                answers = decoding.answers()
            seen.append(told(answers))
        assert seen[0] == seen[1]
        assert any(fused for _, _, gates, _ in seen[0] for _, fused in gates or ())
        if "automaton" in more:
            for text, *_ in seen[0]:
                assert SENTENCES.run(text.encode()) is not None


def test_a_shut_gate_leaves_main_its_call(unite: Ensemble) -> None:
    """Main's odds of opening a call are its own; what goes on is main's own distribution."""
    opening = Opening(ids=(1,))
    with admit(unite, PROMPTS[:1], ask(SHUT, max_tokens=8), opening=opening) as decoding:
        ((answer,),) = decoding.answers()
    plain = unite.generate(PROMPTS[:1], ask(SHUT, max_tokens=8))[0][0]
    assert [t.id for t in answer.tokens] == [t.id for t in plain.tokens]
    for one, two in zip(answer.tokens, plain.tokens, strict=True):
        assert one.logprob is not None
        assert two.logprob is not None
        assert one.logprob <= two.logprob + 1e-6


def naive_score(owner: Ensemble, text: str, below: float) -> tuple[float, int]:
    """Every position from scratch; shut where main's best probability is not below a bound."""
    built: Any = owner._ready()
    prompts = [v.member.prompt("") for v in built.voices]
    lead = [
        b" " * int(p.text_start and v.vocabulary.dummy_prefix)
        for v, p in zip(built.voices, prompts, strict=True)
    ]
    main = built.voices[0].vocabulary
    ids = main.encode(lead[0].decode() + text).ids
    total, shut, whole = 0.0, 0, b""
    visited: list[Any] = [[], []]
    paths: list[Any] = [[], []]
    for number, token in enumerate(ids):
        answer, said, c = whole[len(lead[0]) :], [], []
        for place, voice in enumerate(built.voices):
            held = lead[place] + answer if number else b""
            own = ids[:number] if place == 0 else voice.vocabulary.encode(held.decode()).ids
            said.append(_distribution(voice, prompts[place], own, b""))
            where = (voice, prompts[place], held, visited[place], paths[place])
            c.append(1.0 if voice.verbatim else _boundary(*where))
        target = built.voices[0].keys.representative[torch.tensor([token])]
        if float(torch.maximum(said[0].logprobs.amax(-1), said[0].end).exp()) >= below:
            total += float(said[0].logprobs[0, target])
            shut += 1
        else:
            apart = number == 0 and lead[0] != lead[1]
            other = 0.0 if apart else 0.5 * c[1]
            weights = torch.tensor([[1 - other, other]])
            total += float(built.fuser.score(said, weights, target))
        whole += main.token_bytes[token]
    return total, shut


def test_a_score_is_its_naive_twin(pair: Ensemble) -> None:
    text = "There was a little girl"
    expected, shut = naive_score(pair, text, 0.7)
    assert shut > 0
    score = pair.score(text, gate={"name": "threshold", "below": 0.7})
    assert score.logprob == pytest.approx(expected, rel=1e-4)
    assert pair.score(text, gate=OPEN).logprob == pytest.approx(pair.score(text).logprob, rel=1e-6)
    wide = {"name": "safe", "consensus": 0.9999999, "sharpen": False}
    assert pair.score(text, gate=wide).logprob == pytest.approx(pair.score(text).logprob, rel=1e-6)
    alone = pair.score(text, member=STORIES).logprob
    assert pair.score(text, gate=SHUT).logprob == pytest.approx(alone, rel=2e-3)  # END is masked?


def test_a_greedy_answer_scores_as_greedy(pair: Ensemble) -> None:
    prompt = PROMPTS[0]
    for gate in ("threshold", "safe"):
        answer = pair.generate([prompt], ask(gate, max_tokens=10, logprobs=True))[0][0]
        ids = pair._ready().voices[0].vocabulary.encode(answer.text).ids
        if ids != [token.id for token in answer.tokens]:
            continue  # not main's canonical spelling
        score = pair.score(answer.text, prompt, gate=gate)
        assert score.is_greedy
        if pair.fusion.name != "unite":  # whose score is completed
            total = sum(token.logprob or 0.0 for token in answer.tokens)
            assert score.logprob == pytest.approx(total, abs=1e-3)


# what is refused


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ("sometimes", "unknown gate"),
        ({"name": "threshold", "over": 1}, "unknown setting of gate='threshold'"),
        ({"name": "threshold", "below": 0}, r"below=0; it must be a probability in \(0, 1\]"),
        ({"name": "threshold", "below": True}, "below=True"),
        ({"name": "threshold", "below": "0.5"}, "below='0.5'"),
        ({"name": "safe", "consensus": 1}, r"consensus=1; it must be a probability in \(0, 1\)"),
        ({"name": "safe", "sharpen": 1}, "sharpen=1; it must be True or False"),
        ({"name": "always", "below": 0.5}, "unknown setting of gate='always'"),
        ({"below": 0.5}, "unknown gate"),
    ],
)
def test_a_gate_that_does_not_exist(gate: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RequestParams(gate=gate)


def test_safe_needs_to_know_where_tokens_end(shared: Path) -> None:
    with models(shared, STORIES, BABY, fusion="unite", open_boundaries="vote") as owner:
        for call in (
            lambda: owner.open(PROMPTS[:1], ask("safe")),
            lambda: owner.score("a", gate="safe"),
        ):
            with pytest.raises(ConfigError, match="nobody weighs where those of 'babyllama-361'"):
                call()
        assert owner.generate(PROMPTS[:1], ask("threshold", max_tokens=3))
    with models(shared, STORIES, BIT, fusion="unite", open_boundaries="vote") as owner:
        assert owner.generate(PROMPTS[:1], ask("safe", max_tokens=3))  # one tokenizer


def test_a_call_may_name_its_gate() -> None:
    llm = EnsembleLLM.demo(max_tokens=12, gate="threshold")
    always = llm.invoke("Once upon a time", gate="always")
    assert always == EnsembleLLM.demo(max_tokens=12).invoke("Once upon a time")
    shut = llm.invoke("Once upon a time", gate=SHUT)
    assert shut == llm.invoke("Once upon a time", weights=(1.0, 0.0))
    text = "Once upon a time there was a little girl"
    assert llm.score(text, gate=OPEN) == llm.score(text, gate="always")
    assert llm.score(text) != llm.score(text, gate="always")
    chat = llm.as_chat()
    assert chat.gate == "threshold"
    assert chat.invoke("hi", gate=SHUT).content == chat.invoke("hi", weights=(1.0, 0.0)).content
    with pytest.raises(ConfigError, match="unknown gate"):
        chat.invoke("hi", gate="now and then")
