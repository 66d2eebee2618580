"""What members say along the texts of a dev set, in the forms that users give them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from langchain_ensemble.chat.conversation import ChatRequest, Conversation
from langchain_ensemble.choose.learn import Kind, Rows, take_bytes, take_rows
from langchain_ensemble.contexts import Contexts
from langchain_ensemble.decoding.byte_score import ByteScorer
from langchain_ensemble.decoding.score import Scorer
from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.errors import ConfigError
from langchain_ensemble.vocab.vocabulary import check_text


@dataclass(frozen=True)
class Sample:
    """One text of a dev set.

    Attributes:
        text: What is said.
        before: The prompt or the conversation that it answers.
    """

    text: str
    before: str | Conversation = ""

    @property
    def size(self) -> int:
        """Bytes of the text."""
        return len(self.text.encode())


def listen(engine: Ensemble, sample: Sample, kind: Kind, contexts: Contexts = None) -> list[Rows]:
    """Let all members of an ensemble read a text.

    Args:
        engine: The ensemble, of several members.
        sample: The text.
        kind: What is kept of what they say.
        contexts: As in a request.

    Returns:
        What the objective needs, rows by rows.

    Raises:
        ConfigError: Main cannot spell the text, or what stands before it does not fit a member.
    """
    with engine.alone() as (built, readers):
        fuser, voices = built.fuser, built.voices
        assert fuser is not None  # several members
        places = range(len(voices))
        if isinstance(sample.before, str):
            prompts = readers.raw(built, places, sample.before, contexts)
        else:
            views = [readers.view(built, place, contexts) for place in places]
            prompts = [view.prompt(sample.before, ChatRequest()) for view in views]
        mix = getattr(fuser, "over_bytes", None)
        if mix is not None:
            with torch.inference_mode():
                said, silent, _ = ByteScorer(voices, prompts, sample.text).hear()
            return [take_bytes(kind, said, silent, sample.text.encode(), mix)]
        heard = Scorer(voices, prompts, sample.text)
        weigh = engine.params.open_boundaries == "discount"
        return [take_rows(kind, *told, fuser) for told in heard.heard(weigh)]


def read_samples(
    dev_set: Sequence[Any], converse: Callable[[Any], Conversation] | None, fewest: int
) -> list[Sample]:
    """Bring a dev set into one form.

    Args:
        dev_set: Texts, or pairs of a prompt and an answer; of a chat, pairs of a conversation and
            an answer.
        converse: Reads a conversation; None: prompts are raw texts.
        fewest: How many there must be.

    Returns:
        The texts.

    Raises:
        ConfigError: Too few, one that is empty, or something that is none of these.
    """
    if isinstance(dev_set, str) or not isinstance(dev_set, Sequence):
        raise ConfigError(
            f"dev_set is a {type(dev_set).__name__}; give a list of texts or of pairs"
        )
    samples = [_sample(number, item, converse) for number, item in enumerate(dev_set)]
    if len(samples) < fewest:
        raise ConfigError(
            f"dev_set has {len(samples)} texts; at least {fewest} are needed, half of which test "
            "what the other half taught. Cut long texts into paragraphs"
        )
    return samples


def _sample(number: int, item: Any, converse: Callable[[Any], Conversation] | None) -> Sample:
    pair = isinstance(item, (tuple, list)) and len(item) == 2
    text = item[1] if pair else item
    before = item[0] if pair else ""
    good = isinstance(text, str) and (pair if converse else isinstance(before, str))
    if not good:
        wanted = "a pair (conversation, answer)" if converse else "a text or a pair (prompt, text)"
        raise ConfigError(f"item {number} of dev_set is {item!r:.80}; it must be {wanted}")
    if not text:
        raise ConfigError(f"item {number} of dev_set has an empty text; leave it out")
    try:
        check_text(text)
        return Sample(text, before if converse is None else converse(before))
    except (ValueError, TypeError, NotImplementedError) as error:  # LangChain's, for messages
        raise ConfigError(f"item {number} of dev_set: {error}") from error
