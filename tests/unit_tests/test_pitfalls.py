"""What users of other local LLM classes complain about (P1-P20), each once, with real members.

P7 (tools) and P8 (structured output) concern chat models only.
"""

from __future__ import annotations

import ast
import asyncio
import copy
import json
import pickle
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.runnables import ConfigurableField

import langchain_ensemble
from langchain_ensemble import ConfigError, EnsembleLLM, EnsembleWarning, Member, MemberError
from langchain_ensemble.fusion.unite import Unite
from langchain_ensemble.members import registry
from langchain_ensemble.testing.llm_tools import Recorder

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def members(shared: Path) -> dict[str, str]:
    models = shared / "models"
    return {"stories": str(models / "stories260K"), "baby": str(models / "babyllama-361")}


@pytest.fixture(scope="module", autouse=True)
def _kept(members: dict[str, str]) -> Iterator[None]:
    kept = EnsembleLLM(members=members, fusion="unite").load()  # one load for the module
    yield
    kept.unload()


@pytest.fixture
def make(members: dict[str, str]) -> Callable[..., EnsembleLLM]:
    def made(**settings: Any) -> EnsembleLLM:
        return EnsembleLLM(**{"members": members, "fusion": "unite", "max_tokens": 8, **settings})

    return made


Make = Callable[..., EnsembleLLM]


def test_p01_prompt_is_not_echoed(make: Make) -> None:
    llm = make()
    text = llm.invoke(PROMPT)
    assert PROMPT not in text
    assert "".join(llm.stream(PROMPT)) == text


def test_p02_chat_template_of_a_raw_member_is_told_once(
    make: Make, members: dict[str, str]
) -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    llm = make(
        members={"stories": Member(members["stories"], chat_template=template)}, fusion="average"
    )
    with pytest.warns(EnsembleWarning, match="members 'stories' have a chat template"):
        text = llm.invoke(PROMPT)
    assert llm.invoke(PROMPT) == text  # a second warning would be an error here


def test_p03_stop_over_token_borders_field_and_call(make: Make) -> None:
    text = make(max_tokens=20).invoke(PROMPT)
    inside = text[9:14]  # no token of any member's
    assert make(max_tokens=20).invoke(PROMPT, stop=[inside]) == text[: text.find(inside)]
    assert "".join(make(max_tokens=20).stream(PROMPT, stop=[inside])) == text[: text.find(inside)]
    early = text[3:6]
    for field, call in ((inside, early), (early, inside)):
        assert (
            make(max_tokens=20, stop=[field]).invoke(PROMPT, stop=[call])
            == text[: text.find(early)]
        )
    info = make(stop=[early]).generate([PROMPT]).generations[0][0].generation_info
    assert cast("dict[str, Any]", info)["stop"] == early


def test_p04_call_arguments_count_and_typos_are_errors(make: Make) -> None:
    llm = make()
    assert llm.invoke(PROMPT, max_new_tokens=2) == make(max_tokens=2).invoke(PROMPT)
    hot = [llm.invoke(PROMPT, temperature=3.0, seed=s) for s in range(3)]
    assert len(dict.fromkeys([*hot, llm.invoke(PROMPT)])) == 4
    assert llm.invoke(PROMPT, temperature=3.0, seed=1) == hot[1]
    with pytest.raises(ConfigError, match=r"'temprature'.*Did you mean 'temperature'"):
        llm.invoke(PROMPT, temprature=0.5)
    with pytest.raises(ConfigError, match=r"'temprature'.*Did you mean 'temperature'"):
        make(temprature=0.5)


async def test_p05_async_is_native(make: Make) -> None:
    llm = make()
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.005)
            ticks += 1

    ticking = asyncio.create_task(tick())
    whole = await llm.ainvoke(PROMPT)
    streamed = [text async for text in llm.astream(PROMPT)]
    batch = await llm.abatch([PROMPT, PROMPT])
    ticking.cancel()
    assert "".join(streamed) == whole
    assert batch == [whole, whole]
    assert ticks > 5  # the event loop was free meanwhile


class Breaks(Unite):
    """A fusion that fails at its third step."""

    name: ClassVar[str] = "breaks"

    def prepare(self, context: Any) -> Any:
        fuser, calls = super().prepare(context), iter(range(2))

        class Fuser:
            def __call__(self, *args: Any) -> Any:
                if next(calls, None) is None:
                    raise ArithmeticError("third step")
                return fuser(*args)

            def score(self, *args: Any) -> Any:
                return fuser.score(*args)

        return Fuser()


