"""The harness's model class: its instances, progress bars and cache around ``Answering``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm

from langchain_ensemble.chat_models import ChatEnsemble
from langchain_ensemble.errors import ConfigError
from langchain_ensemble.evaluate.answering import Answering, prompts_together, the_ensemble
from langchain_ensemble.evaluate.harness import chat_text
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
        self.llm = the_ensemble(llm, config, demo, settings)
        together = prompts_together(batch_size, max_batch_size, self.llm.max_concurrent)
        self._answering = Answering(self.llm, together)

    @property
    def batch_size(self) -> int:
        """Prompts that are answered together."""
        return self._answering.batch_size

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
            score = self._answering.score(context, continuation)
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
            score = self._answering.score_text(text)
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
        answers = [""] * len(asked)
        with tqdm(total=len(asked), desc="answers", disable=disable_tqdm) as bar:
            for place, text in self._answering.answers(asked, _harness_seed):
                answers[place] = text
                self.cache_hook.add_partial("generate_until", asked[place], text)
                bar.update()
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


def _harness_seed() -> int:
    """A seed from torch's generator, which the harness has seeded."""
    return int(torch.randint(2**31, ()).item())


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
