"""ChatEnsemble over a scripted engine: what LangChain sees, without torch."""

from __future__ import annotations

import asyncio
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast
from weakref import WeakValueDictionary

import pytest
from langchain.chat_models import init_chat_model
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import get_usage_metadata_callback
from langchain_core.exceptions import ContextOverflowError, ModelNotFoundError
from langchain_core.load import dumps
from langchain_core.messages import HumanMessage
from langchain_core.rate_limiters import InMemoryRateLimiter
from langchain_core.runnables import ConfigurableField

from langchain_ensemble import ChatEnsemble, EnsembleLLM, register
from langchain_ensemble.adapter import engines
from langchain_ensemble.errors import (
    ConfigError,
    ContextError,
    DeadlineError,
    DownloadError,
    MemberError,
)
from langchain_ensemble.testing import ChatContract
from langchain_ensemble.testing.chat_tools import ChatRecorder, merged, v3
from tests.scripted_engine import ScriptedEnsemble, Thought, spelled_call


@pytest.fixture(autouse=True)
def _scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "build_engine", lambda p, f: ScriptedEnsemble(p, fusion=f))
    monkeypatch.setattr(engines, "_handles", WeakValueDictionary())  # nothing of other tests
    monkeypatch.delenv("HF_TOKEN", raising=False)


class TestContract(ChatContract):
    def make_chat(self, **settings: Any) -> ChatEnsemble:
        return ChatEnsemble(members={"a": "hub/a", "b": "hub/b"}, **settings)


def make(**settings: Any) -> ChatEnsemble:
    return ChatEnsemble(**{"members": {"a": "hub/a", "b": "hub/b"}, **settings})


def scripted(chat: ChatEnsemble) -> ScriptedEnsemble:
    return cast("ScriptedEnsemble", chat.engine)


class TestConstruction:
    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"temprature": 1}, "unknown ChatEnsemble setting 'temprature'. Did you mean 'temp"),
            ({"thinking": "on"}, "thinking='on'"),
            ({"tools_by": "aux"}, "tools_by='aux'"),
            ({"thinking_tokens": 0}, "thinking_tokens is 0; it must be at least 1"),
            ({"max_retries": -1}, "max_retries is -1"),
            ({"api_key": "x", "hf_token": "y"}, "hf_token and api_key, which mean the same"),
            ({"max_tokens": 0}, "max_tokens is 0"),
        ],
    )
    def test_wrong_settings(self, settings: dict[str, Any], said: str) -> None:
        with pytest.raises(ConfigError, match=re.escape(said)) as caught:
            make(**settings)
        assert "\n" not in str(caught.value)

    def test_api_key_is_the_hub_token(self) -> None:
        chat = make(api_key="hf_secret")
        assert chat.hf_token is not None
        assert chat.hf_token.get_secret_value() == "hf_secret"
        assert "hf_secret" not in repr(chat) + dumps(chat) + str(chat.asdict())

    def test_files_go_round(self, tmp_path: Path) -> None:
        chat = make(thinking="main", max_retries=5, tools_by="fused", weights={"a": 0.3, "b": 0.7})
        chat.to_config(tmp_path / "chat.yaml")
        assert ChatEnsemble.from_config(tmp_path / "chat.yaml") == chat
        assert "max_tokens" not in chat.to_config()

    def test_nothing_is_read_before_the_first_call(self) -> None:
        chat = make()
        chat.bind_tools([repr])
        chat.with_structured_output({"title": "s", "type": "object"})
        assert "b" in chat.model_name
        assert chat._lease._handle is not None
        assert chat._lease._handle._engine is None

    def test_parts_of_the_identity(self) -> None:
        plain = make().identity
        for changed in (
            make(thinking="each"),
            make(thinking_tokens=3),
            make(tools_by="fused"),
            make(temperature=1),
            make(main="b"),
        ):
            assert changed.identity != plain
        assert make(max_retries=0, streaming=True, timeout=None).identity == plain


