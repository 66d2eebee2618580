"""From pieces of a turn to LangChain's messages and chunks.

One way for ``invoke`` and ``stream``: a message is the sum of the chunks that a stream would have
given. What LangChain's merging does to them decides their shape: strings are joined, numbers added,
unequal floats are an error, and ``stream_events(version="v3")`` keeps the last value of metadata.
So what is said once (model, finish reason, usage, logprobs, the ensemble's summary) is said on the
last chunk, which holds nothing else.

A tool call that was cut must never be executed. LangChain completes cut JSON by itself, so the
arguments of such a call end in characters that no reader completes (:func:`breaking`): it becomes
an entry of ``invalid_tool_calls``, in whole messages, merged chunks and v3 events alike.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessageChunk, ToolCallChunk
from langchain_core.messages.ai import InputTokenDetails, OutputTokenDetails, UsageMetadata
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.messages.utils import message_chunk_to_message
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from langchain_ensemble.adapter.blocks import PROVIDER
from langchain_ensemble.adapter.outputs import ending_info, logprob_entries
from langchain_ensemble.adapter.running import Run
from langchain_ensemble.adapter.telling import Account, Telling

if TYPE_CHECKING:
    from langchain_ensemble.decoding.records import CallDelta, Finish, Piece, TokenRecord, Usage


def breaking(arguments: str) -> str:
    """Give what must follow cut JSON so that no reader completes it.

    Args:
        arguments: The JSON text so far.

    Returns:
        The end of an open string, if one is open, and a bracket that closes nothing.
    """
    closers: list[str] = []
    inside = escaped = False
    for char in arguments:
        if inside:
            inside = escaped or char != '"'
            escaped = char == "\\" and not escaped
        elif char == '"':
            inside = True
        elif char in "{[":
            closers.append("}" if char == "{" else "]")
        elif char in "}]" and closers:
            closers.pop()
    end = '""' if escaped else '"' if inside else ""
    return end + ("}" if closers and closers[-1] == "]" else "]")


class _Calls:
    """Tool calls of one answer: ids, what was said so far, what is new."""

    def __init__(self) -> None:
        self._arguments: dict[int, str] = {}
        self._done: dict[int, bool] = {}
        self._new: dict[int, ToolCallChunk] = {}

    def __bool__(self) -> bool:
        return bool(self._arguments)

    def add(self, delta: CallDelta) -> None:
        place = delta.index
        fragment = self._new.get(place)
        if fragment is None:
            first = place not in self._arguments
            call_id = f"call_{uuid.uuid4().hex}" if first else None
            name = delta.name if first else None
            fragment = tool_call_chunk(name=name, args="", id=call_id, index=place)
            self._new[place] = fragment
        fragment["args"] = (fragment["args"] or "") + delta.arguments
        self._arguments[place] = self._arguments.get(place, "") + delta.arguments
        self._done[place] = delta.done

    def end(self) -> None:
        """Break the calls that were cut."""
        for place in [place for place, done in self._done.items() if not done]:
            text = breaking(self._arguments[place])
            fragment = self._new.setdefault(
                place, tool_call_chunk(name=None, args="", id=None, index=place)
            )
            fragment["args"] = (fragment["args"] or "") + text

    def take(self) -> list[ToolCallChunk]:
        fragments, self._new = list(self._new.values()), {}
        return fragments


class Reply:
    """What one answer has said, and how it is told to LangChain."""

    def __init__(self, telling: Telling, prompt: str, run: Run) -> None:
        """Begin empty.

        Args:
            telling: What the call wants to be told; main's thinking is ``reasoning_content``.
            prompt: What was asked.
            run: Whose answer this is.
        """
        self._telling, self._main = telling, telling.main
        self._account = Account(telling, prompt, run)
        self._told: dict[str, Any] = {}
        self._tokens: list[TokenRecord] | None = [] if telling.logprobs else None
        self._agreement = Agreement()
        self._text = ""
        self._thoughts: dict[str, str] = {}
        self._calls = _Calls()
        self._finish: Finish | None = None

    def add(self, piece: Piece) -> None:
        """Take a piece of this answer."""
        if piece.channel == "thought":
            name = piece.member or self._main
            self._thoughts[name] = self._thoughts.get(name, "") + piece.text
        else:
            self._text += piece.text
            self._agreement.add(piece.tokens)
            self._account.add(piece.text, piece.tokens)
            if self._tokens is not None:
                self._tokens.extend(piece.tokens)
        for delta in piece.calls:
            self._calls.add(delta)
        if piece.finish is not None:
            self._finish = piece.finish
            self._calls.end()
            self._told = self._account.end(self._reason(piece.finish))

    def refuse(self) -> None:
        """Refuse the answer, which has ended, where its members are not sure enough.

        Raises:
            AbstainedError: They are not.
        """
        self._account.refuse()

    def _reason(self, finish: Finish) -> str:
        called = self._calls and finish.reason == "stop" and not finish.unfinished
        return "tool_calls" if called else finish.reason

    def chunks(self, usage: Sequence[Usage], fingerprint: str) -> list[ChatGenerationChunk]:
        """Take out what was said since the last time.

        Args:
            usage: The run's usage, one row; there once the row has finished.
            fingerprint: What identifies members and settings.

        Returns:
            Chunks, each of one kind; the last of an answer is empty but for its metadata.
        """
        messages = [
            self._chunk(additional_kwargs=_thought(self._main, n, t))
            for n, t in self._thoughts.items()
            if t
        ]
        if self._text:
            messages.append(self._chunk(content=self._text))
        messages += [self._chunk(tool_call_chunks=[f]) for f in self._calls.take()]
        self._text, self._thoughts = "", {}
        if self._finish is not None and usage:
            messages.append(self._last(self._finish, usage[0], fingerprint))
            self._finish = None
        return [ChatGenerationChunk(message=message) for message in messages]

    def whole(self, usage: Usage, fingerprint: str) -> ChatGeneration:
        """Give the finished answer as one message."""
        first, *rest = (chunk.message for chunk in self.chunks([usage], fingerprint))
        message = message_chunk_to_message(first + rest if rest else first)
        return ChatGeneration(message=message)

    def _chunk(self, content: str = "", **fields: Any) -> AIMessageChunk:
        return AIMessageChunk(
            content=content, response_metadata={"model_provider": PROVIDER}, **fields
        )

    def _last(self, finish: Finish, usage: Usage, fingerprint: str) -> AIMessageChunk:
        info = ending_info(finish, usage, self._telling.model_name)
        info["finish_reason"] = self._reason(finish)
        info["token_usage"] = info.pop("usage")
        info["model_provider"] = PROVIDER
        info["system_fingerprint"] = fingerprint
        info["ensemble"]["agreement"] = self._agreement.by_member()
        info["ensemble"]["member_ms"] = {
            name: round(1000 * seconds, 1) for name, seconds in usage.member_seconds.items()
        }
        info["ensemble"] |= self._told
        if finish.unfinished:
            info["unfinished"] = True
        if self._tokens is not None:
            info["logprobs"] = {"content": logprob_entries(self._tokens)}
        return AIMessageChunk(
            content="",
            response_metadata=info,
            usage_metadata=_usage(usage, self._main),
            chunk_position="last",
        )


class Agreement:
    """How much each member would have said what was said.

    A member's agreement is the mean, over the steps that were fused, of the probability that it
    gave the chosen token by itself (0 where it has no such token): 1 is a member that would have
    written the answer alone.
    """

    def __init__(self) -> None:
        """Begin without a step."""
        self._sums: dict[str, float] = {}
        self._steps = 0

    def add(self, tokens: Sequence[TokenRecord]) -> None:
        """Count some steps; those of one voice are left out."""
        for token in tokens:
            if token.fused:
                self._steps += 1
                for name, logprob in token.members.items():
                    share = 0.0 if logprob is None else math.exp(min(logprob, 0.0))
                    self._sums[name] = self._sums.get(name, 0.0) + share

    def by_member(self) -> dict[str, float]:
        """Give the means, by name; empty where no step was fused."""
        return {name: round(total / self._steps, 6) for name, total in self._sums.items()}


def _thought(main: str, name: str, text: str) -> dict[str, Any]:
    return {"reasoning_content": text} if name == main else {"thoughts": {name: text}}


def _usage(usage: Usage, main: str) -> UsageMetadata:
    told = UsageMetadata(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
    )
    if cached := usage.cached_tokens.get(main, 0):
        told["input_token_details"] = InputTokenDetails(cache_read=cached)
    if usage.thought_tokens:
        told["output_token_details"] = OutputTokenDetails(reasoning=usage.thought_tokens)
    return told


def chat_result(
    replies: Sequence[Reply], usage: Sequence[Usage], fingerprint: str, model_name: str
) -> ChatResult:
    """Make the result of one conversation.

    Args:
        replies: Finished answers.
        usage: One entry an answer.
        fingerprint: What identifies members and settings.
        model_name: What the metadata calls the model.

    Returns:
        One generation an answer; ``llm_output`` with ``token_usage`` (the prompt counts once) and
        ``model_name``.
    """
    prompt = usage[0].prompt_tokens if usage else 0
    completion = sum(counts.completion_tokens for counts in usage)
    return ChatResult(
        generations=[
            reply.whole(counts, fingerprint) for reply, counts in zip(replies, usage, strict=True)
        ],
        llm_output={
            "token_usage": {
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "total_tokens": prompt + completion,
            },
            "model_name": model_name,
        },
    )


def combined(outputs: Sequence[dict[str, Any] | None]) -> dict[str, Any]:
    """Combine the ``llm_output`` of several conversations; streamed ones have none.

    Args:
        outputs: One a conversation.

    Returns:
        Summed ``token_usage`` and the ``model_name``; empty where nothing is known.
    """
    known = [output for output in outputs if output]
    if not known:
        return {}
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    summed = {name: sum(output["token_usage"][name] for output in known) for name in names}
    return {"token_usage": summed, "model_name": known[0]["model_name"]}
