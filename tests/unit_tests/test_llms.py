"""EnsembleLLM over a scripted engine: what LangChain sees, without torch."""

from __future__ import annotations

import asyncio
import copy
import gc
import json
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any, ClassVar, cast
from weakref import WeakValueDictionary

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.load import dumps
from langchain_core.runnables import ConfigurableField

from langchain_ensemble.adapter import engines
from langchain_ensemble.adapter.outputs import ending_info, logprob_entries
from langchain_ensemble.adapter.settings import FIXED
from langchain_ensemble.decoding.records import Finish, TokenRecord, Usage
from langchain_ensemble.errors import ConfigError, DeadlineError, EnsembleWarning
from langchain_ensemble.llms import EnsembleLLM
from langchain_ensemble.params import Member, RequestParams
from langchain_ensemble.testing import LLMContract
from langchain_ensemble.testing.llm_tools import Recorder, reload
from tests.scripted_engine import ScriptedEnsemble, default_script


@pytest.fixture(autouse=True)
def _scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "build_engine", lambda p, f: ScriptedEnsemble(p, fusion=f))
    monkeypatch.setattr(engines, "_handles", WeakValueDictionary())  # nothing of other tests
    monkeypatch.delenv("HF_TOKEN", raising=False)


class TestContract(LLMContract):
    def make_llm(self, **settings: Any) -> EnsembleLLM:
        return EnsembleLLM(members={"a": "hub/a", "b": "hub/b"}, **settings)


def make(**settings: Any) -> EnsembleLLM:
    return EnsembleLLM(**{"members": {"a": "hub/a", "b": "hub/b"}, **settings})


def scripted(llm: EnsembleLLM) -> ScriptedEnsemble:
    return cast("ScriptedEnsemble", llm.engine)


class TestConstruction:
    """Bad settings are a ConfigError on one line, before anything is read."""

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"temprature": 1}, "unknown EnsembleLLM setting 'temprature'. Did you mean 'temp"),
            ({"member": ["a"]}, "Did you mean 'members'?"),
            ({"members": []}, "needs at least one member"),
            ({"members": "gpt2"}, "give a list of Hub ids"),
            ({"members": {"a": {"model": "x", "dtyp": "auto"}}}, "Did you mean 'dtype'?"),
            ({"fusion": "depen"}, "unknown fusion 'depen'. Did you mean 'deepen'?"),
            ({"fusion": {"union_k": 3}}, "unknown fusion None"),
            ({"fusion": 3}, "fusion is 3; give one of 'average'"),
            ({"main": "c"}, "unknown main member 'c'"),
            ({"open_boundaries": "maybe"}, "open_boundaries='maybe'"),
            ({"weights": {"a": 0.5, "b": 0.6}}, "weights sum to 1.1 (a=0.5, b=0.6)"),
            ({"weights": (0.5, 0.25, 0.25)}, "3 entries for 2 members"),
            ({"weights": {"a": 1.0}}, "no entry for 'b'"),
            ({"weights": {"a": 1.5, "b": -0.5}}, "weight of member 'b' is -0.5"),
            ({"weights": {"a": float("nan"), "b": 1.0}}, "weight of member 'a' is nan"),
            ({"max_tokens": 0}, "max_tokens is 0; it must be at least 1"),
            ({"max_tokens": 3, "max_new_tokens": 4}, "which mean the same; give one of them"),
            ({"temperature": -1}, "temperature is -1.0"),
            ({"temperature": "warm"}, "temperature='warm'"),
            ({"timeout": 0}, "timeout is 0.0"),
            ({"stop": [""]}, "non-empty strings"),
            ({"dtype": "float8"}, "dtype='float8'"),
            ({"device": "cpu", "device_map": "auto"}, "give one of them"),
        ],
    )
    def test_refused(self, settings: dict[str, Any], said: str) -> None:
        with pytest.raises(ConfigError) as caught:
            make(**settings)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_members_are_needed(self) -> None:
        with pytest.raises(ConfigError, match="needs members="):
            EnsembleLLM()

    def test_forms_of_members(self) -> None:
        made = [
            make(members=["x/a", "x/b"]),
            make(members={"a": "x/a", "b": Member("x/b")}),
            make(members=[Member("x/a"), {"model": "x/b", "name": "b"}]),
        ]
        assert [llm.params for llm in made] == [made[0].params] * 3
        assert made[0] == made[1]

    def test_defaults_hold_for_members_that_do_not_say_otherwise(self) -> None:
        llm = make(
            members={"a": "x/a", "b": Member("x/b", dtype="bfloat16", device="cpu")},
            dtype="float32",
            device_map="auto",
            local_files_only=True,
            hf_token="hf_secret",
        )
        a, b = llm.params.members
        assert (a.dtype, a.device, a.device_map, a.local_files_only) == (
            *("float32", None, "auto"),
            True,
        )
        assert (b.dtype, b.device, b.device_map) == ("bfloat16", "cpu", None)
        assert a.token is not None
        assert a.token.get_secret_value() == "hf_secret"

    def test_alias(self) -> None:
        assert make(max_new_tokens=7).max_tokens == 7
        assert make(max_tokens=7).request(max_new_tokens=3).max_tokens == 3

    def test_one_stop_string_is_not_its_letters(self) -> None:
        llm = make(stop="END")
        assert llm.stop == ("END",)
        assert llm.request("x").stop == ("END", "x")
        assert llm.request(["END", "x", "x"]).stop == ("END", "x")

    def test_construction_is_cheap(self) -> None:
        start = time.perf_counter()
        for _ in range(50):
            make()
        assert time.perf_counter() - start < 2.0

    def test_import_reads_no_torch(self) -> None:
        code = (
            "import sys, langchain_ensemble as e; e.EnsembleLLM(members=['a', 'b']).asdict();"
            "print([m for m in ('torch', 'transformers') if m in sys.modules])"
        )
        out = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
        )
        assert out.stdout.strip() == "[]"

    def test_version_stamp(self) -> None:
        versions = cast("dict[str, Any]", make().metadata)["lc_versions"]
        assert {"langchain-core", "langchain-ensemble"} <= versions.keys()