class TestProfile:
    def test_limit_is_the_smallest_members(self, tmp_path: Path) -> None:
        for name, config in (
            ("a", {"max_position_embeddings": 900}),
            ("b", {"text_config": {"n_positions": 300}}),
            ("c", {"hidden_size": 3}),
        ):
            (tmp_path / name).mkdir()
            (tmp_path / name / "config.json").write_text(json.dumps(config))
        both = ChatEnsemble(members=[str(tmp_path / "a"), str(tmp_path / "b")])
        assert both.profile is not None
        assert both.profile["max_input_tokens"] == 300
        assert both.profile["max_output_tokens"] == 300
        assert both.profile["structured_output"] is True
        alone = both.solo("a")
        assert alone.profile is not None
        assert alone.profile["max_input_tokens"] == 900
        unknown = ChatEnsemble(members=[str(tmp_path / "a"), str(tmp_path / "c")])
        assert "max_input_tokens" not in (unknown.profile or {})

    def test_of_the_users_own_is_kept(self) -> None:
        chat = make(profile={"max_input_tokens": 7})
        assert chat.profile == {"max_input_tokens": 7}
        assert chat.model_copy(update={"max_tokens": 3}).profile == {"max_input_tokens": 7}

    def test_limits_are_known_once_loaded(self) -> None:
        chat = make()
        assert "max_input_tokens" not in (chat.profile or {})
        chat.load()
        assert chat.profile is not None
        assert chat.profile["max_input_tokens"] == scripted(chat).context

    def test_demo_reads_no_torch(self) -> None:
        code = (
            "import sys; from langchain_ensemble import ChatEnsemble as C; c = C.demo();"
            "print(c.profile['max_input_tokens'] > 0, 'torch' in sys.modules)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
        )
        assert done.stdout.split() == ["True", "False"]


class TestModelOverride:
    def test_a_member_alone(self) -> None:
        chat = make(weights={"a": 0.3, "b": 0.7})
        answer = chat.invoke("hi", model="b")
        assert answer.response_metadata["model_name"] == "b"
        assert answer.response_metadata["ensemble"]["member_tokens"].keys() == {"b"}
        assert chat.invoke("hi").response_metadata["model_name"] == "average(a+b)"
        own = chat.invoke("hi", model="average(a+b)")
        assert own.response_metadata["ensemble"]["member_tokens"].keys() == {"a", "b"}

    def test_is_built_once_and_freed(self) -> None:
        chat = make()
        chat.invoke("hi", model="b")
        first = chat._alone["b"]._handle
        chat.invoke("hi", model="b", temperature=1)
        assert chat._alone["b"]._handle is first
        assert first is not None
        alone = cast("ScriptedEnsemble", first.engine())
        assert alone.loads == 1
        chat.unload()
        assert alone.unloads == 1

    def test_unknown_and_contradicting(self) -> None:
        with pytest.raises(ConfigError, match="unknown model 'c'") as caught:
            make().invoke("hi", model="c")
        assert isinstance(caught.value, ModelNotFoundError)
        with pytest.raises(ConfigError, match="weights= has no meaning"):
            make().invoke("hi", model="a", weights={"a": 1.0, "b": 0.0})

    def test_cache_tells_members_apart(self) -> None:
        chat = make(cache=InMemoryCache())
        names = [chat.invoke("hi", **ask).response_metadata["model_name"] for ask in ASKS * 2]
        assert names == ["average(a+b)", "a", "b"] * 2


ASKS: list[dict[str, Any]] = [{}, {"model": "a"}, {"model": "b"}]


class TestCacheKeys:
    def test_everything_asked_for_is_in_the_key(self) -> None:
        tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
        other = {"type": "function", "function": {"name": "g", "parameters": {"type": "object"}}}
        asks: list[dict[str, Any]] = [
            {},
            {"temperature": 0.1},
            {"seed": 3},
            {"stop": ["x"]},
            {"n": 2},
            {"thinking": "main"},
            {"model": "a"},
            {"tools": [tool]},
            {"tools": [tool, other]},
            {"tools": [tool, other], "tool_choice": "f"},
            {"tools": [tool, other], "tool_choice": "any"},
            {"tools": [tool, other], "parallel_tool_calls": False},
            {"grammar": {"regex": "a"}},
            {"grammar": {"lark": "a"}},
            {"response_format": {"type": "json_object"}},
            {"response_format": {"type": "object", "title": "t"}},
        ]
        keys = [make()._get_llm_string(**ask) for ask in asks]
        assert len(dict.fromkeys(keys)) == len(keys)

    def test_same_request_however_asked_is_one_key(self) -> None:
        field = make(temperature=0.1, stop=["x"], thinking="main")
        call = make()._get_llm_string(stop=["x"], temperature=0.1, thinking="main")
        assert field._get_llm_string() != call  # fields are the model's identity
        assert make()._get_llm_string(max_tokens=3) == make()._get_llm_string(max_new_tokens=3)
        chat = make()
        before = chat._get_llm_string()
        chat.temperature = 1.0
        assert chat._get_llm_string() != before


