"""A batch in which one answer may be refused is a batch of calls: each has a result of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.llms import BaseLLM
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import get_config_list


class Batches(BaseLLM):
    """``BaseLLM``, whose batch is one ``generate``: all or nothing.

    With ``abstain_below`` each input is a call, which the engine decodes together all the same.
    """

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[str]:
        """Answer several prompts, as ``BaseLLM.batch``; the rest are per-call fields."""
        if not self._may_refuse(kwargs):
            return super().batch(inputs, config, return_exceptions=return_exceptions, **kwargs)
        each = self._each(config, len(inputs))
        return Runnable.batch(self, inputs, each, return_exceptions=return_exceptions, **kwargs)

    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[str]:
        """Answer several prompts, as ``BaseLLM.abatch``; the rest are per-call fields."""
        if not self._may_refuse(kwargs):
            whole = await super().abatch(
                inputs, config, return_exceptions=return_exceptions, **kwargs
            )
            return whole
        each = self._each(config, len(inputs))
        return await Runnable.abatch(
            self, inputs, each, return_exceptions=return_exceptions, **kwargs
        )

    def _may_refuse(self, overrides: dict[str, Any]) -> bool:
        own = getattr(self, "abstain_below", None)
        return overrides.get("abstain_below", own) is not None

    def _each(
        self, config: RunnableConfig | Sequence[RunnableConfig] | None, count: int
    ) -> list[RunnableConfig]:
        """Configurations that let as many calls run as the engine decodes together."""
        most = max(1, min(count, getattr(self, "max_concurrent", count)))
        return [
            {**one, "max_concurrency": one.get("max_concurrency") or most}
            for one in get_config_list(config, count)
        ]