def test_p06_errors_in_a_stream_surface_at_once(make: Make) -> None:
    llm = make(fusion=Breaks())
    seen = Recorder()
    start = time.monotonic()
    got: list[str] = []
    with pytest.raises(ArithmeticError, match="third step"):
        got.extend(llm.stream(PROMPT, config={"callbacks": [seen]}))
    assert time.monotonic() - start < 5
    assert "".join(seen.tokens)
    assert [str(e) for e in seen.errors] == ["third step"]


def test_p06_nothing_is_computed_after_the_reader_left(make: Make) -> None:
    llm = make(max_tokens=100)
    opened: list[Any] = []
    engine = llm.engine
    admit = engine.open
    engine.open = lambda *a: opened.append(admit(*a)) or opened[-1]  # type: ignore[method-assign,func-returns-value]
    try:
        for _ in llm.stream(PROMPT):
            break
    finally:
        del engine.open  # type: ignore[method-assign]
    assert opened[0].done
    steps = opened[0].usage()[0].steps
    time.sleep(0.1)
    assert opened[0].usage()[0].steps == steps < 10


def test_p09_cache_never_gives_another_models_answer(make: Make, members: dict[str, str]) -> None:
    cache = InMemoryCache()
    made = {
        "unite": {},
        "union_k": {"fusion": {"name": "unite", "union_k": 3}},
        "object": {"fusion": Unite(union_k=2)},
        "own object": {"fusion": Breaks()},
        "another own object": {"fusion": Breaks()},
        "average": {"fusion": "average"},
        "main": {"main": "baby"},
        "vote": {"open_boundaries": "vote"},
        "weights": {"weights": {"stories": 0.9, "baby": 0.1}},
        "order": {"members": dict(reversed(members.items())), "main": "stories"},
        "stop": {"stop": ["e"]},
        "dtype": {"dtype": "bfloat16"},
        "one": {"members": {"stories": members["stories"]}},
    }
    for number, settings in enumerate(made.values()):
        llm = make(cache=cache, **settings)
        key = str(sorted({**llm.asdict(), "stop": None}.items()))
        assert cache.lookup(PROMPT, key) is None, list(made)[number]
        cache.update(PROMPT, key, [])
    calls: list[dict[str, Any]] = [{}, {"max_tokens": 2}, {"stop": ["a"]}, {"weights": (1.0, 0.0)}]
    fresh = [make().invoke(PROMPT, **call) for call in calls]
    cached = make(cache=InMemoryCache())
    for _ in range(2):
        assert [cached.invoke(PROMPT, **call) for call in calls] == fresh


def test_p09_cache_follows_an_assigned_field(make: Make) -> None:
    llm = make(cache=InMemoryCache())
    long = llm.invoke(PROMPT)
    llm.max_tokens = 2
    assert len(llm.invoke(PROMPT)) < len(long)


def test_p10_tokens_are_counted_by_main(make: Make, members: dict[str, str]) -> None:
    by_stories, by_baby = make(), make(main="baby")
    text = "Once upon a time there was a dog"
    assert 0 < by_stories.get_num_tokens(text) != by_baby.get_num_tokens(text) > 0
    usage = cast("dict[str, Any]", by_baby.generate([text]).llm_output)["token_usage"]
    assert usage["prompt_tokens"] - by_baby.get_num_tokens(text) in (0, 1, 2)  # bos, dummy prefix
    assert make(custom_get_token_ids=lambda t: [1, 2]).get_num_tokens(text) == 2


def test_p11_folders_need_no_network(members: dict[str, str]) -> None:
    """Sockets are off in these tests; and an id that is not in the cache says what to do."""
    alone = EnsembleLLM(members={"s": members["stories"]}, fusion="average", max_tokens=2)
    assert alone.invoke(PROMPT)
    llm = EnsembleLLM(members={"x": "nobody/nothing"}, local_files_only=True)
    with pytest.raises(MemberError, match="'x'"):
        llm.invoke(PROMPT)


def test_p12_many_threads(make: Make) -> None:
    llm = make(max_tokens=5)
    prompts = [PROMPT, "The dog", "Tom and"]
    wanted = [llm.invoke(p) for p in prompts]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(llm.invoke, prompts * 3)) == wanted * 3


def test_p13_a_model_is_loaded_once(make: Make, pico: Callable[..., Path]) -> None:
    folder = str(pico("gpt2", seed=13))

    def copies_in_memory() -> int:
        return sum("gpt2-13" in str(key) for key in registry.held())

    with make(members={"a": folder}, max_tokens=2) as llm:
        others = [
            llm.model_copy(),
            make(members=[folder], fusion="gac", max_tokens=2),
            llm.solo("a"),
        ]
        chain = llm.configurable_fields(temperature=ConfigurableField(id="t"))
        chain.with_config(configurable={"t": 0.5}).invoke(PROMPT)
        assert [o.invoke(PROMPT) for o in others] == [llm.invoke(PROMPT)] * 3
        assert copies_in_memory() == 1
    for other in others:
        other.unload()
    assert copies_in_memory() == 0


