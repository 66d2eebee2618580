"""Answers under a grammar: legal whatever the members think, and equal to the naive twin."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.errors import ConfigError, EnsembleWarning
from langchain_ensemble.fusion.base import FusedDistribution
from langchain_ensemble.params import EnsembleParams, RequestParams
from tests.naive import naive_decode
from tests.unit_tests.decoding.automata import (
    DIGITS,
    FOREIGN,
    LETTERS,
    RECORD,
    SENTENCES,
    Automaton,
    admit,
    compile_for,
    finite,
    parts,
)

FUSIONS = ["average", "deepen", "gac", "unite"]
PROMPT = "Once upon a time, there was a little"
PAIR = ("stories260K", "babyllama-361")
NAMED = {"record": RECORD, "sentences": SENTENCES, "foreign": FOREIGN}


def models(shared: Path, *names: str, **settings: Any) -> Ensemble:
    folders = [str(shared / "models" / name) for name in names]
    return Ensemble(EnsembleParams(members=folders, **settings))


def picos(pico: Callable[..., Path], *kinds: str, **settings: Any) -> Ensemble:
    members = {kind: str(pico(kind)) for kind in kinds}
    return Ensemble(EnsembleParams(members=members, **settings))


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("boundaries", ["discount", "vote"])
@pytest.mark.parametrize("main", PAIR)
@pytest.mark.parametrize("prompt", [PROMPT, pytest.param("", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["record", "sentences"])
def test_the_loop_is_its_naive_twin(
    shared: Path, fusion: str, boundaries: str, main: str, prompt: str, name: str
) -> None:
    steps = 14
    with models(shared, *PAIR, fusion=fusion, open_boundaries=boundaries, main=main) as owner:
        grammar = compile_for(owner._ready().voices, NAMED[name])[0]
        weigh = boundaries == "discount"
        naive = naive_decode(owner, prompt, steps, [0.5, 0.5], weigh, grammar)
        request = RequestParams(max_tokens=steps, n=2, weights="uniform")
        with admit(owner, [prompt], request, NAMED[name]) as decoding:
            answers = decoding.answers()[0]
            rows = decoding.rows
    for answer, row in zip(answers, rows, strict=True):
        assert bytes(row.answer) == naive.answer
        assert len(answer.tokens) == len(naive.keys)
        assert [t.logprob for t in answer.tokens] == pytest.approx(naive.logprobs, abs=1e-3)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("main", ["llama", "gpt2"])
def test_the_naive_twin_inside_characters(
    pico: Callable[..., Path], fusion: str, main: str
) -> None:
    with picos(pico, "llama", "gpt2", fusion=fusion, main=main) as owner:
        grammar = compile_for(owner._ready().voices, FOREIGN)[0]
        naive = naive_decode(owner, "The text: ", 24, [0.5, 0.5], True, grammar)
        with admit(
            owner, ["The text: "], RequestParams(max_tokens=24, weights="uniform"), FOREIGN
        ) as decoding:
            answer = decoding.answers()[0][0]
    assert answer.text.encode() == naive.answer
    assert FOREIGN.holds(answer.text.encode())
    assert answer.finish.reason == "stop"


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_naive_twin_where_main_cannot_spell(shared: Path, fusion: str) -> None:
    automaton = parts("{", (LETTERS, 1, 4), "} ^", (LETTERS, 1, 3))
    with models(shared, "babyllama-105", "stories260K", fusion=fusion) as owner:
        grammar = compile_for(owner._ready().voices, automaton)[1]
        naive = naive_decode(owner, PROMPT, 14, [0.5, 0.5], True, grammar)
        with (
            pytest.warns(EnsembleWarning, match=r"'babyllama-105' cannot spell all of answer"),
            admit(
                owner, [PROMPT], RequestParams(max_tokens=14, weights="uniform"), automaton
            ) as decoding,
        ):
            answer = decoding.answers()[0][0]
    assert answer.text.encode() == naive.answer
    assert [t.logprob for t in answer.tokens] == pytest.approx(naive.logprobs, abs=1e-3)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("main", PAIR)
@pytest.mark.parametrize("name", ["record", "sentences"])
def test_hot_samples_are_legal(shared: Path, fusion: str, main: str, name: str) -> None:
    automaton = NAMED[name]
    request = RequestParams(max_tokens=60, temperature=2.0, seed=5, n=4)
    with (
        models(shared, *PAIR, fusion=fusion, main=main) as owner,
        admit(owner, [PROMPT, "", "Tom"], request, automaton) as decoding,
    ):
        answers = [answer for row in decoding.answers() for answer in row]
    texts = [answer.text.encode() for answer in answers]
    assert len(set(texts)) > 6
    for text, answer in zip(texts, answers, strict=True):
        assert automaton.run(text + answer.finish.dropped) is not None
        assert answer.finish.unfinished is not automaton.holds(text)
        assert (answer.finish.reason == "stop") <= automaton.holds(text)
    assert name != "record" or any(answer.finish.reason == "stop" for answer in answers)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_batch_is_one_by_one(shared: Path, fusion: str) -> None:
    prompts = [PROMPT, "Tom", "", "The big red dog ran"]
    for temperature in (0.0, 1.0):
        request = RequestParams(max_tokens=25, temperature=temperature, seed=2, top_p=0.9)
        with models(shared, *PAIR, fusion=fusion) as owner:
            with admit(owner, prompts, request, RECORD) as decoding:
                together = [row[0] for row in decoding.answers()]
            for prompt, batched in zip(prompts, together, strict=True):
                with admit(owner, [prompt], request, RECORD) as decoding:
                    single = decoding.answers()[0][0]
                assert (batched.text, batched.finish) == (single.text, single.finish)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "neox"])
@pytest.mark.parametrize("name", ["record", "sentences", "foreign"])
def test_one_voice_is_generate_with_allowed_tokens(
    pico: Callable[..., Path], kind: str, name: str
) -> None:
    folder, automaton, prompt = str(pico(kind)), NAMED[name], "The cat sat"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    inputs = tokenizer(prompt, return_tensors="pt")
    size = inputs["input_ids"].shape[1]
    with picos(pico, kind) as owner:
        voice: Any = owner._ready().voices[0]
        table, roles = voice.vocabulary.token_bytes, voice.vocabulary.token_roles

        def allowed(_: int, ids: torch.Tensor) -> list[int]:
            said = b"".join(table[i] or b"" for i in ids[size:].tolist())
            good = [
                token
                for token, data in enumerate(table)
                if data and roles[token] is None and automaton.run(said + data) is not None
            ]
            return good + (list(voice.vocabulary.end_ids) if automaton.holds(said) else [])

        with torch.no_grad():
            out = model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=30,
                do_sample=False,
                pad_token_id=0,
                prefix_allowed_tokens_fn=allowed,
            )[0, size:].tolist()
        with admit(owner, [prompt], RequestParams(max_tokens=30), automaton) as decoding:
            answer = decoding.answers()[0][0]
            ids = list(decoding.rows[0].tracks[0].ids)
    ended = [out[-1]] if answer.finish.reason == "stop" else []
    assert out == ids + ended
    assert all(t.logprob > -30 for t in answer.tokens)  # under the masked distribution


@pytest.mark.parametrize("name", PAIR)
def test_a_space_of_the_tokenizers_own_is_no_byte_of_the_answer(shared: Path, name: str) -> None:
    """After an empty prompt a first key may bring a space that the grammar never sees."""
    automaton = finite("the cat", "a dog", " they", "\tx")
    request = RequestParams(max_tokens=20, temperature=3.0, seed=1, n=30)
    with models(shared, name) as owner, admit(owner, [""], request, automaton) as decoding:
        answers = decoding.answers()[0]
        prefixed = decoding.rows[0].tracks[0].lead
    assert all(automaton.holds(answer.text.encode()) for answer in answers)
    assert {"the cat", "a dog"} <= {answer.text for answer in answers}
    assert prefixed
    first = {answer.tokens[0].bytes[:1] for answer in answers if answer.text != " they"}
    assert b" " in first  # the space came, and was none of the answer's


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("names", [PAIR, PAIR[:1]])
def test_a_budget_too_small_ends_unfinished(
    shared: Path, fusion: str, names: tuple[str, ...]
) -> None:
    automaton = finite("abcdefghij klmnopqrst")
    with models(shared, *names, fusion=fusion) as owner:
        with admit(owner, [PROMPT], RequestParams(max_tokens=3), automaton) as decoding:
            cut = decoding.answers()[0][0]
        assert cut.finish.reason == "length"
        assert cut.finish.unfinished
        with admit(owner, [PROMPT], RequestParams(max_tokens=50), automaton) as decoding:
            whole = decoding.answers()[0][0]
        assert whole.finish.reason == "stop"
        assert not whole.finish.unfinished
        assert whole.text == "abcdefghij klmnopqrst"
        steps = len(whole.tokens) - 1  # just enough for the text, not for END
        with admit(owner, [PROMPT], RequestParams(max_tokens=steps), automaton) as decoding:
            just = decoding.answers()[0][0]
        assert just.text == whole.text
        assert (just.finish.reason, just.finish.unfinished) == ("length", False)


def test_a_full_context_ends_unfinished(shared: Path) -> None:
    automaton = parts("a", (frozenset(b"b"), 400, 400))
    with (
        models(shared, *PAIR, fusion="average") as owner,
        admit(owner, [PROMPT], RequestParams(max_tokens=400), automaton) as decoding,
        pytest.warns(EnsembleWarning, match="has 256 positions"),
    ):
        finish = decoding.answers()[0][0].finish
    assert finish.full_member == "babyllama-361"
    assert finish.unfinished


@pytest.mark.parametrize("fusion", FUSIONS)
def test_only_end_is_left(shared: Path, fusion: str) -> None:
    with (
        models(shared, *PAIR, fusion=fusion) as owner,
        admit(owner, [PROMPT], RequestParams(max_tokens=9), finite("", "a")) as decoding,
    ):
        answer = decoding.answers()[0][0]
    assert answer.finish.reason == "stop"
    assert answer.text in ("", "a")
    assert answer.tokens[-1].bytes == b""
    assert answer.tokens[-1].logprob == pytest.approx(0.0, abs=1e-5) or answer.text == ""


@pytest.mark.parametrize("fusion", FUSIONS)
def test_what_main_cannot_spell_the_others_say(shared: Path, fusion: str) -> None:
    automaton = finite("{~}")
    names = ("babyllama-105", "stories260K", "bitllama-1M")
    with models(shared, *names, fusion=fusion) as owner:
        assert b"{" not in owner._ready().voices[0].vocabulary.key_of
        for share in ((0.4, 0.3, 0.3), (0.6, 0.2, 0.2), (0.2, 0.2, 0.6), (0.0, 0.5, 0.5)):
            request = RequestParams(max_tokens=9, weights=share)
            with (
                pytest.warns(EnsembleWarning, match=r"'babyllama-105' cannot spell all of answer"),
                admit(owner, [PROMPT], request, automaton) as decoding,
            ):
                answer = decoding.answers()[0][0]
            assert answer.text == "{~}"
            assert answer.finish.reason == "stop"
            assert all(t.logprob <= 1e-6 for t in answer.tokens)


def test_the_order_of_auxiliaries_does_not_decide(shared: Path) -> None:
    answers = []
    for names in (
        ("babyllama-105", "stories260K", "bitllama-1M"),
        ("babyllama-105", "bitllama-1M", "stories260K"),
    ):
        with models(shared, *names, fusion="average") as owner:
            request = RequestParams(max_tokens=20, temperature=1.0, seed=3)
            with (
                pytest.warns(EnsembleWarning),
                admit(
                    owner, [PROMPT], request, finite("^{}", "^}{", "{}^", "{^}", "}^{")
                ) as decoding,
            ):
                answers.append(decoding.answers()[0][0])
    assert answers[0].text == answers[1].text
    assert [t.logprob for t in answers[0].tokens] == pytest.approx(
        [t.logprob for t in answers[1].tokens], abs=1e-4
    )


@pytest.mark.parametrize("names", [("babyllama-105",), ("babyllama-105", "stories260K")])
def test_what_nobody_can_spell_ends_unfinished(shared: Path, names: tuple[str, ...]) -> None:
    with models(shared, *names, fusion="average") as owner:
        request = RequestParams(max_tokens=9)
        said = r"wants b'\\xe6' after b'ab', .*'babyllama-105'"
        with (
            pytest.warns(EnsembleWarning, match=said),
            admit(owner, [PROMPT], request, finite("ab日")) as decoding,
        ):
            answer = decoding.answers()[0][0]
        assert answer.text == "ab"
        assert (answer.finish.reason, answer.finish.unfinished) == ("length", True)
        assert [t.bytes for t in answer.tokens] == [b"a", b"b"]
        assert answer.usage.steps == 2


@pytest.mark.parametrize("names", [PAIR, PAIR[:1]])
def test_a_grammar_without_a_way_on_is_an_error(shared: Path, names: tuple[str, ...]) -> None:
    dead_end = Automaton(
        0, lambda n, byte: n + 1 if byte == 97 and n < 2 else None, lambda _: False
    )
    with models(shared, *names, fusion="average") as owner:
        decoding = admit(owner, [PROMPT], RequestParams(max_tokens=9), dead_end)
        with pytest.raises(ConfigError, match=r"no way on after b'aa'.*nothing satisfies it"):
            decoding.answers()
        assert decoding._loop._caches._sessions == []
        assert owner.generate([PROMPT], RequestParams(max_tokens=2))  # stays usable


class Loud:
    """A fusion that gives all keys the same, masked or not."""

    name = "loud"

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __call__(self, distributions: Any, weights: torch.Tensor) -> FusedDistribution:
        fused = self.inner(distributions, weights)
        level = fused.logprobs.new_full(fused.logprobs.shape, -7.0)
        return FusedDistribution(fused.space, level, level[:, 0])


def test_no_fusion_can_choose_what_is_illegal(shared: Path) -> None:
    for fusion in ("average", "gac"):
        with models(shared, *PAIR, fusion=fusion) as owner:
            fuser = Loud(owner._ready().fuser)
            request = RequestParams(max_tokens=40, temperature=1.0, seed=1, n=4, weights="uniform")
            with admit(owner, [PROMPT], request, RECORD, fuser=fuser) as decoding:
                answers = decoding.answers()[0]
            assert len({answer.text for answer in answers}) == 4
            assert all(RECORD.run(answer.text.encode()) is not None for answer in answers)
            for answer in answers:  # renormalised: what is legal sums to one
                assert answer.tokens[0].logprob > -1.0


@pytest.mark.parametrize("names", [PAIR, PAIR[:1]])
def test_a_stop_string_inside_an_unfinished_grammar_is_ignored(
    shared: Path, names: tuple[str, ...]
) -> None:
    automaton = finite("one two three two one", "one two three two one four")
    with models(shared, *names, fusion="average") as owner:
        request = RequestParams(max_tokens=40, stop=("two", " three"))
        with (
            pytest.warns(EnsembleWarning) as seen,
            admit(owner, [PROMPT], request, automaton) as decoding,
        ):
            answer = decoding.answers()[0][0]
        said = [str(w.message) for w in seen if "inside an unfinished grammar" in str(w.message)]
        assert len(said) == 1
        assert "answer 0: stop string 'two'" in said[0]
        assert answer.text.startswith("one two three two one")
        assert answer.finish.reason == "stop"
        assert answer.finish.stop is None


@pytest.mark.parametrize("names", [PAIR, PAIR[:1]])
def test_a_stop_string_after_a_whole_text_ends_the_answer(
    shared: Path, names: tuple[str, ...]
) -> None:
    automaton = parts((frozenset(b"ab"), 2, 2), (frozenset(b"."), 0, 30))
    with models(shared, *names, fusion="average") as owner:
        request = RequestParams(max_tokens=40, stop=(".....", "a.b"), temperature=1.0, seed=1, n=5)
        with admit(owner, [PROMPT], request, automaton) as decoding:
            pieces = []
            while not decoding.done:
                pieces += decoding.step()
        finishes = {p.row: p.finish for p in pieces if p.finish is not None}
        assert any(f.stop == "....." for f in finishes.values())
        for row, finish in finishes.items():
            text = "".join(p.text for p in pieces if p.row == row)
            assert automaton.holds(text.encode())
            assert not finish.unfinished
            assert "....." not in text


def test_the_place_where_it_may_end_is_before_the_stop_string(shared: Path) -> None:
    """``}`` completes the grammar, but what stands before it is half an object."""
    with models(shared, *PAIR, fusion="average") as owner:
        request = RequestParams(max_tokens=60, stop=("}",))
        with (
            pytest.warns(EnsembleWarning, match="'}' came inside an unfinished grammar"),
            admit(owner, [PROMPT], request, RECORD) as decoding,
        ):
            answer = decoding.answers()[0][0]
    assert RECORD.holds(answer.text.encode())


def test_masks_are_asked_once_a_vocabulary_row_and_step(shared: Path) -> None:
    names = ("stories260K", "stories260K", "babyllama-361")
    with models(shared, *names, fusion="average") as owner:
        voices = owner._ready().voices
        grammar = compile_for(voices, SENTENCES)
        assert grammar[0] is grammar[1]
        with admit(owner, [PROMPT, "Tom"], RequestParams(max_tokens=5), grammar=grammar) as d:
            d.answers()
        assert grammar[0].asked == 10
        assert grammar[2].asked == 10


def test_control_ids_that_are_spelled_count_as_text(pico: Callable[..., Path]) -> None:
    with picos(pico, "qwen2") as owner:
        voice: Any = owner._ready().voices[0]
        opener = voice.member.tokenizer.convert_tokens_to_ids("<|im_start|>")
        closer = voice.member.tokenizer.convert_tokens_to_ids("<|im_end|>")
        assert voice.vocabulary.token_roles[opener] is not None
        spelled = {opener: b"<call>", closer: b"</call>"}
        automaton = parts("<call>", (frozenset(b"abc"), 1, 4), "</call>")
        request = RequestParams(max_tokens=30, temperature=1.0, seed=1, n=6)
        with admit(owner, ["The cat"], request, automaton, spelled=spelled) as decoding:
            answers = decoding.answers()[0]
            rows = decoding.rows
        used = [{opener, closer} & set(row.tracks[0].ids) for row in rows]
        assert any(used)
        for answer in answers:
            assert automaton.holds(answer.text.encode())
        stopped = request.model_copy(update={"stop": ("</call>",), "n": 1})
        free = parts((LETTERS, 0, 3), "</call>", (DIGITS, 0, 9))
        with (
            pytest.warns(EnsembleWarning, match="inside an unfinished grammar"),
            admit(owner, ["The"], stopped, free, spelled=spelled) as decoding,
        ):
            assert free.run(decoding.answers()[0][0].text.encode()) is not None


def test_a_spelled_control_id_is_seen_by_stop_strings(pico: Callable[..., Path]) -> None:
    with picos(pico, "qwen2") as owner:
        voice: Any = owner._ready().voices[0]
        closer = voice.member.tokenizer.convert_tokens_to_ids("<|im_end|>")
        request = RequestParams(max_tokens=150, temperature=4.0, seed=4, stop=("</think>",), n=12)
        with admit(owner, ["The cat"], request, spelled={closer: b"</think>"}) as decoding:
            answers = decoding.answers()[0]
    stopped = [answer for answer in answers if answer.finish.stop is not None]
    assert stopped
    for answer in stopped:
        assert "</think>" not in answer.text
        assert answer.tokens[-1].id == closer
        assert answer.tokens[-1].bytes == b"</think>"


def test_contradictions_are_refused(shared: Path) -> None:
    with models(shared, *PAIR, fusion="average") as owner:
        request = RequestParams(max_tokens=2)
        with pytest.raises(ConfigError, match="spelled= is for one voice"):
            admit(owner, [PROMPT], request, spelled={1: b"x"})
        with pytest.raises(ConfigError, match="grammar has 1 entries for 2 voices"):
            admit(owner, [PROMPT], request, grammar=(None,))