class TestPerCall:
    @pytest.mark.parametrize("name", FIXED)
    def test_fixed_settings_are_refused(self, name: str) -> None:
        llm = make()
        with pytest.raises(ConfigError, match=f"{name} is fixed for an ensemble"):
            llm.invoke("x", **{name: None})
        with pytest.raises(ConfigError, match=f"{name} is fixed for an ensemble"):
            list(llm.stream("x", **{name: None}))

    def test_every_request_field_may_change(self) -> None:
        llm = make()
        changed: dict[str, Any] = {
            "max_tokens": 3, "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1,
            "repetition_penalty": 1.1, "seed": 4, "n": 2, "stop": ["zzz"], "timeout": 9.0,
            "weights": {"a": 0.25, "b": 0.75}, "logprobs": True, "speculation": "off",
            "cache_salt": "mine", "gate": "threshold", "contexts": {"a": "text"}, "trace": True,
            "abstain_below": 0.1,
        }  # fmt: skip
        assert changed.keys() == RequestParams.model_fields.keys()
        for apart in ("n", "abstain_below"):  # one answer is refused, not one of several
            given = {name: value for name, value in changed.items() if name != apart}
            llm.generate(["x"], **given)
            asked = scripted(llm).opened[-1].request
            assert asked == RequestParams(**{**given, "stop": ("zzz",)})
        llm.invoke("x")
        assert scripted(llm).opened[-1].request == RequestParams()

    def test_call_arguments_reach_traces(self) -> None:
        seen: list[dict[str, Any]] = []

        class Handler(BaseCallbackHandler):
            def on_llm_start(self, serialized: Any, prompts: Any, **kwargs: Any) -> None:
                seen.append(kwargs["invocation_params"] | (kwargs["metadata"] or {}))

        config: Any = {"callbacks": [Handler()]}
        make().invoke("x", config=config, temperature=0.5, seed=1)
        list(make().stream("x", config=config, temperature=0.5, max_new_tokens=4))
        assert [s["temperature"] for s in seen] == [0.5, 0.5]

    def test_n_answers(self) -> None:
        result = make().generate(["x", "y"], n=3)
        assert [len(g) for g in result.generations] == [3, 3]
        texts = [g.text for row in result.generations for g in row]
        assert texts == [default_script(p, i) for p in "xy" for i in range(3)]
        counts = result.llm_output["token_usage"]  # type: ignore[index]
        assert counts["prompt_tokens"] == 2  # one a prompt, whatever n
        assert counts["completion_tokens"] == sum(len(t.split()) for t in texts)

    def test_stream_is_one_answer(self) -> None:
        assert "".join(make(n=3).stream("x")) == make(n=3).invoke("x")
        with pytest.raises(ConfigError, match="n=2 in a stream"):
            list(make().stream("x", n=2))

    def test_a_batch_is_one_request(self) -> None:
        llm = make()
        llm.batch(["x", "y", "z"])
        assert [d.prompts for d in scripted(llm).opened] == [["x", "y", "z"]]


