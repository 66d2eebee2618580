"""Traces, confidence and refusal as LangChain's callers see them."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.globals import get_llm_cache, set_llm_cache
from langchain_core.load import dumps
from langchain_core.prompts import PromptTemplate

from langchain_ensemble import AbstainedError, ChatEnsemble, ConfigError, EnsembleLLM
from langchain_ensemble.confidence import ConfidenceMap
from langchain_ensemble.trace import Trace, tracing
from langchain_ensemble.trace.summary import LIMIT

KNOWN = "Question: What is the capital of Italy?\nAnswer:"
UNKNOWN = "The seven secrets of xyzzy are"
ROME = " The capital of Italy is Rome."
SHORT: dict[str, Any] = {"max_tokens": 12}


@pytest.fixture(scope="module")
def llm() -> Iterator[EnsembleLLM]:
    with EnsembleLLM.demo(fusion="unite", max_tokens=12) as made:
        yield made.load()


@pytest.fixture(scope="module")
def chat() -> Iterator[ChatEnsemble]:
    with ChatEnsemble.demo(fusion="unite", max_tokens=12) as made:
        yield made.load()


def info(llm: EnsembleLLM, prompt: str = KNOWN, **asked: Any) -> dict[str, Any]:
    found = llm.generate([prompt], **asked).generations[0][0].generation_info
    assert found is not None
    return found


# metadata


def test_who_asks_for_nothing_is_told_nothing(llm: EnsembleLLM, chat: ChatEnsemble) -> None:
    assert info(llm)["ensemble"].keys() == {"steps", "share_fused", "member_tokens"}
    told = chat.invoke("Hi").response_metadata["ensemble"]
    assert not {"confidence", "trace"} & told.keys()


def test_an_answer_says_how_sure_it_is(llm: EnsembleLLM) -> None:
    known = info(llm, logprobs=True)
    sure = known["ensemble"]["confidence"]
    assert "trace" not in known["ensemble"]
    assert (
        sure["confidence"]
        > info(llm, UNKNOWN, logprobs=True)["ensemble"]["confidence"]["confidence"]
    )
    assert not sure["calibrated"]
    (sentence,) = sure["least_sure"]
    assert ROME[sentence["start"] : sentence["end"]] == ROME.strip()
    entries = known["logprobs"]
    apart = [entry["disagreement"] for entry in entries]
    assert sure["mean_disagreement"] == pytest.approx(sum(apart) / len(apart), abs=1e-6)
    assert sure["max_disagreement"] == pytest.approx(max(apart), abs=1e-6)
    mean = sum(entry["logprob"] for entry in entries) / len(entries)
    assert sure["mean_logprob"] == pytest.approx(mean, abs=1e-6)


def test_a_trace_in_metadata_is_small_and_json(llm: EnsembleLLM, chat: ChatEnsemble) -> None:
    answer = llm.generate([KNOWN], trace=True)
    told = info(llm, trace=True)["ensemble"]["trace"]
    assert told["tokens"] == 9
    assert len(json.dumps(told)) <= LIMIT
    assert "Rome" in dumps(answer)
    message = chat.invoke("What is the capital of Italy?", trace=True)
    own = message.response_metadata["ensemble"]
    assert json.loads(json.dumps(own))["trace"]["tokens"] == own["steps"]
    assert own["confidence"]["confidence"] > 0.3


def test_streams_tell_it_on_the_last_chunk(llm: EnsembleLLM, chat: ChatEnsemble) -> None:
    class Ends(BaseCallbackHandler):
        seen: list[dict[str, Any]] = []  # noqa: RUF012

        def on_llm_end(self, response: Any, **_: Any) -> None:
            self.seen.append(response.generations[0][0].generation_info)

    handler = Ends()
    list(llm.stream(KNOWN, trace=True, config={"callbacks": [handler]}))
    whole = info(llm, trace=True)["ensemble"]
    streamed = handler.seen[-1]["ensemble"]
    for told in (streamed["confidence"], whole["confidence"]):
        del told["least_sure"]
    assert streamed["confidence"] == pytest.approx(whole["confidence"], abs=1e-4)
    assert streamed["trace"]["decided"] == whole["trace"]["decided"]
    chunks = list(chat.stream("What is the capital of Italy?", trace=True))
    last = [c for c in chunks if "ensemble" in c.response_metadata]
    assert last == chunks[-1:]
    assert last[0].response_metadata["ensemble"]["trace"]["tokens"] > 3


# whole traces


def test_traced_gives_the_answer_and_its_trace(llm: EnsembleLLM, chat: ChatEnsemble) -> None:
    result = llm.traced(KNOWN)
    assert result.answer == result.text == ROME
    assert result.trace.prompt == KNOWN
    assert result.trace.members == ("facts", "stories")
    assert Trace.from_json(result.trace.to_json()) == result.trace
    assert "capital</span>" in result.trace.to_html()
    assert result._repr_html_().startswith("<iframe")
    assert re.fullmatch(r"Traced\('.*', \d+ tokens, confidence 0\.\d\d\)", repr(result))
    said = chat.traced("What is the capital of Italy?")
    assert said.answer.text == said.text
    assert "What is the capital of Italy?" in said.trace.prompt
    assert said.trace.finish_reason == said.answer.response_metadata["finish_reason"]


def test_tracing_follows_chains_batches_streams_threads_and_tasks(llm: EnsembleLLM) -> None:
    chain = PromptTemplate.from_template("Question: {q}\nAnswer:") | llm
    with tracing() as traces:
        assert chain.invoke({"q": "What is the capital of Italy?"}) == ROME
        chain.batch([{"q": "Where is Peru?"}, {"q": "Where is Chad?"}])
        list(chain.stream({"q": "Where is Cuba?"}))
        asyncio.run(chain.ainvoke({"q": "Where is Mali?"}))
    places = [trace.prompt.split()[-2] for trace in traces]
    assert sorted(places) == sorted(["Italy?", "Peru?", "Chad?", "Cuba?", "Mali?"])
    assert all(token.trace is not None for trace in traces for token in trace.tokens)
    assert all(0 <= second < 600 for trace in traces for second in trace.seconds)
    llm.invoke(KNOWN)
    assert len(traces) == 5


def test_a_traced_answer_is_decoded_even_where_the_cache_has_it(llm: EnsembleLLM) -> None:
    before = get_llm_cache()
    set_llm_cache(InMemoryCache())
    try:
        with tracing() as traces:
            llm.invoke(KNOWN)
            llm.invoke(KNOWN)
        assert len(traces) == 1
        assert llm.traced(KNOWN).text == ROME
    finally:
        set_llm_cache(before)


def test_a_trace_has_the_tokens_of_a_call_too(chat: ChatEnsemble) -> None:
    tool = {
        "name": "country",
        "description": "Facts about a country",
        "parameters": {"type": "object", "properties": {"name": {"type": "string"}}},
    }
    bound = chat.bind_tools([tool], tool_choice="any")
    with tracing() as traces:
        message: Any = bound.invoke("Look up Peru.", max_tokens=60)
    (trace,) = traces
    assert message.tool_calls or message.invalid_tool_calls
    assert trace.finish_reason == message.response_metadata["finish_reason"]
    assert "country" in "".join(trace.texts)
    assert trace.to_html()


# refusal


def test_an_unsure_answer_is_refused_at_its_end(llm: EnsembleLLM, chat: ChatEnsemble) -> None:
    with pytest.raises(AbstainedError, match=r"0\.\d+ sure .* abstain_below=0\.999") as caught:
        llm.invoke(KNOWN, abstain_below=0.999)
    assert caught.value.answer == ROME
    assert 0 < caught.value.confidence < caught.value.limit == 0.999
    assert llm.invoke(KNOWN, abstain_below=caught.value.confidence - 1e-4) == ROME
    with pytest.raises(AbstainedError):
        chat.invoke("Hi", abstain_below=1.0)
    with pytest.raises(AbstainedError):
        asyncio.run(llm.ainvoke(KNOWN, abstain_below=1.0))
    with pytest.raises(AbstainedError):
        asyncio.run(chat.ainvoke("Hi", abstain_below=1.0))


def test_a_stream_gives_its_text_first(llm: EnsembleLLM, chat: ChatEnsemble) -> None:
    said: list[str] = []
    with pytest.raises(AbstainedError):
        said.extend(llm.stream(KNOWN, abstain_below=1.0))
    assert "".join(said) == ROME

    async def collect() -> None:
        async for chunk in chat.astream("What is the capital of Italy?", abstain_below=1.0):
            said.append(chunk.text)

    said.clear()
    with pytest.raises(AbstainedError) as caught:
        asyncio.run(collect())
    assert "".join(said) == caught.value.answer != ""


@pytest.mark.parametrize("how", ["batch", "abatch"])
def test_each_of_a_batch_is_refused_for_itself(llm: EnsembleLLM, how: str) -> None:
    prompts: list[Any] = [KNOWN, UNKNOWN, KNOWN]
    careful = llm.bind(abstain_below=0.8)
    if how == "batch":
        found: list[Any] = careful.batch(prompts, return_exceptions=True)
    else:
        found = asyncio.run(careful.abatch(prompts, return_exceptions=True))
    assert found[0] == found[2] == ROME
    assert isinstance(found[1], AbstainedError)
    with pytest.raises(AbstainedError):
        llm.batch(prompts, abstain_below=0.8)
    assert llm.batch(prompts[:1], abstain_below=0.8, config={"max_concurrency": 1}) == [ROME]


def test_generate_is_all_or_nothing(llm: EnsembleLLM) -> None:
    with pytest.raises(AbstainedError):
        llm.generate([KNOWN, UNKNOWN], abstain_below=0.8)
    with pytest.raises(ConfigError, match="n=2: it refuses one answer"):
        llm.generate([KNOWN], abstain_below=0.8, n=2)


def test_a_fallback_answers_for_it(llm: EnsembleLLM) -> None:
    only = (AbstainedError,)
    careful = llm.bind(abstain_below=0.8).with_fallbacks(
        [llm.bind(stop=["."])], exceptions_to_handle=only
    )
    assert careful.invoke(KNOWN) == ROME
    assert careful.invoke(UNKNOWN) == llm.invoke(UNKNOWN, stop=["."])


def test_a_refused_answer_is_traced_and_not_cached(llm: EnsembleLLM) -> None:
    before = get_llm_cache()
    set_llm_cache(InMemoryCache())
    try:
        with tracing() as traces:
            for _ in range(2):
                with pytest.raises(AbstainedError):
                    llm.invoke(KNOWN, abstain_below=1.0)
        assert [trace.text for trace in traces] == [ROME, ROME]
    finally:
        set_llm_cache(before)


# calibration


def test_a_calibration_makes_a_probability_of_it(llm: EnsembleLLM, tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    texts = [f"Question: What is the capital of {c}?" for c in ("Peru", "Chad", "Cuba", "Mali")]
    llm.calibrate(texts * 3, method="uniform", file=file)
    kept = json.loads(file.read_text("utf-8"))
    made = ConfidenceMap(("mean_logprob", "overruled"), (0.5, -2.0), 0.25)
    file.write_text(json.dumps({**kept, "confidence": made.to_dict()}), "utf-8")
    known = llm.model_copy(update={"calibration": str(file)})
    raw = info(llm, logprobs=True)["ensemble"]["confidence"]
    sure = info(known, logprobs=True)["ensemble"]["confidence"]
    assert (raw["calibrated"], sure["calibrated"]) == (False, True)
    expected = 1 / (1 + math.exp(-(0.25 + 0.5 * raw["mean_logprob"])))
    assert sure["confidence"] == pytest.approx(expected, abs=1e-5)
    with pytest.raises(AbstainedError) as caught:
        known.invoke(KNOWN, abstain_below=0.9)
    assert caught.value.confidence == pytest.approx(expected, abs=1e-5)
    with pytest.raises(AbstainedError) as engines:
        known.engine.generate([KNOWN], known.request(abstain_below=0.9))
    assert engines.value.confidence == pytest.approx(expected, abs=1e-5)
    others = info(known, logprobs=True, weights=(0.5, 0.5))["ensemble"]["confidence"]
    assert not others["calibrated"]
    assert others["confidence"] == pytest.approx(raw["confidence"], abs=1e-4)
