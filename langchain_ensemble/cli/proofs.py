"""What ``selftest`` proves, each on the user's own members: a detail if it holds, else an error.

Two computations of the same logits differ by rounding, the more the lower the precision. So logits
are compared within ``sqrt(eps)`` of the largest one, and where two greedy answers part, they may do
so only where the two ids lie within ``4 eps + 2e-6`` of it (measured; products are summed in
float32 whatever the dtype), which is then said. Anything else fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from langchain_ensemble.cli.probes import Clock, Ending, Probe, ids_of
from langchain_ensemble.constraints.utf8 import complete_length
from langchain_ensemble.decoding.protocols import VocabularyLike
from langchain_ensemble.members.base import LoadedMember, MemberPrompt
from langchain_ensemble.members.huggingface import HFMember
from langchain_ensemble.params import EnsembleParams

PROMPTS = (
    "Once upon a time, there was a little",
    "The",
    "One day, the children went to the park with a red ball. They",
)
TOKENS = 24
"""Decode steps of a greedy answer."""
IDS = 32
"""Ids over which a cache is compared."""
AFTER = 3
"""Decode steps before END is forced."""
ENDS = 4
"""End ids that are tried, of members that have many."""


class Failed(Exception):
    """A proof that does not hold."""


@torch.no_grad()
def one_member_is_generate(member: HFMember, probe: Probe, ends: Sequence[int]) -> str:
    """Alone, a member says what ``model.generate`` says, token for token, and ends where it does.

    Args:
        member: The member.
        probe: An ensemble of it alone.
        ends: Ids that end its answers.
    """
    count, notes = 0, []
    for prompt in PROMPTS:
        read = list(member.prompt(prompt).ids)
        length = _room(member, len(read))
        row = probe.row(prompt, length)
        ours = ids_of(row.records, row.finish)
        theirs = _generate(member, read, length, ends)
        count += len(ours)
        at = _first_difference(ours, theirs)
        if at is not None:
            notes.append(_explain(member, read, ours, theirs, at, ends))
    return "; ".join([f"{count} tokens equal" if not notes else f"{count} tokens", *notes])


def _room(member: LoadedMember, used: int) -> int:
    """Decode steps that fit a member's context."""
    return TOKENS if member.context is None else max(1, min(TOKENS, member.context - used))


def _generate(
    member: HFMember, read: list[int], length: int, ends: Sequence[int]
) -> list[int | None]:
    """Ids that ``generate`` gives greedily, END as None; the model's sampling values are put by."""
    module, kept = member.module, member.module.generation_config
    ids = torch.tensor([read], device=member.device)
    module.generation_config = GenerationConfig(
        max_new_tokens=length,
        do_sample=False,
        eos_token_id=list(ends) or None,
        pad_token_id=ends[0] if ends else 0,
    )
    try:
        out = module.generate(input_ids=ids, attention_mask=torch.ones_like(ids))
    finally:
        module.generation_config = kept
    given: list[int | None] = []
    for token in out[0, len(read) :].tolist():
        given.append(None if token in ends else token)
        if token in ends:
            break
    return given


def _first_difference(one: Sequence[Any], other: Sequence[Any]) -> int | None:
    for at, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return at
    return None if len(one) == len(other) else min(len(one), len(other))


def _explain(
    member: HFMember,
    read: list[int],
    ours: Sequence[int | None],
    theirs: Sequence[int | None],
    at: int,
    ends: Sequence[int],
) -> str:
    """Say why two greedy answers may part where they do.

    Raises:
        Failed: They may not.
    """
    if at >= min(len(ours), len(theirs)):
        raise Failed(f"{len(ours)} tokens, generate gives {len(theirs)}")
    here = [*read, *(i for i in ours[:at] if i is not None)]
    logits = _uncached(member, here)[-1]
    a, b = (
        logits[i] if i is not None else logits[torch.tensor(ends)].max()
        for i in (ours[at], theirs[at])
    )
    gap = float((a - b).abs())
    allowed = (4 * torch.finfo(member.dtype).eps + 2e-6) * float(logits.abs().max())
    if gap > allowed:
        raise Failed(f"token {at + 1} is {ours[at]}, generate gives {theirs[at]}")
    return f"parts from generate at token {at + 1}, a tie within {gap:.1g} in {member.dtype}"


def _uncached(member: HFMember, ids: Sequence[int]) -> Tensor:
    """Logits of one forward without a cache, [T, V_i] float32."""
    tensor = torch.tensor([list(ids)], device=member.device)
    logits: Tensor = member.module(input_ids=tensor, use_cache=False).logits[0]
    return logits.float()


@torch.no_grad()
def cached_is_uncached(member: HFMember) -> str:
    """Ragged, stepped and rolled back, the cache gives the logits of a forward without one."""
    text = " ".join([*PROMPTS, *PROMPTS])
    ids = list(member.prompt(text).ids)[: min(IDS, member.context or IDS)]
    if len(ids) < 4:
        raise Failed(f"its tokenizer gives {len(ids)} ids for {len(text)} characters")
    want, half = _uncached(member, ids), len(ids) // 2
    session = member.session()
    try:
        session.prefill([MemberPrompt(tuple(ids[:half])), MemberPrompt(tuple(ids[:2]))])
        worst = 0.0
        for at in range(half, len(ids)):  # row 1 stays, then strays, and is taken back
            got = session.step([[ids[at]], [ids[0]] if at % 2 else []])
            worst = max(worst, _distance(member, got[0, -1], want[at]))
        session.truncate([half, 2])
        got = session.step([ids[half:], ids[2:3]], keep=len(ids) - half)
        worst = max(worst, _distance(member, got[0], want[half:]))
        worst = max(worst, _distance(member, got[1, -1], want[2]))
    finally:
        session.close()
    return f"{len(ids)} ids, largest difference {worst:.1g} of the largest logit"