class TestMessages:
    def test_metadata(self) -> None:
        told = make().invoke("hi").response_metadata
        assert told["model_provider"] == "ensemble"
        assert told["system_fingerprint"] == "fp_a_b"
        assert told["finish_reason"] == "stop"
        summary = told["ensemble"]
        assert summary["share_fused"] == 1.0
        assert summary["agreement"] == {"a": pytest.approx(0.606531), "b": pytest.approx(0.606531)}
        assert summary["member_tokens"] == {"a": summary["steps"], "b": summary["steps"]}
        assert "logprobs" not in told

    def test_logprobs(self) -> None:
        chat = make(logprobs=True)
        message = chat.invoke("hi")
        entries = message.response_metadata["logprobs"]["content"]
        assert "".join(entry["token"] for entry in entries) == message.text
        assert entries[0]["members"] == {"a": -0.5, "b": -0.5}
        assert merged(chat.stream("hi")).response_metadata == message.response_metadata
        assert v3(chat, "hi")[1].response_metadata["logprobs"] == {"content": entries}

    def test_thoughts_of_every_member(self) -> None:
        chat = make(thinking="each")
        message = chat.invoke("hi")
        assert message.text.startswith("you said")
        assert message.additional_kwargs["reasoning_content"] == "a thinks aa thinks b"
        assert message.additional_kwargs["thoughts"] == {"b": "b thinks ab thinks b"}
        assert message.usage_metadata is not None
        assert message.usage_metadata["output_token_details"] == {"reasoning": 4}
        blocks = [b["type"] for b in message.content_blocks]
        assert blocks == ["reasoning", "reasoning", "text"]
        again = chat.invoke(["hi", message, ("user", "and?")])
        assert again.text
        assert scripted(chat).asked[-1][0].messages[1].thought == "a thinks aa thinks b"

    @pytest.mark.parametrize("version", [None, "v1"])
    def test_text_thoughts_and_calls_stay_apart(self, version: str | None) -> None:
        settings = {} if version is None else {"output_version": version}
        chat = make(thinking="each", **settings).bind_tools([shout, count])
        scripted(make()).chat_script = lambda *_: [
            Thought("b", "hm"),
            Thought("a", "so"),
            "I call.",
            *spelled_call(0, "shout", {"text": "é"}),
            *spelled_call(1, "count", {"n": 3}),
        ]
        whole = [chat.invoke("hi"), merged(chat.stream("hi"))]
        for message in whole:
            assert message.text == "I call."
            kinds = [block["type"] for block in message.content_blocks]
            assert sorted(kinds) == ["reasoning", "reasoning", "text", "tool_call", "tool_call"]
            calls = [(c["name"], c["args"]) for c in message.tool_calls]
            assert calls == [("shout", {"text": "é"}), ("count", {"n": 3})]
            assert message.response_metadata["finish_reason"] == "tool_calls"
        events, assembled = v3(chat, "hi")
        assert [(c["name"], c["args"]) for c in assembled.tool_calls] == calls
        deltas = [e["delta"] for e in events if e["event"] == "content-block-delta"]
        fragments = [d["args"] for d in deltas if d["type"] == "tool-call-delta"]
        assert "".join(fragments) == '{"text": "é"}{"n": 3}'
        assert len(fragments) > 4
        assert [d["reasoning"] for d in deltas if d["type"] == "reasoning-delta"] == ["hm", "so"]

    def test_edited_content_is_read_by_langchain(self) -> None:
        """A message of ours, whose content somebody replaced by blocks, has those blocks."""
        block = {"type": "text", "text": "x"}
        message = make(thinking="main").invoke("hi").model_copy(update={"content": [block]})
        assert [b["type"] for b in message.content_blocks] == ["reasoning", "text"]
        assert message.content_blocks[-1] == block

    def test_several_answers(self) -> None:
        result = make().generate([[HumanMessage("hi")]], n=2)
        texts = [generation.text for generation in result.generations[0]]
        assert "answer 0" in texts[0]
        assert "answer 1" in texts[1]
        usage = (result.llm_output or {})["token_usage"]
        both = [cast("Any", g).message.usage_metadata for g in result.generations[0]]
        assert usage["completion_tokens"] == sum(u["output_tokens"] for u in both)
        assert usage["prompt_tokens"] == both[0]["input_tokens"]

    def test_llm_output_is_combined(self) -> None:
        chat = make()
        result = chat.generate([[HumanMessage("hi")], [HumanMessage("you")]])
        assert result.llm_output is not None
        assert result.llm_output["model_name"] == chat.model_name
        assert result.llm_output["token_usage"]["total_tokens"] > 0
        streamed = make(streaming=True).generate([[HumanMessage("hi")]])
        assert streamed.llm_output == {}

    def test_usage_callback_counts_by_model(self) -> None:
        with get_usage_metadata_callback() as counted:
            make().invoke("hi")
            make().invoke("hi", model="a")
        assert counted.usage_metadata.keys() == {"average(a+b)", "a"}


