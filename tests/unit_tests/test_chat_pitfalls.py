"""What users of other local chat models complain about, each once, with real members.

Beside ``test_pitfalls.py``, which holds the raw class to all of P1-P20: what concerns chat models
alone, or is another path in them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from pydantic import BaseModel
from transformers import AutoTokenizer

from langchain_ensemble import ChatEnsemble, ConfigError, EnsembleWarning
from langchain_ensemble.demo import members
from langchain_ensemble.testing.chat_tools import merged
from tests.pico import build


@pytest.fixture(scope="module", autouse=True)
def _loaded() -> Iterator[None]:
    with ChatEnsemble.demo() as chat:
        chat.load()
        yield


class Answer(BaseModel):
    sure: bool
    mood: Literal["good", "bad"]


def country_fact(country: str, field: str) -> str:
    """Look up a fact about a country."""
    return f"{field} of {country}"


HELLO = [HumanMessage("Hello, who are you?")]


@pytest.mark.parametrize("main", ["facts", "stories"])
def test_p02_each_member_reads_its_own_template(main: str) -> None:
    """The prompt is what the tokenizer's own template makes of it: no double bos, nothing lost."""
    chat = ChatEnsemble.demo(main=main, max_tokens=2)
    tokenizer = AutoTokenizer.from_pretrained(members()[main])
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    expected = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    asked = [SystemMessage("Be brief."), HumanMessage("Hi")]
    usage = chat.invoke(asked).usage_metadata
    assert usage is not None
    assert usage["input_tokens"] == len(expected)
    assert chat.get_num_tokens_from_messages([*asked]) == len(expected)


def test_p02_a_base_model_is_read_plainly_with_one_warning(tmp_path: Any) -> None:
    folder = build("llama", tmp_path / "base", 0)
    chat = ChatEnsemble(members={"base": str(folder)}, max_tokens=2)
    with pytest.warns(EnsembleWarning, match="'base' has no chat template"):
        chat.invoke(HELLO)
    chat.invoke(HELLO)  # a second warning would be an error here


@pytest.mark.parametrize("main", ["facts", "stories"])
def test_p07_tools_reach_every_members_prompt(main: str) -> None:
    chat = ChatEnsemble.demo(max_tokens=60).solo(main)
    bare = chat.get_num_tokens_from_messages([*HELLO])
    with_tools = chat.get_num_tokens_from_messages([*HELLO], tools=[country_fact])
    assert with_tools > bare + 20
    answer = chat.bind_tools([country_fact], tool_choice="any").invoke(HELLO)
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["input_tokens"] == with_tools


def test_p07_the_last_turn_may_be_a_tools() -> None:
    chat = ChatEnsemble.demo(max_tokens=8).bind_tools([country_fact])
    call = {"name": "country_fact", "args": {"country": "Peru", "field": "capital"}, "id": "abc123"}
    turns = [HumanMessage("Capital of Peru?"), AIMessage("", tool_calls=[call])]
    assert chat.invoke([*turns, ToolMessage("Lima", tool_call_id="abc123")]).usage_metadata


def test_p08_objects_are_valid_whatever_members_think() -> None:
    chat = ChatEnsemble.demo(max_tokens=60, temperature=1.0)
    for seed in range(5):
        assert isinstance(chat.with_structured_output(Answer, seed=seed).invoke("Hi"), Answer)


def test_p09_cache_never_gives_another_models_answer() -> None:
    cache = InMemoryCache()
    chat = ChatEnsemble.demo(max_tokens=8, cache=cache)
    asks: list[dict[str, Any]] = [{}, {"model": "facts"}, {"model": "stories"}, {"max_tokens": 3}]
    first = [chat.invoke(HELLO, **ask) for ask in asks]
    again = [chat.invoke(HELLO, **ask) for ask in asks]
    assert [m.response_metadata for m in again] == [m.response_metadata for m in first]
    names = [m.response_metadata["model_name"] for m in first]
    assert names == [chat.model_name, "facts", "stories", chat.model_name]
    assert first[0].text != first[3].text
    other = ChatEnsemble.demo(max_tokens=8, cache=cache, main="stories").invoke(HELLO)
    fingerprint = other.response_metadata["system_fingerprint"]
    assert fingerprint != first[0].response_metadata["system_fingerprint"]


def test_p10_conversations_are_counted_without_weights() -> None:
    chat = ChatEnsemble.demo(local_files_only=True)  # another engine than the loaded one
    assert chat.get_num_tokens_from_messages([*HELLO], tools=[country_fact]) > 20
    assert len(chat.get_token_ids("one two")) == chat.get_num_tokens("one two") > 0
    assert not chat.engine.loaded


def test_p16_nothing_is_cut_to_fit() -> None:
    chat = ChatEnsemble.demo(max_tokens=2)
    limit = (chat.profile or {})["max_input_tokens"]
    with pytest.raises(ContextOverflowError, match=str(limit)):
        chat.invoke([SystemMessage("Be brief."), HumanMessage("one two " * limit)])
    with pytest.raises(ContextOverflowError):
        list(chat.bind_tools([country_fact]).stream("one two " * limit))


def test_p17_what_is_known_is_told_whole_and_streamed() -> None:
    chat = ChatEnsemble.demo(max_tokens=6, logprobs=True)
    for message in (chat.invoke(HELLO), merged(chat.stream(HELLO))):
        told = message.response_metadata
        assert message.usage_metadata is not None
        entries = told["logprobs"]["content"]
        assert len(entries) in (message.usage_metadata["output_tokens"], 6)
        assert set(entries[0]["members"]) == {"facts", "stories"}
        summary = told["ensemble"]
        assert 0 <= summary["share_fused"] <= 1
        assert set(summary["agreement"]) == {"facts", "stories"}
        assert all(0 <= share <= 1 for share in summary["agreement"].values())
        assert min(summary["member_tokens"].values()) > 0
        assert len(json.dumps(summary)) < 4096


def test_p17_several_answers_are_all_given() -> None:
    chat = ChatEnsemble.demo(max_tokens=5, temperature=3.0, seed=3)
    (answers,) = chat.generate([[*HELLO]], n=3).generations
    assert len(answers) == 3
    assert len(dict.fromkeys(answer.text for answer in answers)) > 1


def test_p20_what_is_set_is_what_runs() -> None:
    alone = ChatEnsemble.demo(max_tokens=8, weights={"facts": 0.0, "stories": 1.0})
    both = ChatEnsemble.demo(max_tokens=8)
    told = both.invoke(HELLO, weights={"facts": 1.0, "stories": 0.0}).response_metadata
    assert told["ensemble"]["share_fused"] == 0.0
    assert alone.invoke(HELLO).usage_metadata
    with pytest.raises(ConfigError, match="dtype is fixed for an ensemble"):
        both.invoke(HELLO, dtype="float16")
