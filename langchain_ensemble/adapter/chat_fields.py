"""The fields of a chat model, and how one call of it begins."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from langchain_core.language_models import ModelProfile
from langchain_core.messages import BaseMessage, get_buffer_string
from pydantic import PrivateAttr

from langchain_ensemble.adapter.asks import CHAT_FIELDS, Ask, check_chat_fields, read_ask
from langchain_ensemble.adapter.calibrating import Calibrates
from langchain_ensemble.adapter.engines import Lease
from langchain_ensemble.adapter.faults import UnknownModelError
from langchain_ensemble.adapter.profiles import context_on_disk, profile_of
from langchain_ensemble.adapter.running import Stepped
from langchain_ensemble.adapter.settings import CONFIG_FIELDS
from langchain_ensemble.adapter.telling import Telling
from langchain_ensemble.adapter.turns import Turn
from langchain_ensemble.errors import ConfigError, DownloadError, unknown_name
from langchain_ensemble.params import RequestParams

if TYPE_CHECKING:
    from langchain_ensemble.ensemble import Ensemble

logger = logging.getLogger(__name__)


class ChatFields(Calibrates):
    """Settings of a chat ensemble, and what one call of it asks for."""

    max_tokens: int | None = None
    """Decode steps at most; None: what the context leaves."""
    thinking: Literal["off", "main", "each"] = "off"
    """Whether members that can think do: none, main (the others read it), or each privately."""
    thinking_tokens: int = 1024
    """Tokens at most that one member thinks."""
    tools_by: Literal["main", "fused"] = "main"
    """Who writes a tool call: main, in its own format, or all together, in a common one."""
    max_retries: int = 2
    """How often loading goes on after a download broke off; decoding is never tried again."""
    streaming: bool | None = None
    """True: ``invoke`` reports chunks to callbacks; False: ``stream`` gives all in one chunk."""

    _config_fields: ClassVar[tuple[str, ...]] = (
        *CONFIG_FIELDS,
        *CHAT_FIELDS,
        *("max_retries", "streaming"),
    )
    _alone: dict[str, Lease] = PrivateAttr(default_factory=dict)

    def __init__(self, **data: Any) -> None:
        """Check everything that can be known without reading weights; ``api_key`` is ``hf_token``.

        Raises:
            ConfigError: Something is unknown, contradictory or out of range.
        """
        if "api_key" in data:
            if data.get("hf_token") is not None:
                raise ConfigError("ChatEnsemble got hf_token and api_key, which mean the same")
            data["hf_token"] = data.pop("api_key")
        super().__init__(**data)
        self.check()

    def check(self) -> None:
        """Check the settings that only a chat ensemble has.

        Raises:
            ConfigError: A value that is not allowed.
        """
        check_chat_fields(self._chat_fields)
        if self.max_retries < 0:
            raise ConfigError(f"max_retries is {self.max_retries}; it must be at least 0")

    # --- one call ------------------------------------------------------------------------------

    def _turn(
        self,
        messages: Sequence[BaseMessage],
        stop: Sequence[str] | None,
        kwargs: Mapping[str, Any],
        *,
        one: bool = False,
    ) -> Turn:
        ask = read_ask(self._chat_fields, kwargs)
        owner, name = self._owner(ask.model)
        request = owner._request(ask, stop, one=one)
        conversation = ask.conversation(messages)

        def start() -> tuple[Stepped, str]:
            engine = owner._ready()
            return engine.open_chat(conversation, request, ask.chat), engine.fingerprint()

        params = owner.params
        telling = Telling.of(request, name, params.main_name, owner._calibration(params))
        prompt = get_buffer_string(messages) if telling.trace else ""
        return Turn(start, telling, prompt, n=request.n)

    def _request(self, ask: Ask, stop: Sequence[str] | None, *, one: bool = False) -> RequestParams:
        sampling = dict(ask.sampling)
        if one:
            if sampling.get("n", 1) != 1:
                raise ConfigError(
                    f"n={sampling['n']!r} in a stream, which is one answer; use generate"
                )
            sampling["n"] = 1
        if ask.model is not None and "weights" in sampling:
            raise ConfigError("model= asks one member alone; weights= has no meaning beside it")
        return self.request(stop, **sampling)

    def _owner(self, model: str | None) -> tuple[Self, str]:
        """Who answers a call, and by what name: this ensemble, or one member alone."""
        if model is None or model == self.model_name:
            return self, self.model_name
        if model not in self.params.names:
            known = [*self.params.names, self.model_name]
            raise UnknownModelError(unknown_name("model", model, known))
        alone = self.solo(model)
        alone._lease = self._alone.setdefault(model, Lease())  # one engine for all such calls
        alone._lease.attach(alone.params, None)
        return alone, model

    @property
    def _chat_fields(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in CHAT_FIELDS}

    def unload(self) -> None:
        """Free the weights, unless another object uses them; the next call loads again."""
        super().unload()
        for lease in self._alone.values():
            lease.release()

    def __copy__(self) -> Self:
        copied = super().__copy__()
        copied._alone = {}
        return copied

    def _ready(self) -> Ensemble:
        for attempt in range(self.max_retries + 1):
            try:
                engine = super()._ready()
            except DownloadError as error:
                if attempt == self.max_retries:
                    raise
                logger.warning("%s; attempt %d of %d", error, attempt + 2, self.max_retries + 1)
                time.sleep(0.5 * 2**attempt)
            else:
                self._learn(engine)
                return engine
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _learn(self, engine: Ensemble) -> None:
        """Take note of what is known once the members are here."""

    def _profile(self, limits: Iterable[int | None] | None = None) -> ModelProfile:
        """Describe the model; ``limits`` are the members', default: those known on this disk."""
        if limits is None:
            limits = [context_on_disk(member) for member in self.params.members]
        thinks = self.thinking != "off"
        return profile_of(self.model_name, limits, max_tokens=self.max_tokens, thinks=thinks)

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that decides what is said, as JSON, without secrets."""
        return {**super().identity, **self._chat_fields}

    def _counting(self) -> Ensemble:
        return self._lease.attach(self.params, self._fusion_object).engine()
