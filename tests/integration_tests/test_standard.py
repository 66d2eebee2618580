"""LangChain's own suites for chat models: every test, none overridden.

Decoding is real: the two members that ship with the package, greedy, on the CPU. Tool calls that
are demanded and structured output pass by grammar. What is skipped is what no text model can do
(images, audio, PDF).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.load.load import ALL_SERIALIZABLE_MAPPINGS
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from langchain_ensemble import ChatEnsemble
from langchain_ensemble.demo import members

pytestmark = [
    # the suites' own use of what LangChain deprecates or calls beta
    pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainDeprecationWarning"),
    pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning"),
    # test_stream_time records no HTTP, so it runs once and leaves its benchmark alone
    pytest.mark.filterwarnings("ignore:Benchmark fixture was not used"),
]


@pytest.fixture(scope="module", autouse=True)
def _loaded() -> Iterator[None]:
    """Keep the members' weights in memory between the suites' many objects."""
    with ChatEnsemble.demo() as chat:
        chat.load()
        yield


class TestUnit(ChatModelUnitTests):
    """10 of 10."""

    @pytest.fixture(autouse=True)
    def _loadable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """``load(..., allowed_objects="all")`` knows the classes of LangChain's own table only."""
        place = tuple(ChatEnsemble.lc_id())
        monkeypatch.setitem(ALL_SERIALIZABLE_MAPPINGS, place, place)

    @property
    def chat_model_class(self) -> type[ChatEnsemble]:
        return ChatEnsemble

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"members": {"qwen": "org/qwen", "llama": "org/llama"}}

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        return {"HF_TOKEN": "hf_secret"}, self.chat_model_params, {"hf_token": "hf_secret"}


class _Integration(ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[ChatEnsemble]:
        return ChatEnsemble

    @property
    def chat_model_params(self) -> dict[str, Any]:
        # members this small repeat themselves inside a free string until the budget is spent
        return {"members": members(), "max_tokens": 160, "repetition_penalty": 1.3}

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "stories"

    @property
    def enable_vcr_tests(self) -> bool:
        return True


class TestIntegration(_Integration):
    """45 of 50; structured output by the answer's text."""


class TestIntegrationByCalls(_Integration):
    """45 of 50; structured output by the arguments of a call."""

    @property
    def structured_output_kwargs(self) -> dict[str, Any]:
        return {"method": "function_calling"}