def shout(text: str) -> str:
    """Shout."""
    return text.upper()


def count(n: int) -> int:
    """Count."""
    return n


class TestStreaming:
    def test_of_configured_models(self) -> None:
        """Configuring builds the object anew from every field; it still streams."""
        chain: Any = make().configurable_fields(max_tokens=ConfigurableField(id="limit"))
        chunks = list(chain.with_config(configurable={"limit": 5}).stream("hi"))
        assert len(chunks) == 6
        assert merged(chunks).text == make(max_tokens=5).invoke("hi").text

    def test_switched_off_or_on(self) -> None:
        assert len(list(make(streaming=False).stream("hi"))) == 1
        seen = ChatRecorder()
        make(streaming=True).invoke("hi", config={"callbacks": [seen]})
        assert len(seen.tokens) > 5
        quiet = ChatRecorder()
        make().invoke("hi", config={"callbacks": [quiet]})
        assert quiet.tokens == []


class TestLimits:
    def test_conversation_that_does_not_fit(self) -> None:
        chat = make()
        scripted(chat).context = 20
        long = "word " * 30
        asks: tuple[Callable[[], object], ...] = (
            lambda: chat.invoke(long),
            lambda: list(chat.stream(long)),
            lambda: asyncio.run(chat.ainvoke(long)),
        )
        for ask in asks:
            with pytest.raises(ContextOverflowError, match="holds 20") as caught:
                ask()
            assert isinstance(caught.value, ContextError)
            assert (caught.value.member, caught.value.limit) == ("a", 20)
            assert caught.value.length > 30

    def test_download_is_tried_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("langchain_ensemble.adapter.chat_fields.time.sleep", lambda _: None)
        for retries, works in ((0, False), (1, False), (2, True)):
            chat = make(max_retries=retries, main="b" if retries else "a", timeout=retries + 5)
            failures = iter([DownloadError("cut"), DownloadError("cut again")])
            engine = scripted(chat)

            def load(engine: ScriptedEnsemble = engine, failures: Any = failures) -> None:
                if (failure := next(failures, None)) is not None:
                    raise failure
                ScriptedEnsemble.load(engine)

            monkeypatch.setattr(engine, "load", load)
            if works:
                assert chat.invoke("hi").text
            else:
                with pytest.raises(DownloadError, match="cut"):
                    chat.invoke("hi")

    def test_other_failures_are_not(self, monkeypatch: pytest.MonkeyPatch) -> None:
        chat = make(max_retries=3)
        calls: list[int] = []

        def load() -> None:
            calls.append(1)
            raise MemberError("no such model")

        monkeypatch.setattr(scripted(chat), "load", load)
        with pytest.raises(MemberError, match="no such model"):
            chat.invoke("hi")
        assert len(calls) == 1

    def test_deadline(self) -> None:
        chat = make(timeout=0.05)
        scripted(chat).step_seconds = 0.03
        with pytest.raises(DeadlineError):
            chat.invoke("hi")
        assert scripted(chat).running == 0

    def test_closing_a_stream_frees(self) -> None:
        chat = make()
        stream: Any = chat.stream("hi")
        next(stream)
        assert scripted(chat).running == 1
        stream.close()
        assert scripted(chat).running == 0

    def test_error_in_a_stream_reaches_the_caller_at_once(self) -> None:
        chat = make()
        scripted(chat).fail_at = (3, MemberError("out of order"))
        with pytest.raises(MemberError, match="out of order"):
            list(chat.stream("hi"))
        assert scripted(chat).running == 0

    def test_rate_limiter_and_disabled_streaming(self) -> None:
        limiter = InMemoryRateLimiter(requests_per_second=1000, max_bucket_size=2)
        assert make(rate_limiter=limiter).invoke("hi").text
        chunks = list(make(disable_streaming=True).stream("hi"))
        assert len(chunks) == 1
        held = make(disable_streaming="tool_calling").bind_tools([shout])
        assert len(list(held.stream("hi"))) == 1


