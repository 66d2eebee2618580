"""More than one voice: fuse over keys, choose one, read each voice's say on it.

Where a gate is shut main speaks alone: what is chosen from is its own masked distribution, not the
fusion with all weight on main (UniTE would cut it off after its best keys, DeePEn would search).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from langchain_ensemble.decoding.choose import penalised
from langchain_ensemble.decoding.fusing import (
    checked,
    keys_of,
    or_end,
    say,
    spread,
    voice_distribution,
)
from langchain_ensemble.decoding.gate_rules import mixed, of_main, on_host, rows_of, sure
from langchain_ensemble.decoding.gates import OPEN as FUSED
from langchain_ensemble.decoding.gates import (
    REASONS,
    SURE,
    Gatekeeper,
    read_gate,
    weights_behind,
)
from langchain_ensemble.decoding.hearing import Heard, hear
from langchain_ensemble.decoding.masks import Legal, restrict, said_together, stuck
from langchain_ensemble.decoding.online import evidence_of
from langchain_ensemble.decoding.opening import Odds, fused_odds, opened, scaled
from langchain_ensemble.decoding.protocols import Teller
from langchain_ensemble.decoding.question import Question
from langchain_ensemble.decoding.records import Finish, TokenRecord
from langchain_ensemble.decoding.seeing import Sight, watched
from langchain_ensemble.decoding.task import Chosen, Task
from langchain_ensemble.decoding.verify import Proposed, draw_or_accept
from langchain_ensemble.fusion.base import FusedDistribution, MemberDistribution, Told

END, OPEN = -1, -2
"""What is chosen beside union keys."""


class Fused(NamedTuple):
    """What the voices of n rows say, and what that is together.

    Attributes:
        heard: What they say; no grammar holds.
        fused: The fusion.
        told: How it heard them, where weights follow the answer.
    """

    heard: Heard
    fused: FusedDistribution
    told: Told | None


def choose_fused(question: Question) -> list[Chosen]:
    """Choose one key a row.

    Args:
        question: The rows and what they stand on.

    Returns:
        One choice a row.
    """
    task, generators = question.task, question.generators
    voices = task.voices
    heard, fused, told, shut, only_best, dead = _spoken(question)
    distributions, legal, weights = heard.distributions, heard.legal, heard.weights
    odds = fused_odds(question, None if legal is None else legal.masks[0])
    key, logprob = _pick(task, fused, question.ids, generators, odds, question.proposed)
    columns = torch.stack([key, logprob, (weights > 0).sum(-1), *dead])  # float32
    said = say(voices, distributions, key)
    sight = Sight(question, heard, fused, weights)
    why = [] if shut is None else [shut[None]]
    regards = [_evidence(question, heard, told, key)] if task.online else []
    packed = torch.cat([columns, said, *regards, *why, *sight.columns]).cpu().T.tolist()
    chosen = []
    for b, (chosen_key, value, count, *more) in enumerate(packed):  # the one transfer
        nothing, more = (more[0], more[1:]) if dead else (0.0, more)
        each, more = more[: len(voices)], more[len(voices) :]
        regard, more = (more[: len(voices)], more[len(voices) :]) if regards else ([], more)
        reason, more = (REASONS[int(more[0])], more[1:]) if why else (None, more)
        if value == -torch.inf:  # a fusion that gives nothing any probability ends the answer
            chosen.append(chosen_of(task, END, 0.0, each, fused=count > 1))
        elif nothing and legal is not None and not legal.may_end[b]:
            own = None if odds is None else odds.row(b)
            chosen.append(_without_fusion(question, b, distributions, weights, own))
        elif chosen_key == OPEN and task.opening is not None:
            generator = None if generators is None else generators[b]
            chosen.append(opened(task, task.opening, value, question.logits[0][b], generator))
        else:
            told = None if only_best and reason is None else value
            chosen.append(chosen_of(task, int(chosen_key), told, each, fused=count > 1))
        chosen[-1] = sight.told(b, chosen[-1], reason, more)
        if regard and reason is None and not nothing:  # behind a gate nobody is compared
            chosen[-1] = replace(chosen[-1], evidence=tuple(regard))
    return chosen


def _spoken(
    question: Question,
) -> tuple[Heard, FusedDistribution, Told | None, Tensor | None, bool, list[Tensor]]:
    """What the voices say, alone and together.

    Returns:
        What they say, with the weights behind the gate; what is chosen from; what was told; [N] why
        main speaks alone; whether only the best entry is meant; [N] where nothing is left, if that
        may be anywhere.
    """
    task = question.task
    replayed = None if task.regions is None else task.regions.fuse(question)
    if replayed is not None:
        fused, nowhere = or_end(replayed.fused)
        return replayed.heard, fused, replayed.told, None, False, [nowhere]
    heard = hear(question)
    gate = Gatekeeper(task.request.gate, task.voices, task.key_bytes)
    shut = gate.codes(heard.distributions, heard.weights, heard.boundary)
    heard = replace(heard, weights=weights_behind(heard.weights, shut))
    fused, only_best, told = _behind(question, heard, gate, shut)
    if all(one.abstain is None for one in heard.distributions):
        return heard, fused, told, shut, only_best, []
    fused, nowhere = or_end(fused)
    return heard, fused, told, shut, only_best, [nowhere]


def _evidence(question: Question, heard: Heard, told: Told | None, key: Tensor) -> Tensor:
    """How well each voice says what was chosen, [M, N]; behind a gate it is asked anew."""
    task = question.task
    if told is None:
        fuser, places, size = task.fuser, task.places, task.num_members
        assert isinstance(fuser, Teller)  # checked where the request was read
        spoken = spread(heard.distributions, heard.weights, places, size, fuser)
        told = fuser.telling(*spoken)[1]
    return evidence_of(told, key, heard.weights, heard.boundary)


def choose_by_main(question: Question) -> list[Chosen]:
    """Choose one key a row where a gate asks main alone and the others have not read so far.

    Args:
        question: The rows and what they stand on.

    Returns:
        What :func:`choose_fused` would choose; what the others say of it is not known.
    """
    task, generators = question.task, question.generators
    voice, gate = task.voices[0], read_gate(task.request.gate)
    main = voice_distribution(voice, question.logits[0], [row.utf8 for row in question.rows])
    fused = of_main(main) if main.abstain is None else or_end(of_main(main))[0]
    odds = fused_odds(question)
    key, logprob = _pick(task, fused, question.ids, generators, odds, question.proposed)
    columns = torch.stack([key.float(), logprob, SURE * sure(main, gate.below)])
    packed = torch.cat([columns, say([voice], [main], key)]).cpu().T.tolist()
    unheard = [-torch.inf] * (len(task.voices) - 1)
    chosen = []
    for b, (chosen_key, value, why, own) in enumerate(packed):
        if value == -torch.inf:
            pick = chosen_of(task, END, 0.0, [own, *unheard], fused=False)
        elif chosen_key == OPEN and task.opening is not None:
            generator = None if generators is None else generators[b]
            pick = opened(task, task.opening, value, question.logits[0][b], generator)
        else:
            pick = chosen_of(task, int(chosen_key), value, [own, *unheard], fused=False)
        assert pick.record is not None  # something was chosen
        chosen.append(replace(pick, record=replace(pick.record, gate=REASONS[int(why)])))
    return chosen


def _behind(
    question: Question, heard: Heard, gate: Gatekeeper, shut: Tensor | None
) -> tuple[FusedDistribution, bool, Told | None]:
    """What is chosen from behind a gate, whether only its best entry is meant, and what was told.

    Args:
        question: The rows.
        heard: What the voices say, and the weights behind the gate.
        gate: The gate.
        shut: [N] why main speaks alone in a row, 0: it does not; None: nowhere.
    """
    if shut is None:
        return _fuse(question, heard, gate)
    if question.task.voices[0].trie is not None:  # all the weight is main's: heard along its paths
        return _fuse(question, heard, gate)
    main, is_open = heard.distributions[0], shut == FUSED
    if not on_host(shut) or heard.legal is not None:
        fused, only_best, told = _fuse(question, heard, gate)
        return mixed(main, fused, is_open), only_best, told
    rows = is_open.nonzero()[:, 0]  # nothing is waited for: only these are fused
    if not len(rows):
        return of_main(main), False, None
    if len(rows) == len(shut):
        return _fuse(question, heard, gate)
    fused, only_best, _ = _fuse(question, _rows_of(heard, rows), gate)
    return mixed(main, fused, rows), only_best, None


def _rows_of(heard: Heard, rows: Tensor) -> Heard:
    """Some rows of what the voices say; no grammar holds."""
    return replace(
        heard,
        distributions=[rows_of(one, rows) for one in heard.distributions],
        weights=heard.weights[rows],
        boundary=[None if one is None else one[rows.to(one.device)] for one in heard.boundary],
    )


def _fuse(
    question: Question, heard: Heard, gate: Gatekeeper
) -> tuple[FusedDistribution, bool, Told | None]:
    """What the members say together, whether only its best entry is meant, and what was told."""
    task = question.task
    assert task.fuser is not None  # more than one voice
    spoken = spread(heard.distributions, heard.weights, task.places, task.num_members, task.fuser)
    told, best = None, None
    if task.online and isinstance(task.fuser, Teller):
        fused, told = task.fuser.telling(*spoken)
    else:
        asked = not gate.gate.sharpens and _only_best(question, heard.legal)
        best = getattr(task.fuser, "best", None) if asked else None
        fused = checked((best or task.fuser)(*spoken))
    if heard.legal is not None:
        fused = restrict(fused, heard.legal, task.voices)
    return gate.sharpened(fused, heard.weights), best is not None, told


def _only_best(question: Question, legal: Legal | None) -> bool:
    """Whether nothing but the best entry is asked of the fusion: what it adds may be left out."""
    task = question.task
    bare = task.sampling.penalty is None and task.opening is None and legal is None
    return bare and question.generators is None and not watched(task.request)


def _pick(
    task: Task,
    fused: FusedDistribution,
    ids: Sequence[Sequence[int]],
    generators: Sequence[torch.Generator] | None,
    odds: Odds | None = None,
    proposed: Sequence[Proposed | None] = (),
) -> tuple[Tensor, Tensor]:
    """Draw a key, END or OPEN a row: (key [N], log-probability [N])."""
    main, _ = keys_of(task.voices[0])
    if odds is not None:
        fused = scaled(fused, odds)
    plain = torch.cat([fused.logprobs, fused.end[:, None]], -1)
    scores = penalised(plain, fused.keys, main, ids, task.sampling)
    if odds is not None:
        plain = torch.cat([plain, odds.opens[:, None]], -1)
        scores = torch.cat([scores, odds.opens[:, None]], -1)
    # [N]
    column = draw_or_accept(
        scores, fused.keys, fused.logprobs.shape[-1], task.sampling, generators, proposed
    )
    return chosen_key(fused, plain, column)


def chosen_key(fused: FusedDistribution, plain: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
    """What some columns mean.

    Args:
        fused: The fused distribution, n rows.
        plain: [n, C] log-probabilities of its keys, END, and maybe OPEN.
        column: [n] the chosen ones.

    Returns:
        Keys, END or OPEN, [n], and their log-probabilities [n].
    """
    logprob = plain.gather(1, column[:, None])[:, 0]
    width = fused.logprobs.shape[-1]
    beyond = width - 1 - column  # END, OPEN
    key = column
    if fused.keys is not None:
        key = fused.keys.gather(1, column.clamp_max(width - 1)[:, None])[:, 0]
    return torch.where(column < width, key, beyond), logprob


def chosen_of(
    task: Task, key: int, logprob: float | None, said: Sequence[float], *, fused: bool
) -> Chosen:
    """What is told of one row's key.

    Args:
        task: The request.
        key: Union key, or END.
        logprob: Its fused log-probability; None: not known.
        said: Each voice's own, -inf where it lacks the key.
        fused: Whether more than one voice was heard.
    """
    data = b"" if key < 0 else task.key_bytes[key] or b""
    members = {
        voice.member.name: None if value == -torch.inf else value
        for voice, value in zip(task.voices, said, strict=True)
    }
    token = key if 0 <= key < task.voices[0].member.logits_width else None
    record = TokenRecord(token, data, logprob, members, fused=fused)
    return Chosen(key, record, Finish("stop") if key < 0 else None)


def _without_fusion(
    question: Question,
    b: int,
    distributions: Sequence[MemberDistribution],
    weights: Tensor,
    odds: Odds | None,
) -> Chosen:
    """A row in which the fusion has nothing legal left: the voices' mean over all keys decides."""
    task = question.task
    together = said_together(distributions, weights, task.voices, b)
    if odds is None and bool((together.logprobs == -torch.inf).all()):
        return stuck(question.rows[b], task.voices, task.warn)
    generators = None if question.generators is None else [question.generators[b]]
    key, logprob = _pick(task, together, question.ids[b : b + 1], generators, odds)
    if task.opening is not None and int(key) == OPEN:
        generator = None if generators is None else generators[0]
        return opened(task, task.opening, float(logprob), question.logits[0][b], generator)
    here = slice(b, b + 1)
    alone = [replace(d, logprobs=d.logprobs[here], end=d.end[here]) for d in distributions]
    said = say(task.voices, alone, key)[:, 0].tolist()
    fused = sum(value > -torch.inf for value in said) > 1
    return chosen_of(task, int(key), float(logprob), said, fused=fused)