class TestResults:
    def test_generation_info(self) -> None:
        whole = make(stop=["this"]).generate(["x"], logprobs=True).generations[0][0]
        info = cast("dict[str, Any]", whole.generation_info)
        assert whole.text == " you said 'x', and "
        assert info["finish_reason"] == "stop"
        assert info["stop"] == "this"
        assert info["usage"] == {"prompt_tokens": 1, "completion_tokens": 5, "total_tokens": 6}
        assert info["ensemble"]["share_fused"] == 1.0
        assert [e["token"] for e in info["logprobs"]][:2] == [" you", " said"]
        assert info["logprobs"][0]["members"] == {"a": -0.5, "b": -0.5}
        assert json.loads(json.dumps(info)) == info

    def test_no_logprobs_unless_asked(self) -> None:
        (generation,) = make().generate(["x"]).generations[0]
        assert "logprobs" not in cast("dict[str, Any]", generation.generation_info)

    def test_merged_chunks_are_the_whole(self) -> None:
        llm = make(logprobs=True)
        chunks = list(llm._stream("x"))
        assert [bool((c.generation_info or {}).get("finish_reason")) for c in chunks] == [
            *[False] * (len(chunks) - 1),
            True,
        ]
        merged = reduce(lambda a, b: a + b, chunks)
        whole = llm.generate(["x"]).generations[0][0]
        assert (merged.text, merged.generation_info) == (whole.text, whole.generation_info)

    def test_bytes_that_are_no_text(self) -> None:
        finish = Finish("length", dropped=b"\xe2\x82", full_member="a")
        info = ending_info(finish, Usage(1, 2, 0, 0), "m")
        assert info["dropped_bytes"] == "e282"
        assert info["full_member"] == "a"
        assert info["ensemble"]["share_fused"] == 0.0
        token = TokenRecord(None, b"\xe2\x82", -1.0, {"a": None}, False)
        assert logprob_entries([token])[0]["token"] == r"\xe2\x82"

    def test_empty_answer_streams_one_chunk(self) -> None:
        llm = make()
        scripted(llm).script = lambda prompt, answer: ""
        assert llm.invoke("x") == ""
        assert list(llm.stream("x")) == [""]
        assert make().generate([]).generations == []


