"""What a grammar allows next: masks for every voice's logits and for what the fusion made of them.

The masks of all rows are made on the CPU and moved once for each distinct vocabulary. A voice's
mask is laid on its logits before the softmax; the fused distribution is masked again, because a
fusion may spread probability to keys that no member gave any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from langchain_ensemble.constraints.grammar import Matcher
from langchain_ensemble.decoding.fusing import keys_of
from langchain_ensemble.decoding.grammars import accepts
from langchain_ensemble.decoding.protocols import VocabularyLike, Voice, Warn
from langchain_ensemble.decoding.records import Finish
from langchain_ensemble.decoding.state import Row
from langchain_ensemble.decoding.task import Chosen
from langchain_ensemble.errors import ConfigError
from langchain_ensemble.fusion.base import FusedDistribution, MemberDistribution

SHOWN = 8
"""Bytes that a message names."""


@dataclass(frozen=True)
class Legal:
    """What may come next in B rows.

    Attributes:
        masks: One a voice, [B, V_i] bool on its device; END ids where the grammar may end.
        may_end: One a row.
    """

    masks: tuple[Tensor, ...]
    may_end: tuple[bool, ...]


def legal_ids(
    voices: Sequence[Voice], rows: Sequence[Row], spelled: Mapping[int, bytes]
) -> Legal | None:
    """Ask every row's grammar.

    Args:
        voices: Main first.
        rows: The rows that run.
        spelled: Control ids of the only voice whose bytes are text.

    Returns:
        The masks; None where the request has no grammar.
    """
    if rows[0].grammar is None:
        return None
    may_end = tuple(row.grammar is not None and row.grammar.may_end for row in rows)
    asked: dict[tuple[object, ...], Tensor] = {}
    moved: dict[tuple[object, ...], Tensor] = {}
    masks = []
    for place, voice in enumerate(voices):
        device = voice.member.device
        by_keys = voice.trie is None  # paths begin behind a lead: there every byte is the answer's
        kinds = tuple(_kind(row, place, by_keys) for row in rows)
        if (kinds, device) not in moved:
            block = [
                _allowed(row, kind, voice.vocabulary, spelled, asked)
                for row, kind in zip(rows, kinds, strict=True)
            ]
            moved[kinds, device] = torch.stack(block).to(device)  # the one transfer
        mask = _fit(moved[kinds, device], voice.member.logits_width)
        if by_keys and any(
            row.starts_apart(place) for row in rows
        ):  # silent: its keys are no one's choice
            apart = torch.tensor([row.starts_apart(place) for row in rows], device=device)
            mask = mask & ~apart[:, None]
        masks.append(_with_ends(mask, voice, may_end, alone=len(voices) == 1))
    return Legal(tuple(masks), may_end)


def raw_end_ids(voice: Voice) -> tuple[int, ...]:
    """Ids that end a lone voice's answer: ``generate`` knows no roles, a conversation does."""
    own = () if voice.turns else voice.member.end_ids
    return tuple(own or voice.vocabulary.end_ids)


def _kind(row: Row, place: int, by_keys: bool) -> tuple[int, bool]:
    """Which matcher a voice follows, and whether its first key brings a space that is no byte."""
    assert row.grammar is not None  # legal_ids() asked
    leads = by_keys and bool(row.tracks[place].lead) and not row.records
    return row.grammar.which[place], leads


def _allowed(
    row: Row,
    kind: tuple[int, bool],
    vocabulary: VocabularyLike,
    spelled: Mapping[int, bytes],
    asked: dict[tuple[object, ...], Tensor],
) -> Tensor:
    """[W] bool on the CPU: ids whose bytes may come next in one row."""
    which, leads = kind
    assert row.grammar is not None  # legal_ids() asked
    matcher = row.grammar.matchers[which]
    if leads and (which, "lead") not in asked:  # all such rows stand at the start alike
        asked[which, "lead"] = _after_a_space(matcher, vocabulary)
    allowed = asked[which, "lead"] if leads else matcher.allowed()
    if spelled:
        allowed = allowed.clone()
        for token, data in spelled.items():
            allowed[token] = accepts(matcher, data)
    return allowed


def _after_a_space(matcher: Matcher, vocabulary: VocabularyLike) -> Tensor:
    """Ids that may come first where the tokenizer begins a text with a space of its own."""
    allowed = matcher.allowed().clone()
    table, roles = vocabulary.token_bytes, vocabulary.token_roles
    for token, data in enumerate(table[: len(allowed)]):
        if data is not None and data.startswith(b" ") and roles[token] is None:
            allowed[token] = accepts(matcher, data[1:])
    return allowed


def _fit(mask: Tensor, width: int) -> Tensor:
    """Cut or fill columns: equal vocabularies may have logits of different widths."""
    missing = width - mask.shape[-1]
    return torch.nn.functional.pad(mask, (0, missing)) if missing > 0 else mask[:, :width]