def test_p14_pickle_and_deepcopy(make: Make) -> None:
    llm = make()
    text = llm.invoke(PROMPT)  # loaded: locks, modules and caches exist
    for other in (pickle.loads(pickle.dumps(llm)), copy.deepcopy(llm)):
        assert other == llm
        assert other.invoke(PROMPT) == text


def test_p15_a_batch_is_one_padded_run(make: Make) -> None:
    llm = make()
    prompts = ["A", "Once upon a time there was a", "The dog and the cat"]
    wanted = [llm.invoke(p) for p in prompts]
    opened: list[int] = []
    engine = llm.engine
    admit = engine.open
    engine.open = lambda ps, r: opened.append(len(ps)) or admit(ps, r)  # type: ignore[method-assign,func-returns-value]
    try:
        assert llm.batch(prompts) == wanted
    finally:
        del engine.open  # type: ignore[method-assign]
    assert opened == [3]


def test_p16_context_is_never_cut_silently(make: Make) -> None:
    llm = make()
    long = "Once upon a time there was a little dog. " * 60
    with pytest.raises(ConfigError, match=r"(stories|baby)") as caught:
        llm.invoke(long)
    numbers = [
        int(w) for w in "".join(c if c.isdigit() else " " for c in str(caught.value)).split()
    ]
    assert len(numbers) >= 2, f"limit and length are not both told: {caught.value}"
    assert llm.invoke(PROMPT)


def test_p17_usage_finish_reason_and_logprobs(make: Make) -> None:
    result = make(logprobs=True).generate([PROMPT, "The dog"], n=2)
    output = cast("dict[str, Any]", result.llm_output)
    infos = [cast("dict[str, Any]", g.generation_info) for row in result.generations for g in row]
    assert [len(row) for row in result.generations] == [2, 2]
    assert output["model_name"] == "unite(stories+baby)"
    assert output["token_usage"]["completion_tokens"] == sum(
        i["usage"]["completion_tokens"] for i in infos
    )
    for info in infos:
        assert info["finish_reason"] == "length"
        assert info["ensemble"]["steps"] == 8 == len(info["logprobs"])
        assert all(entry["logprob"] <= 0 for entry in info["logprobs"])
        assert list(info["logprobs"][0]["members"]) == ["stories", "baby"]
    assert json.loads(json.dumps(infos)) == infos


def test_p18_device_is_any_and_no_two_settings_fight(make: Make, members: dict[str, str]) -> None:
    on_cpu = make(members={"s": Member(members["stories"], device="cpu")}, device_map="auto")
    assert on_cpu.invoke(PROMPT, max_tokens=2)
    with pytest.raises(ConfigError, match="give one of them"):
        make(device="cpu", device_map="auto")
    with pytest.raises((ConfigError, MemberError), match="cuda:7"):
        make(device="cuda:7").invoke(PROMPT)


def test_p19_no_pipeline_of_transformers(members: dict[str, str]) -> None:
    """Pipelines come and go between versions; the package builds on Auto classes alone."""
    package = Path(langchain_ensemble.__file__).parent
    found = [
        f"{path.name}: {name}"
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("transformers")
        for name in [node.module or "", *(alias.name for alias in node.names)]
        if "pipeline" in name.lower() or name == "TextIteratorStreamer"
    ]
    assert found == []


def test_p20_what_is_set_is_what_runs(make: Make) -> None:
    """One engine, one set of settings: nothing is forwarded through wrappers."""
    asked: list[Any] = []

    class Sees(BaseCallbackHandler):
        def on_llm_start(self, serialized: Any, prompts: Any, **kwargs: Any) -> None:
            asked.append(kwargs["invocation_params"])

    llm = make(temperature=0.4, seed=3)
    engine, ran = llm.engine, []
    admit = engine.open
    engine.open = lambda ps, r: ran.append(r) or admit(ps, r)  # type: ignore[method-assign,func-returns-value]
    try:
        llm.invoke(PROMPT, config={"callbacks": [Sees()]}, top_k=5)
        list(llm.bind(top_k=5).stream(PROMPT, config={"callbacks": [Sees()]}))
    finally:
        del engine.open  # type: ignore[method-assign]
    for told, request in zip(asked, ran, strict=True):
        assert (request.temperature, request.seed, request.top_k) == (0.4, 3, 5)
        assert (told["temperature"], told["seed"], told["top_k"]) == (0.4, 3, 5)