class TestBeside:
    def test_as_chat(self) -> None:
        llm = EnsembleLLM(
            members={"a": "hub/a", "b": "hub/b"}, weights=[0.3, 0.7], stop=["x"], tags=["t"]
        )
        chat = llm.as_chat(thinking="main")
        assert chat.engine is llm.engine
        assert (chat.weights, chat.stop, chat.tags) == ((0.3, 0.7), ("x",), ["t"])
        assert chat.max_tokens is None
        assert chat.thinking == "main"
        assert EnsembleLLM(members=["x/a"], max_tokens=9).as_chat().max_tokens == 9

    def test_score_and_counts(self) -> None:
        chat = make()
        assert chat.score("hi", "yes").logprob == -1.0
        assert chat.score([("system", "x"), ("user", "hi")], "yes", member="a").logprob == -2.0
        with pytest.raises(ConfigError, match="unknown member 'c'"):
            chat.score("hi", "yes", member="c")
        assert scripted(chat).loads == 1
        counted = ChatEnsemble(members=["x/only-counted"])
        assert counted.get_num_tokens_from_messages([HumanMessage("hi")], tools=[shout]) > 0
        assert cast("Any", counted.engine).loads == 0

    def test_tracing_parameters(self) -> None:
        params = make(stop=["y"])._get_ls_params(stop=["x"], max_new_tokens=4, temperature=0.5)
        assert params["ls_provider"] == "ensemble"
        assert params["ls_model_name"] == "average(a+b)"
        assert params["ls_stop"] == ["y", "x"]
        assert (params["ls_max_tokens"], params["ls_temperature"]) == (4, 0.5)


class TestRegister:
    @pytest.fixture(autouse=True)
    def _table(self, monkeypatch: pytest.MonkeyPatch) -> None:
        base = importlib.import_module("langchain.chat_models.base")
        known = {k: v for k, v in base._BUILTIN_PROVIDERS.items() if k != "ensemble"}
        monkeypatch.setattr(base, "_BUILTIN_PROVIDERS", known)  # a snippet may have registered
        base._get_chat_model_creator.cache_clear()

    def test_only_when_called(self) -> None:
        with pytest.raises(ValueError, match=r"Unable to infer|Unsupported"):
            init_chat_model("ensemble:x/a+y/b")
        register()
        register()
        chat: Any = init_chat_model("ensemble:x/a+y/b", temperature=0.5)
        assert isinstance(chat, ChatEnsemble)
        assert chat.params.names == ("a", "b")
        assert chat.temperature == 0.5

    def test_demo_files_and_configurable(self, tmp_path: Path) -> None:
        register()
        assert cast("Any", init_chat_model("ensemble:demo")).params.names == ("facts", "stories")
        path = tmp_path / "e.yaml"
        make(temperature=0.5, thinking="main").to_config(path)
        chat: Any = init_chat_model(f"ensemble:{path}", temperature=0.1)
        assert (chat.temperature, chat.thinking) == (0.1, "main")
        either = init_chat_model(configurable_fields="any")
        config: Any = {"configurable": {"model": "ensemble:x/a"}}
        assert either.invoke("hi", config=config).response_metadata["model_name"] == "average(a)"
        with pytest.raises(ConfigError, match="cannot read the configuration"):
            init_chat_model(f"ensemble:{tmp_path / 'gone.yaml'}")

    def test_without_langchain(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "langchain.chat_models.base", None)
        with pytest.raises(ConfigError, match="install langchain"):
            register()
