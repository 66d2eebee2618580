"""The harness's model class: log-likelihoods by ``score``, answers by ``generate``, in batches."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from tqdm import tqdm

from langchain_ensemble.adapter.config import read_config
from langchain_ensemble.chat_models import ChatEnsemble
from langchain_ensemble.decoding.records import Score
from langchain_ensemble.errors import ConfigError
from langchain_ensemble.evaluate.harness import (
    call_settings,
    chat_text,
    moved_border,
    read_chat,
    rounds,
)
from langchain_ensemble.llms import EnsembleLLM

try:
    import lm_eval.models  # noqa: F401  (first: it fills the registry only while that is empty)
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ModuleNotFoundError as error:
    if (error.name or "").split(".")[0] != "lm_eval":
        raise
    raise ModuleNotFoundError(
        'the evaluation harness is not installed; run: pip install "langchain-ensemble[eval]"',
        name="lm_eval",
    ) from error


HARNESS_DEVICE = "cuda:0"
"""What the harness's command line hands on where nobody named a device."""

logger = logging.getLogger(__name__)


@register_model("langchain-ensemble")
class EnsembleLM(LM):  # type: ignore[misc]  # the harness is not typed
    """An ensemble as the harness knows a model.

    Log-likelihoods are those of :meth:`EnsembleLLM.score`, in nats along main's tokens, under the
    ensemble's fusion and weights: comparable between runs of one fusion, and between fusions only
    where both are ``"bytes"``. A one-member ensemble gives the harness's own numbers of that model.
    A prompt that does not fit a member is an error; nothing is cut from it.
    """

    def __init__(
        self,
        llm: EnsembleLLM | ChatEnsemble | None = None,
        *,
        config: str | None = None,
        demo: bool = False,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        **settings: Any,
    ) -> None:
        """Make the ensemble; its weights are loaded with the first request.

        Args:
            llm: An ensemble; with none of the arguments below but the batch sizes.
            config: A file that ``EnsembleLLM.to_config`` wrote.
            demo: The two members of the package.
            batch_size: Prompts that are answered together; ``"auto"``: ``max_concurrent`` of them.
            max_batch_size: At most so many where ``"auto"``.
            device: For members that do not say otherwise.
            **settings: Any field of :class:`EnsembleLLM`; wins over the file.

        Raises:
            ConfigError: No members, or settings that are unknown or contradict each other.
        """
        super().__init__()
        if device is not None:
            settings["device"] = device
        self.llm = _ensemble(llm, config, demo, settings)
        self.batch_size = _batch_size(batch_size, max_batch_size, self.llm.max_concurrent)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> EnsembleLM:
        """Make the model of a command line, whose ``--device`` is "cuda:0" where nobody wrote one.

        Members without a device of their own choose better: there may be no GPU, or several.

        Args:
            arg_dict: ``--model_args``.
            additional_config: Batch sizes and device.
        """
        given = {k: v for k, v in (additional_config or {}).items() if v is not None}
        if given.get("device") == HARNESS_DEVICE:
            del given["device"]
        return cls(**arg_dict, **given)

    # --- what the harness asks ------------------------------------------------------------------

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Score each continuation after its context.

        Args:
            requests: The harness's instances of (context, continuation).
            disable_tqdm: No progress bar.

        Returns:
            Nats and whether greedy decoding would have said it, one pair a request.
        """
        found = []
        for request in tqdm(requests, "log-likelihoods", disable=disable_tqdm):
            context, continuation = _texts(request, 2)
            score = self._score(context, continuation)
            found.append((score.logprob, score.is_greedy))
            self.cache_hook.add_partial("loglikelihood", (context, continuation), found[-1])
        return found

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Score whole texts, from their first token on; longer ones than a context in windows.

        Args:
            requests: The harness's instances of (text,).
            disable_tqdm: No progress bar.

        Returns:
            Nats, one a request.
        """
        found, slid = [], 0
        for request in tqdm(requests, "log-likelihoods of texts", disable=disable_tqdm):
            (text,) = _texts(request, 1)
            score = self._raw().score(text)
            slid += score.windows > 1
            found.append(score.logprob)
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), score.logprob)
        if slid:
            logger.warning("%d of %d texts did not fit one window", slid, len(found))
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Answer prompts, those of equal settings together, the longest first.

        Args:
            requests: The harness's instances of (context, generation settings).
            disable_tqdm: No progress bar.

        Returns:
            The answers, without stop strings.

        Raises:
            ConfigError: A setting that has no meaning here.
        """
        asked = [_asked(request) for request in requests]
        settings = [call_settings(given) for _, given in asked]  # all are read before the first run
        numbers = rounds([(context, repr(given)) for context, given in asked])
        seeds: dict[str, int] = {}
        answers: list[str] = [""] * len(asked)
        with tqdm(total=len(asked), desc="answers", disable=disable_tqdm) as bar:
            for batch in self._batches(asked, numbers):
                call = dict(settings[batch[0]])
                if call["temperature"] > 0:
                    base = seeds.setdefault(repr(call), self._seed(call))
                    call["seed"] = base + numbers[batch[0]]
                for place, text in zip(
                    batch, self._answers([asked[i][0] for i in batch], call), strict=True
                ):
                    answers[place] = text
                    self.cache_hook.add_partial("generate_until", asked[place], text)
                bar.update(len(batch))
        return answers

    # --- chat ------------------------------------------------------------------------------------

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Keep a conversation for the members, each of which has a template of its own.

        Args:
            chat_history: Messages with ``role`` and ``content``.
            add_generation_prompt: Whether an assistant's turn is to be opened.

        Returns:
            The conversation as JSON, which the other methods know.

        Raises:
            ConfigError: An answer whose beginning is given.
        """
        if not add_generation_prompt:
            raise ConfigError(
                "the task gives the answer's beginning (gen_prefix), which a chat ensemble cannot "
                "continue; run it without --apply_chat_template, or leave gen_prefix out"
            )
        return chat_text(chat_history)

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Say whose templates are used: each member's own.

        Raises:
            ConfigError: A template's name.
        """
        if isinstance(chat_template, str):
            raise ConfigError(
                f"--apply_chat_template {chat_template!r} names a template; members have their "
                "own, write it without a name and set chat_template of a member"
            )
        return "each member's own" if chat_template else ""

    @property
    def tokenizer_name(self) -> str:
        """What the harness's cache of rendered prompts tells models apart by."""
        return self.llm.model_name.replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """What the results file says about the model."""
        return {
            "model_name": self.llm.model_name,
            "model_sha": self.llm.engine.fingerprint(),
            "model_settings": self.llm.identity,
        }

    # --- inside ----------------------------------------------------------------------------------

    def _score(self, context: str, continuation: str) -> Score:
        messages = read_chat(context)
        if messages is not None:
            return self._chat().score(messages, continuation)
        context, continuation = moved_border(context, continuation)
        return self._raw().score(continuation, context)

    def _answers(self, contexts: Sequence[str], call: dict[str, Any]) -> list[str]:
        stop, rest = call["stop"], {k: v for k, v in call.items() if k != "stop"}
        talks = [read_chat(context) for context in contexts]
        if all(talk is None for talk in talks):
            result = self._raw().generate(list(contexts), stop=stop or None, **rest)
            return [answers[0].text for answers in result.generations]
        chat = self._chat()
        together: Any = {"max_concurrency": len(contexts)}
        said = chat.batch([talk or [] for talk in talks], together, stop=stop or None, **rest)
        return [message.text for message in said]

    def _batches(
        self, asked: Sequence[tuple[str, dict[str, Any]]], numbers: Sequence[int]
    ) -> Iterator[list[int]]:
        """Places of requests that may run together; what is too long fails first."""
        groups: dict[tuple[str, int, bool], list[int]] = {}
        for place, (context, given) in enumerate(asked):
            key = (repr(given), numbers[place], read_chat(context) is None)
            groups.setdefault(key, []).append(place)
        for group in groups.values():
            group.sort(key=lambda place: -len(asked[place][0]))
            for at in range(0, len(group), self.batch_size):
                yield group[at : at + self.batch_size]

    def _seed(self, call: dict[str, Any]) -> int:
        """The seed that was given, or one from torch's generator, which the harness has seeded."""
        given = call.get("seed", self.llm.seed)
        return int(torch.randint(2**31, ()).item()) if given is None else int(given)

    def _raw(self) -> EnsembleLLM:
        if isinstance(self.llm, ChatEnsemble):
            raise ConfigError(
                "a ChatEnsemble answers conversations, and this task's prompts are raw texts; "
                "add --apply_chat_template, or pass an EnsembleLLM"
            )
        return self.llm

    def _chat(self) -> ChatEnsemble:
        if isinstance(self.llm, EnsembleLLM):
            return self.llm.as_chat()
        return self.llm