def _with_ends(mask: Tensor, voice: Voice, may_end: Sequence[bool], *, alone: bool) -> Tensor:
    """The mask with the voice's end ids where the grammar may end."""
    ends = torch.tensor(
        raw_end_ids(voice) if alone else voice.vocabulary.end_ids,
        dtype=torch.long,
        device=mask.device,
    )
    column = torch.tensor(may_end, device=mask.device)[:, None].expand(-1, len(ends))
    mask = mask.clone()
    mask[:, ends] = column
    return mask


def restrict(fused: FusedDistribution, legal: Legal, voices: Sequence[Voice]) -> FusedDistribution:
    """Mask what no grammar path allows, and renormalise.

    Args:
        fused: What the fusion gave.
        legal: The masks.
        voices: Main first.

    Returns:
        The distribution over legal keys and, where the grammar may end, END; rows without any
        stay empty.
    """
    device = fused.logprobs.device
    legal_keys = _legal_keys(fused, legal, voices)
    may_end = torch.tensor(legal.may_end, device=device)
    logprobs = fused.logprobs.masked_fill(~legal_keys, -torch.inf)
    end = fused.end.masked_fill(~may_end, -torch.inf)
    total = torch.logaddexp(logprobs.logsumexp(-1), end)
    total = total.masked_fill(total == -torch.inf, 0.0)
    return replace(fused, logprobs=logprobs - total[:, None], end=end - total)


def _legal_keys(fused: FusedDistribution, legal: Legal, voices: Sequence[Voice]) -> Tensor:
    """[N, S] bool: main says which of its keys are legal, the others which of those it lacks."""
    device = fused.logprobs.device
    size = fused.logprobs.shape[-1]
    main_width = voices[0].member.logits_width
    named = fused.keys
    columns = torch.arange(size, device=device)[None] if named is None else named  # [1 or N, S]
    found = torch.zeros_like(fused.logprobs, dtype=torch.bool)
    for place, (voice, mask) in enumerate(zip(voices, legal.masks, strict=True)):
        if place and named is None and size <= main_width:
            break  # the fusion speaks main's keys only
        own = keys_of(voice)[0].from_union.to(device)[columns.clamp_min(0)]
        mine = (columns < main_width) if place == 0 else (columns >= main_width)
        known = ((own >= 0) & (columns >= 0) & mine).expand_as(found)
        found |= known & mask.to(device).gather(1, own.clamp_min(0).expand_as(found))
    return found


def said_together(
    distributions: Sequence[MemberDistribution], weights: Tensor, voices: Sequence[Voice], row: int
) -> FusedDistribution:
    """The weighted mean of what the voices say of legal keys, for one row.

    It decides where the fusion itself has nothing legal left: main cannot spell any of it, and the
    fusion speaks main's keys only. The order of auxiliaries does not matter.

    Args:
        distributions: Masked, one a voice.
        weights: [N, voices] after abstention.
        voices: Main first.
        row: Which row.

    Returns:
        One row over all union keys, without END; empty where nobody can say anything.
    """
    main, _ = keys_of(voices[0])
    device = weights.device
    total = torch.zeros(len(main.from_union), device=device)
    for place, (voice, said) in enumerate(zip(voices, distributions, strict=True)):
        keys, _ = keys_of(voice)
        ids = keys.own.nonzero()[:, 0]
        probs = (said.logprobs[row, ids].exp()).to(device) * weights[row, place]
        total.index_add_(0, keys.to_union[ids].to(device), probs.nan_to_num(0.0))
    logprobs = (total / total.sum().clamp_min(1e-30)).log()[None]
    space = replace(main.space, name="union", width=len(total))
    return FusedDistribution(space, logprobs, logprobs.new_full((1,), -torch.inf))


def stuck(row: Row, voices: Sequence[Voice], warn: Warn) -> Chosen:
    """End a row whose grammar goes on, but with nothing that any voice can say.

    Args:
        row: The row.
        voices: Main first.
        warn: Where to say it.

    Returns:
        The end of the row: ``"length"``, unfinished.

    Raises:
        ConfigError: The grammar itself allows no byte and no end here.
    """
    assert row.grammar is not None  # only a grammar can be stuck
    after = bytes(row.answer[-40:])
    wanted = row.grammar.next_bytes()
    if not wanted:
        raise ConfigError(
            f"the grammar has no way on after {after!r} (byte {len(row.answer)} of answer "
            f"{row.number}) and may not end there: nothing satisfies it. Check its schema or rules"
        )
    names = ", ".join(repr(voice.member.name) for voice in voices)
    listed = ", ".join(repr(bytes([byte])) for byte in wanted[:SHOWN])
    more = f" or {len(wanted) - SHOWN} more" if len(wanted) > SHOWN else ""
    warn(
        f"answer {row.number} ends unfinished with finish reason 'length' after {len(row.answer)} "
        f"bytes: the grammar wants {listed}{more} after {after!r}, and no member with a say "
        f"({names}; main first) can spell that. Use another main member or another grammar"
    )
    return Chosen(-1, None, Finish("length", unfinished=True))