def _distance(member: LoadedMember, got: Tensor, want: Tensor) -> float:
    """Largest difference as a share of the largest logit.

    Raises:
        Failed: It is more than rounding.
    """
    share = float((got - want).abs().max() / want.abs().max().clamp_min(1e-9))
    allowed = torch.finfo(member.dtype).eps ** 0.5
    if not share <= allowed:
        raise Failed(f"logits differ by {share:.2g} of the largest, {allowed:.1g} is rounding")
    return share


@torch.no_grad()
def batch_is_single(member: HFMember) -> str:
    """A padded batch gives each row the logits it has alone."""
    prompts = [member.prompt(text) for text in PROMPTS]
    session, worst = member.session(), 0.0
    try:
        together = session.prefill(prompts)
        for row, prompt in enumerate(prompts):
            alone = member.session()
            worst = max(worst, _distance(member, together[row], alone.prefill([prompt])[0]))
            alone.close()
    finally:
        session.close()
    return f"{len(prompts)} rows, largest difference {worst:.1g} of the largest logit"


def texts_of_a_batch(probe: Probe, exact: bool) -> str:
    """The texts of a batch are those of its prompts one by one."""
    together = [bytes(row.answer) for row in probe.rows(PROMPTS, TOKENS)]
    alone = [bytes(probe.row(prompt, TOKENS).answer) for prompt in PROMPTS]
    different = [n for n, (a, b) in enumerate(zip(together, alone, strict=True)) if a != b]
    if different and exact:
        at = different[0]
        raise Failed(f"prompt {at + 1}: {together[at]!r} in a batch, {alone[at]!r} alone")
    if different:
        return f"{len(different)} of {len(alone)} texts part in low precision; logits are compared"
    return f"{len(alone)} texts equal"


def bytes_are_equal(probe: Probe) -> str:
    """Every member holds the answer's bytes, in its own ids."""
    count, strange = 0, 0
    for row in probe.rows(PROMPTS, TOKENS):
        answer = bytes(row.answer[: row.complete])
        for name, track in zip(_main_first(probe.params), row.tracks, strict=True):
            vocabulary, text = track.vocabulary, " " * track.lead + answer.decode("utf-8")
            canonical, want = vocabulary.encode(text), text.encode()
            if canonical.unknown:  # of a character without a spelling it holds its unk id
                strange, want = strange + canonical.unknown, _bytes(vocabulary, canonical.ids)
            held = _bytes(vocabulary, track.ids)
            unfinished = row.complete < len(row.answer)  # main may hold half a character
            good = held == want or (unfinished and held.startswith(want))
            if not good:
                raise Failed(f"member {name!r} holds {held!r}, the answer is {answer!r}")
        count += len(answer)
    note = f"; {strange} characters that a member cannot spell" if strange else ""
    return f"{count} bytes, {len(probe.names)} members{note}"


def _bytes(vocabulary: VocabularyLike, ids: Sequence[int]) -> bytes:
    """The bytes of ids that are text."""
    table, roles = vocabulary.token_bytes, vocabulary.token_roles
    return b"".join(table[i] or b"" for i in ids if roles[i] is None)


def end_is_honoured(params: EnsembleParams, ends: Sequence[Sequence[int]]) -> str:
    """Where every member says END, the answer ends with "stop", and nothing of END is in it.

    Args:
        params: The members, one or more.
        ends: End ids of each, main first.
    """
    if not all(ends):
        silent = [n for n, e in zip(_main_first(params), ends, strict=True) if not e]
        return f"{', '.join(map(repr, silent))} has no end token and can never vote to end"
    tried = [[e[n % len(e)] for e in ends] for n in range(min(max(map(len, ends)), ENDS))]
    for ids in tried:
        clock = Clock()
        probe = Probe(params, wrap=_ending(ids, clock))
        try:
            row = probe.row(PROMPTS[0], TOKENS)
        finally:
            probe.unload()
        if row.finish is None or row.finish.reason != "stop":
            raise Failed(f"ids {ids} were forced, and the answer went on")
        said = [b"".join(r.bytes for r in row.records[:n]) for n in range(len(row.records))]
        late = [text for text in said[AFTER:-1] if complete_length(text) == len(text)]
        if row.records[-1].bytes or late:  # END waits for the end of a character, for nothing else
            raise Failed(f"ids {ids} were forced at step {AFTER + 1}: {bytes(row.answer)!r}")
    return f"end ids {', '.join(map(str, tried))}"


def _ending(ids: Sequence[int], clock: Clock) -> Any:
    def wrap(place: int, member: LoadedMember) -> Any:
        return Ending(member, clock, ids[place], AFTER, leads=place == 0)

    return wrap


def _main_first(params: EnsembleParams) -> list[str]:
    return [str(member.name) for member in params.ordered]