def _ensemble(
    llm: EnsembleLLM | ChatEnsemble | None, config: str | None, demo: bool, settings: dict[str, Any]
) -> EnsembleLLM | ChatEnsemble:
    ways = {"llm": llm, "config": config, "demo": demo or None, "members": settings.get("members")}
    named = [name for name, value in ways.items() if value is not None]
    if len(named) != 1:
        raise ConfigError(
            f"members come from one of config=FILE, members=[...] and demo=True; got "
            f"{' and '.join(named) or 'none'}"
        )
    if llm is not None:
        if settings:
            raise ConfigError(f"llm= has settings of its own; also got {sorted(settings)}")
        return llm
    if demo:
        return EnsembleLLM.demo(**settings)
    return EnsembleLLM(**{**(read_config(config) if config else {}), **settings})


def _batch_size(given: int | str | None, most: int | None, concurrent: int) -> int:
    if given is None:
        return 1
    if given == "auto":
        return min(concurrent, most or concurrent)
    if not str(given).isdecimal() or int(given) < 1:
        raise ConfigError(f"batch_size={given!r}; it is a number from 1 on, or 'auto'")
    return int(given)


def _texts(request: Any, count: int) -> tuple[str, ...]:
    args = request.args
    if len(args) != count or not all(isinstance(text, str) for text in args):
        raise ConfigError(
            f"a request has {len(args)} parts where {count} texts were needed; ensembles read text "
            "only, no images and no sound"
        )
    return tuple(args)


def _asked(request: Any) -> tuple[str, dict[str, Any]]:
    args = request.args
    if len(args) != 2 or not isinstance(args[0], str) or not isinstance(args[1], dict):
        raise ConfigError(
            "a request is not a text with generation settings; ensembles read text only, no "
            "images and no sound"
        )
    return args[0], args[1]
