"""From pieces to LangChain's generations.

LangChain merges the ``generation_info`` of chunks: strings are joined, numbers added, unequal
floats are a ``TypeError``. So what is said once is said on the last chunk only, and per-token
numbers travel inside lists.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.outputs import Generation, GenerationChunk, LLMResult

if TYPE_CHECKING:
    from langchain_ensemble.decoding.records import Finish, Piece, TokenRecord, Usage


class Transcript:
    """What one row has said so far.

    Attributes:
        finish: How the row ended, None while it has not.
    """

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._tokens: list[TokenRecord] = []
        self.finish: Finish | None = None

    def add(self, piece: Piece) -> None:
        """Take a piece of this row."""
        self._texts.append(piece.text)
        self._tokens.extend(piece.tokens)
        self.finish = piece.finish or self.finish

    @property
    def has_text(self) -> bool:
        """Whether there is text that was not handed out."""
        return any(self._texts)

    def take(self) -> tuple[str, list[TokenRecord]]:
        """Hand out the text and the tokens since the last call."""
        text, tokens = "".join(self._texts), self._tokens
        self._texts, self._tokens = [], []
        return text, tokens


def logprob_entries(tokens: Iterable[TokenRecord]) -> list[dict[str, Any]]:
    r"""Tell each token's log-probabilities as JSON, in nats.

    Args:
        tokens: Decode steps.

    Returns:
        One dict a step: ``token`` (text; bytes that are no text by themselves as ``\xNN``),
        ``id`` (main's, or None), ``logprob`` (fused), ``members`` (name → own, or None), ``fused``.
    """
    return [
        {
            "token": token.bytes.decode("utf-8", "backslashreplace"),
            "id": token.id,
            "logprob": token.logprob,
            "members": dict(token.members),
            "fused": token.fused,
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
        was fused, ids read by each member); where it applies ``stop`` (the string that matched),
        ``dropped_bytes`` (hex of an incomplete character at the end) and ``full_member``.
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
    if finish.stop is not None:
        info["stop"] = finish.stop
    if finish.dropped:
        info["dropped_bytes"] = finish.dropped.hex()
    if finish.full_member is not None:
        info["full_member"] = finish.full_member
    return info


def next_chunk(
    row: Transcript, usage: Sequence[Usage], model_name: str, *, logprobs: bool
) -> GenerationChunk | None:
    """Make a chunk of what row 0 has said since the last one.

    Args:
        row: The row's transcript; its new text is taken out.
        usage: The run's usage; read once the row has finished.
        model_name: The ensemble's name.
        logprobs: Whether the chunk carries its tokens' logprobs.

    Returns:
        The chunk; None while there is neither text nor an end.
    """
    if not row.has_text and row.finish is None:
        return None
    text, tokens = row.take()
    info: dict[str, Any] = {}
    if logprobs:
        info["logprobs"] = logprob_entries(tokens)
    if row.finish is not None:
        info |= ending_info(row.finish, usage[0], model_name)
    return GenerationChunk(text=text, generation_info=info or None)


def whole_result(
    rows: Sequence[Transcript], usage: Sequence[Usage], n: int, model_name: str, *, logprobs: bool
) -> LLMResult:
    """Make the result of a batch.

    Args:
        rows: Finished rows, ``n`` for each prompt.
        usage: One entry a row.
        n: Answers per prompt.
        model_name: The ensemble's name.
        logprobs: Whether answers carry their tokens' logprobs.

    Returns:
        ``generations[prompt][answer]``; ``llm_output`` with the summed ``token_usage`` (a prompt
        counts once, whatever ``n``) and ``model_name``.
    """
    answers: list[Generation] = []
    for row, counts in zip(rows, usage, strict=True):
        text, tokens = row.take()
        info = ending_info(row.finish, counts, model_name) if row.finish else {}
        if logprobs:
            info["logprobs"] = logprob_entries(tokens)
        answers.append(Generation(text=text, generation_info=info))
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