class TestSharing:
    """One engine for equal settings; nobody frees what another uses."""

    def test_copies_share_the_engine(self) -> None:
        llm = make()
        llm.load()
        others = [
            make(),
            make(temperature=1.0, weights=(1.0, 0.0)),
            llm.model_copy(update={"temperature": 0.5}),
            llm.model_copy(deep=True),
            copy.deepcopy(llm),
            copy.copy(llm),
            pickle.loads(pickle.dumps(llm)),
            reload(llm),
        ]
        assert all(other.engine is llm.engine for other in others)
        assert make(main="b").engine is not llm.engine
        assert make(hf_token="t").engine is not llm.engine
        assert scripted(llm).loads == 1

    def test_configurable_fields_do_not_load_again(self) -> None:
        llm = make()
        chain = llm.configurable_fields(temperature=ConfigurableField(id="t"))
        for t in (0.1, 0.2, 0.3):
            chain.with_config(configurable={"t": t}).invoke("x")
        assert scripted(llm).loads == 1
        assert [d.request.temperature for d in scripted(llm).opened] == [0.1, 0.2, 0.3]

    def test_copy_outlives_original(self) -> None:
        llm = make()
        llm.invoke("x")
        engine = scripted(llm)
        llm = llm.model_copy(update={"temperature": 0.5})
        gc.collect()
        llm.invoke("x")
        assert (engine.loads, engine.unloads) == (1, 0)
        assert llm.engine is engine

    def test_unload_waits_for_other_users(self) -> None:
        one, two, idle = make(), make(), make()
        one.invoke("x")
        two.invoke("x")
        engine = scripted(one)
        idle.unload()
        assert engine.loaded
        one.unload()
        assert engine.loaded
        two.unload()
        assert not engine.loaded
        one.invoke("x")
        assert engine.loads == 2

    def test_unload_of_a_copy_keeps_the_original(self) -> None:
        llm = make()
        llm.invoke("x")
        other = llm.model_copy()
        other.invoke("x")
        other.unload()
        assert scripted(llm).loaded

    def test_context_manager_frees(self) -> None:
        with make() as llm:
            engine = scripted(llm.load())
            assert engine.loaded
        assert not engine.loaded

    def test_dropping_the_last_frees(self) -> None:
        llm = make()
        engine = scripted(llm.load())
        del llm
        gc.collect()
        wait_until(lambda: engine.unloads == 1)

    def test_changed_settings_load_before_old_ones_go(self) -> None:
        llm = make()
        old = scripted(llm.load())
        llm.main = "b"
        assert llm.asdict()["main"] == "b"
        assert llm.get_token_ids("some words")
        assert not scripted(llm).loaded  # neither reads weights
        gc.collect()
        time.sleep(0.05)
        assert old.unloads == 0
        llm.invoke("x")
        assert scripted(llm).loads == 1
        wait_until(lambda: old.unloads == 1)

    def test_solo_keeps_settings(self) -> None:
        llm = make(temperature=0.5, weights={"a": 0.25, "b": 0.75}, dtype="float32")
        alone = llm.solo("b")
        assert alone.params.names == ("b",)
        assert alone.params.members[0] == llm.params.members[1]
        assert (alone.main, alone.weights, alone.temperature) == ("b", "uniform", 0.5)
        assert alone.invoke("x")
        with pytest.raises(ConfigError, match="unknown member 'c'"):
            llm.solo("c")

    def test_model_copy_checks_names(self) -> None:
        with pytest.raises(ConfigError, match="Did you mean 'temperature'"):
            make().model_copy(update={"temprature": 1})
        assert make().model_copy(update={"members": ["x/c"]}).params.names == ("c",)


class MyFusion:
    name: ClassVar[str] = "mine"
    needs = None

    def __init__(self, strength: float) -> None:
        self.strength = strength

    def settings(self) -> dict[str, Any]:
        return {"strength": self.strength}

    def prepare(self, context: Any) -> Any:
        return context


class TestIdentity:
    def test_users_fusion_objects_are_told_apart(self) -> None:
        one, two = MyFusion(1.0), MyFusion(1.0)
        a, b = make(fusion=one), make(fusion=two)
        assert a.asdict() != b.asdict()
        assert make(fusion=one).asdict() == a.asdict()
        assert a.model_name == "mine(a+b)"
        assert scripted(a).fusion is one
        assert scripted(a) is not scripted(b)
        assert json.loads(json.dumps(a.asdict()))["fusion"]["settings"] == {"strength": 1.0}

    def test_no_secret_is_written(self, tmp_path: Path) -> None:
        member = {"model": "x/b", "token": "hf_of_b"}
        llm = make(members={"a": "x/a", "b": member}, hf_token="hf_of_all")
        path = tmp_path / "e.yaml"
        llm.to_config(path)
        written = [dumps(llm), json.dumps(llm.asdict()), repr(llm), str(llm), path.read_text()]
        assert not [text for text in written if "hf_of" in text]
        with pytest.raises(ConfigError) as caught:
            make(members={"a": "x/a", "b": member}, hf_token="hf_of_all", temperature="warm")
        assert "hf_of" not in str(caught.value)

    def test_token_comes_from_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_TOKEN", "hf_env")
        llm = make()
        assert llm.hf_token is not None
        assert json.loads(dumps(llm))["kwargs"]["hf_token"]["id"] == ["HF_TOKEN"]
        assert make().hf_token == llm.hf_token
        read = reload(llm, secrets_from_env=True)
        assert read.hf_token == llm.hf_token  # type: ignore[attr-defined]

    def test_serialized_is_never_stale(self) -> None:
        llm = make()
        assert llm._serialized["kwargs"]["max_tokens"] == 256
        llm.max_tokens = 5
        assert llm._serialized["kwargs"]["max_tokens"] == 5


