"""What a request may meet: deadlines, full contexts, END, fragments, weights, many threads."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.errors import ConfigError, DeadlineError, EnsembleWarning
from langchain_ensemble.params import EnsembleParams, RequestParams

FUSIONS = ["average", "deepen", "gac", "unite"]
PROMPT = "Once upon a time, there was a little"
NAMES = ["stories260K", "babyllama-361"]


def two(shared: Path, names: list[str] = NAMES, **settings: Any) -> Ensemble:
    folders = [str(shared / "models" / n) for n in names]
    return Ensemble(EnsembleParams(members=folders, **settings))


def test_deadline_carries_the_partial_text(shared: Path) -> None:
    with two(shared, ["stories260K", "bitllama-1M"], fusion="average") as owner:
        request = RequestParams(max_tokens=200, timeout=0.15)
        started = time.monotonic()
        with pytest.raises(
            DeadlineError, match=r"timeout of 0.15 s passed after \d+ decode"
        ) as info:
            owner.generate([PROMPT, "Tom"], request)
        assert time.monotonic() - started < 5
        assert len(info.value.partial) == 2
        whole = owner.generate([PROMPT, "Tom"], RequestParams(max_tokens=200))
        for part, (answer,) in zip(info.value.partial, whole, strict=True):
            assert answer.text.startswith(part)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_full_context_ends_with_length_and_a_warning(shared: Path, fusion: str) -> None:
    with two(shared, fusion=fusion) as owner:
        with pytest.warns(EnsembleWarning, match=r"'babyllama-361' has 256 positions and would"):
            (answer,) = owner.generate([PROMPT], RequestParams(max_tokens=400, seed=1))[0]
        assert answer.finish.reason == "length"
        assert answer.finish.full_member == "babyllama-361"
        assert len((PROMPT + answer.text).encode()) <= 257


def test_a_prompt_that_is_too_long_names_the_member(shared: Path) -> None:
    owner = two(shared, fusion="average")
    with pytest.raises(ConfigError, match=r"'babyllama-361'.*256.*"):
        owner.generate(["word " * 60], RequestParams())
    owner.unload()


@pytest.mark.parametrize("fusion", FUSIONS)
def test_weight_zero_auxiliaries_are_not_run(shared: Path, fusion: str) -> None:
    names = ["stories260K", "babyllama-361", "bitllama-1M"]
    with two(shared, names, fusion=fusion) as owner:
        weights = {"stories260K": 0.5, "babyllama-361": 0.0, "bitllama-1M": 0.5}
        (answer,) = owner.generate([PROMPT], RequestParams(max_tokens=12, weights=weights))[0]
        assert set(answer.usage.member_tokens) == {"stories260K", "bitllama-1M"}
        main_silent = {"stories260K": 0.0, "babyllama-361": 1.0, "bitllama-1M": 0.0}
        (other,) = owner.generate([PROMPT], RequestParams(max_tokens=12, weights=main_silent))[0]
        assert set(other.usage.member_tokens) == {"stories260K", "babyllama-361"}
    with two(shared, ["stories260K", "bitllama-1M"], fusion=fusion) as pair:
        if fusion != "deepen":  # its anchors are what all members share
            (same,) = pair.generate([PROMPT], RequestParams(max_tokens=12))[0]
            assert same.text == answer.text


def test_equal_members_are_one_member(shared: Path) -> None:
    folder = str(shared / "models" / "stories260K")
    with Ensemble(EnsembleParams(members=[folder])) as one:
        (alone,) = one.generate([PROMPT], RequestParams(max_tokens=40))[0]
    for fusion in FUSIONS:
        with Ensemble(EnsembleParams(members={"a": folder, "b": folder}, fusion=fusion)) as owner:
            (answer,) = owner.generate([PROMPT], RequestParams(max_tokens=40))[0]
            assert [t.id for t in answer.tokens] == [t.id for t in alone.tokens]
            assert answer.usage.fused_steps == 40


def test_main_without_weight_still_gives_the_vocabulary(shared: Path) -> None:
    with two(shared, fusion="unite") as owner:
        (answer,) = owner.generate([PROMPT], RequestParams(max_tokens=20, weights=[0.0, 1.0]))[0]
    with two(shared, ["babyllama-361"]) as baby:
        (alone,) = baby.generate([PROMPT], RequestParams(max_tokens=20))[0]
    assert answer.text == alone.text  # the only voice, whatever vocabulary it is read in


@pytest.mark.parametrize("fusion", FUSIONS)
def test_many_threads_get_their_own_answers(shared: Path, fusion: str) -> None:
    prompts = [PROMPT, "Tom had a", "The sun was", "One day, a cat"]
    with two(shared, fusion=fusion) as owner:
        request = RequestParams(max_tokens=15, temperature=0.8, seed=5)
        expected = [owner.generate([p], request)[0][0].text for p in prompts]
        got: dict[int, str] = {}

        def work(number: int) -> None:
            got[number] = owner.generate([prompts[number % 4]], request)[0][0].text

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert got == {n: expected[n % 4] for n in range(8)}


def test_an_abandoned_stream_blocks_nobody(shared: Path) -> None:
    with two(shared, fusion="average") as owner:
        first = owner.open([PROMPT], RequestParams(max_tokens=50))
        first.step()
        (answer,) = owner.generate([PROMPT], RequestParams(max_tokens=5))[0]
        assert answer.usage.steps == 5
        first.close()
        assert first.done
        assert first.step() == []


@pytest.mark.parametrize("main", NAMES)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_text_is_valid_when_sampled_hot(shared: Path, main: str, fusion: str) -> None:
    """Hot byte tokens come often: what is returned is text, and every member holds it."""
    with two(shared, fusion=fusion, main=main) as owner:
        request = RequestParams(max_tokens=60, temperature=3.0, seed=11, n=3)
        with owner.open([PROMPT], request) as decoding:
            answers = decoding.answers()[0]
            rows = decoding._loop.rows
    for answer, row in zip(answers, rows, strict=True):
        assert "\ufffd" not in answer.text
        assert answer.text.encode() + answer.finish.dropped == bytes(row.answer)


def test_no_prompts_is_an_empty_result(shared: Path) -> None:
    with two(shared, fusion="average") as owner:
        assert owner.generate([], RequestParams()) == []


def test_an_unknown_character_reaches_a_member_as_unk_with_a_warning(shared: Path) -> None:
    names = ["stories260K", "babyllama-105"]
    with two(shared, names, fusion="average") as owner:
        request = RequestParams(max_tokens=60, temperature=50.0, seed=2)
        with pytest.warns(EnsembleWarning, match=r"'babyllama-105' cannot spell all of answer 0"):
            owner.generate([PROMPT], request)
