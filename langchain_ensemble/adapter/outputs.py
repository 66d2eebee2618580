"""From pieces to LangChain's generations.

LangChain merges the ``generation_info`` of chunks: strings are joined, numbers added, unequal
floats are a ``TypeError``. So what is said once is said on the last chunk only, and per-token
numbers travel inside lists.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.outputs import Generation, GenerationChunk, LLMResult

from langchain_ensemble.adapter.running import Run
from langchain_ensemble.adapter.telling import Account, Telling

if TYPE_CHECKING:
    from langchain_ensemble.decoding.records import Finish, Piece, TokenRecord, Usage


class Transcript:
    """What one row has said, and how it is told to LangChain."""

    def __init__(self, telling: Telling, prompt: str, run: Run) -> None:
        """Begin empty.

        Args:
            telling: What the call wants to be told.
            prompt: What was asked.
            run: Whose answer this is.
        """
        self._telling = telling
        self._account = Account(telling, prompt, run)
        self._told: dict[str, Any] = {}
        self._text = ""
        self._tokens: list[TokenRecord] = []
        self._finish: Finish | None = None

    def add(self, piece: Piece) -> None:
        """Take a piece of this row."""
        self._text += piece.text
        self._account.add(piece.text, piece.tokens)
        if self._telling.logprobs:
            self._tokens.extend(piece.tokens)
        if piece.finish is not None:
            self._finish = piece.finish
            self._told = self._account.end(piece.finish.reason)

    def refuse(self) -> None:
        """Refuse the answer, which has ended, where its members are not sure enough.

        Raises:
            AbstainedError: They are not.
        """
        self._account.refuse()

    def next_chunk(self, usage: Sequence[Usage]) -> GenerationChunk | None:
        """Take out what was said since the last chunk.

        Args:
            usage: The run's usage, one row; there once the row has finished.

        Returns:
            The chunk; None while there is neither text nor an end.
        """
        if not self._text and self._finish is None:
            return None
        info = self._info(usage[0] if usage else None)
        chunk = GenerationChunk(text=self._text, generation_info=info or None)
        self._text, self._tokens = "", []
        return chunk

    def whole(self, usage: Usage) -> Generation:
        """Give the finished row as one answer."""
        return Generation(text=self._text, generation_info=self._info(usage))

    def _info(self, usage: Usage | None) -> dict[str, Any]:
        info: dict[str, Any] = {}
        if self._telling.logprobs:
            info["logprobs"] = logprob_entries(self._tokens)
        if self._finish is not None and usage is not None:
            info |= ending_info(self._finish, usage, self._telling.model_name)
            info["ensemble"] |= self._told
        return info


def logprob_entries(tokens: Iterable[TokenRecord]) -> list[dict[str, Any]]:
    r"""Tell each token's log-probabilities as JSON, in nats.

    Args:
        tokens: Decode steps.

    Returns:
        One dict a step: ``token`` (text; bytes that are no text by themselves as ``\xNN``),
        ``id`` (main's, or None), ``logprob`` (fused), ``members`` (name → own, or None), ``fused``,
        ``disagreement`` (None where one voice spoke).
    """
    return [
        {
            "token": token.bytes.decode("utf-8", "backslashreplace"),
            "id": token.id,
            "logprob": token.logprob,
            "members": dict(token.members),
            "fused": token.fused,
            "disagreement": token.disagreement,
        }
        for token in tokens
    ]


def ending_info(finish: Finish, usage: Usage, model_name: str) -> dict[str, Any]:
    """Tell how an answer ended, as JSON.

    Args:
        finish: The row's end.
        usage: The row's counts.
        model_name: The ensemble's name.

    Returns:
        ``finish_reason``, ``model_name``, ``usage`` and ``ensemble`` (steps, the share of them that
        was fused, ids read by each member, ``weights`` where the prompt gave them); where it
        applies ``stop`` (the string that matched), ``dropped_bytes`` (hex of an incomplete
        character at the end) and ``full_member``.
    """
    info: dict[str, Any] = {
        "finish_reason": finish.reason,
        "model_name": model_name,
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        },
        "ensemble": {
            "steps": usage.steps,
            "share_fused": usage.fused_steps / usage.steps if usage.steps else 0.0,
            "member_tokens": dict(usage.member_tokens),
        },
    }
    if usage.own_weights:
        weights = {name: round(share, 6) for name, share in usage.own_weights.items()}
        info["ensemble"]["weights"] = weights
    if finish.stop is not None:
        info["stop"] = finish.stop
    if finish.dropped:
        info["dropped_bytes"] = finish.dropped.hex()
    if finish.full_member is not None:
        info["full_member"] = finish.full_member
    return info


def whole_result(
    rows: Sequence[Transcript], usage: Sequence[Usage], n: int, model_name: str
) -> LLMResult:
    """Make the result of a batch.

    Args:
        rows: Finished rows, ``n`` for each prompt.
        usage: One entry a row.
        n: Answers per prompt.
        model_name: The ensemble's name.

    Returns:
        ``generations[prompt][answer]``; ``llm_output`` with the summed ``token_usage`` (a prompt
        counts once, whatever ``n``) and ``model_name``.
    """
    answers = [row.whole(counts) for row, counts in zip(rows, usage, strict=True)]
    prompt_tokens = sum(counts.prompt_tokens for counts in usage[::n])
    completion_tokens = sum(counts.completion_tokens for counts in usage)
    return LLMResult(
        generations=[answers[i : i + n] for i in range(0, len(answers), n)],
        llm_output={
            "token_usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": completion_tokens,
                "total_tokens": prompt_tokens + completion_tokens,
            },
            "model_name": model_name,
        },
    )