class TestConfig:
    def test_round_trip(self, tmp_path: Path) -> None:
        llm = make(
            members={"a": "x/a", "b": Member("x/b", dtype="float16")},
            fusion={"name": "unite", "union_k": 5},
            weights={"a": 0.25, "b": 0.75},
            stop=["\n", "é"],
            main="b",
        )
        path = tmp_path / "ensemble.yaml"
        config = llm.to_config(path)
        assert config == json.loads(json.dumps(config))
        assert EnsembleLLM.from_config(path) == llm
        assert EnsembleLLM.from_config(config) == llm
        assert "temperature" not in config

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("members: [", "is not YAML"),
            ("- a\n- b", "no mapping"),
            ("members: {a: x/a}\nfussion: unite", "Did you mean 'fusion'"),
        ],
    )
    def test_bad_files(self, tmp_path: Path, text: str, said: str) -> None:
        path = tmp_path / "e.yaml"
        path.write_text(text)
        with pytest.raises(ConfigError, match=said):
            EnsembleLLM.from_config(path)

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="cannot read the configuration"):
            EnsembleLLM.from_config(tmp_path / "none.yaml")

    def test_own_fusion_is_no_text(self) -> None:
        with pytest.raises(ConfigError, match="which a configuration cannot hold"):
            make(fusion=MyFusion(1.0)).to_config()


class TestRunning:
    def test_deadline_carries_the_partial_text(self) -> None:
        llm = make(timeout=0.01)
        scripted(llm).step_seconds = 0.02
        with pytest.raises(DeadlineError) as caught:
            llm.invoke("x")
        assert caught.value.partial == ["partial"]

    def test_error_frees_and_the_next_call_is_right(self) -> None:
        llm = make()
        scripted(llm).fail_at = (3, MemoryError("no room"))
        with pytest.raises(MemoryError):
            list(llm.stream("x"))
        scripted(llm).fail_at = None
        assert scripted(llm).running == 0
        assert llm.invoke("x") == default_script("x", 0)

    def test_early_close_frees_at_once(self) -> None:
        llm, keeps_the_error = make(), Recorder()
        stream = cast("Any", llm.stream("x", config={"callbacks": [keeps_the_error]}))
        next(stream)
        assert scripted(llm).running == 1
        stream.close()
        assert scripted(llm).running == 0
        assert scripted(llm).steps == 1

    async def test_cancel_while_loading_returns_at_once(self) -> None:
        llm = make()
        scripted(llm).load_seconds = 1.0
        task = asyncio.create_task(llm.ainvoke("x"))
        await asyncio.sleep(0.05)
        start = time.perf_counter()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.perf_counter() - start < 0.7
        await asyncio.to_thread(wait_until, lambda: bool(scripted(llm).opened))
        await asyncio.to_thread(wait_until, lambda: scripted(llm).running == 0)
        assert scripted(llm).steps <= 1

    async def test_cancel_in_a_step_stops_after_it(self) -> None:
        llm = make()
        engine = scripted(llm)
        engine.step_seconds = 0.1
        task = asyncio.create_task(llm.ainvoke("x"))
        await asyncio.to_thread(wait_until, lambda: engine.steps == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(wait_until, lambda: engine.running == 0)
        assert engine.steps == 1

    async def test_empty_lists_of_callbacks(self) -> None:
        llm = make()
        assert await llm.ainvoke("x", config={"callbacks": []}) == llm.invoke("x")
        assert (await llm.agenerate([], callbacks=[])).generations == []

    async def test_closed_async_stream_frees(self) -> None:
        llm = make()
        stream = llm.astream("x")
        assert await anext(stream)
        await cast("Any", stream).aclose()
        await asyncio.to_thread(wait_until, lambda: scripted(llm).running == 0)
        assert scripted(llm).steps == 1

    async def test_loop_is_free_while_steps_run(self) -> None:
        llm = make()
        scripted(llm).step_seconds = 0.05
        task = asyncio.create_task(llm.ainvoke("x"))
        ticks = 0
        while not task.done():
            await asyncio.sleep(0.01)
            ticks += 1
        assert ticks > 10

    def test_log_has_no_prompt(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level("INFO", logger="langchain_ensemble"):
            make().invoke("my secret prompt")
        assert "1 prompts" in caplog.text
        assert "secret" not in caplog.text

    def test_chat_template_warns_once(self) -> None:
        llm = make(members={"a": Member("x/a", chat_template="{{ messages }}"), "b": "x/b"})
        with pytest.warns(EnsembleWarning, match="members 'a' have a chat template"):
            llm.invoke("x")
        llm.invoke("x")  # a second warning would be an error


def wait_until(true: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
