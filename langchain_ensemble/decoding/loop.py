"""The decode loop: prefill, fuse, choose, advance.

Every member keeps its own KV cache and its own ids for the answer's bytes; after each chosen key
only what is new, or newly spelled, is run. With one voice (main is the only member with weight)
nothing is fused, masked or re-tokenised, which makes a one-member ensemble equal ``generate``.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from math import isnan
from typing import Any

import torch

from langchain_ensemble.constraints.stop import StopScanner
from langchain_ensemble.constraints.utf8 import START
from langchain_ensemble.decoding.caches import Caches, Change
from langchain_ensemble.decoding.choose import draw, generators_for, penalised
from langchain_ensemble.decoding.fusing import (
    check_finite,
    keys_of,
    or_end,
    row_weights,
    say,
    spread,
    voice_distribution,
)
from langchain_ensemble.decoding.raw import choose_raw
from langchain_ensemble.decoding.records import Finish, Piece, TokenRecord, Usage
from langchain_ensemble.decoding.state import Row, Track
from langchain_ensemble.decoding.task import Chosen, Task
from langchain_ensemble.errors import ConfigError, DeadlineError
from langchain_ensemble.members.base import MemberPrompt


class Loop:
    """One request's rows, from prefill to the last finish reason. Not thread-safe by itself."""

    def __init__(self, task: Task) -> None:
        """Open the sessions; nothing is run yet."""
        self._task = task
        self._one_voice = len(task.voices) == 1
        n, request = task.request.n, task.request
        stops = StopScanner(request.stop)
        self._prompts = [prompt for prompt in task.prompts for _ in range(n)]
        self.rows = [
            Row(number, self._tracks(prompt), stops, one_voice=self._one_voice)
            for number, prompt in enumerate(self._prompts)
        ]
        self._active = list(range(len(self.rows)))  # session row -> row number
        device = task.voices[0].member.device
        seeds = (request.seed, len(self.rows), n, device)
        generators = generators_for(*seeds) if request.temperature > 0 else None
        self._caches = Caches(task.voices, generators, task.weigh_boundaries)
        self._read = [[len(p.ids) for p in prompt] for prompt in self._prompts]
        self._deadline = None if request.timeout is None else time.monotonic() + request.timeout

    def _warn_unknown_prompts(self) -> None:
        """Say once a request what of the prompts reaches a voice as its unk id."""
        for place, voice in enumerate(self._task.voices):
            unk = voice.vocabulary.unk_id
            count = sum(
                prompt[place].ids.count(unk) for prompt in self._task.prompts if unk is not None
            )
            if count:
                self._task.warn(
                    f"member {voice.member.name!r} cannot spell all of the prompt(s): {count} of "
                    "its ids are its unk id"
                )

    def _tracks(self, prompt: Sequence[MemberPrompt]) -> list[Track]:
        return [
            Track(v.vocabulary, v.pairs, lead=int(p.text_start and v.vocabulary.dummy_prefix))
            for v, p in zip(self._task.voices, prompt, strict=True)
        ]

    @property
    def done(self) -> bool:
        """Whether every row has finished."""
        return not self._active

    @torch.inference_mode()
    def step(self) -> list[Piece]:
        """Decode one more key in every active row.

        Returns:
            The rows' new text.

        Raises:
            DeadlineError: ``timeout`` passed; carries what was decoded.
        """
        if self.done:
            return []
        self._check_deadline()
        if not self._caches.opened:
            self._warn_unknown_prompts()
            self._caches.prefill(self._task.prompts, self._task.request.n)
            self._check_deadline()
        chosen = self._choose_alone() if self._one_voice else self._choose_fused()
        records = [pick.record for pick in chosen]
        said = [value for record in records for value in record.members.values() if value]
        if any(isnan(value) for value in (*said, *(record.logprob for record in records))):
            check_finite(self._task.voices, self._caches.logits)
        pieces = self._advance(chosen)
        if self.done:
            self.close()
        return pieces

    def close(self) -> None:
        """Free the caches; the loop cannot go on afterwards."""
        self._caches.close()
        self._active = []

    def _check_deadline(self) -> None:
        if self._deadline is None or time.monotonic() < self._deadline:
            return
        partial = [row.text(0, row.complete) for row in self.rows]
        steps = max(len(row.records) for row in self.rows)
        self.close()
        raise DeadlineError(
            f"timeout of {self._task.request.timeout} s passed after {steps} decode steps "
            f"(max_tokens={self._task.request.max_tokens}); raise timeout= or lower max_tokens= "
            "(the partial text is in .partial)",
            partial,
        )

    # fuse and choose

    def _choose_alone(self) -> list[Chosen]:
        sampling = self._task.sampling
        ids = [self._main_ids(b) for b in range(len(self._active))] if sampling.penalty else []
        voice, generators = self._task.voices[0], self._caches.generators
        return choose_raw(voice, self._caches.logits[0], ids, sampling, generators)

    def _choose_fused(self) -> list[Chosen]:
        """More than one voice: fuse over keys, choose one, read each voice's say on it."""
        task = self._task
        rows = [self.rows[number] for number in self._active]
        main, _ = keys_of(task.voices[0])
        states = [[row.utf8 if p == 0 else START for row in rows] for p in range(len(task.voices))]
        distributions = [
            voice_distribution(voice, logits, state)
            for voice, logits, state in zip(task.voices, self._caches.logits, states, strict=True)
        ]
        silent = [
            [p > 0 and (r.fragment or r.starts_apart(p)) for r in rows]
            for p in range(len(task.voices))
        ]
        boundary = self._caches.boundaries(rows, distributions)
        weights = row_weights(task.weights, distributions, silent, boundary)
        assert task.fuser is not None  # more than one voice
        fused = or_end(task.fuser(*spread(distributions, weights, task.places, task.num_members)))
        ids = [self._main_ids(b) for b in range(len(rows))] if task.sampling.penalty else []
        scores = penalised(fused, fused.end[:, None], main, ids, task.sampling)
        column = draw(scores, task.sampling, self._caches.generators)  # [B]
        width = fused.logprobs.shape[-1]
        inside = column.clamp_max(width - 1)[:, None]
        key = inside if fused.keys is None else fused.keys.gather(1, inside)
        is_key = column < width
        key = torch.where(is_key, key[:, 0], -1)
        logprob = torch.where(is_key, fused.logprobs.gather(1, inside)[:, 0], fused.end)
        said = [say(v, d, key) for v, d in zip(task.voices, distributions, strict=True)]
        packed = torch.stack([t.float() for t in (key, logprob, (weights > 0).sum(-1), *said)], -1)
        return [self._record(values) for values in packed.cpu().tolist()]  # the one transfer

    def _record(self, values: list[float]) -> Chosen:
        key = int(values[0])
        data = b"" if key < 0 else self._task.key_bytes[key] or b""
        width = self._task.voices[0].member.logits_width
        members = {
            voice.member.name: None if said == -torch.inf else said
            for voice, said in zip(self._task.voices, values[3:], strict=True)
        }
        token = key if 0 <= key < width else None
        return Chosen(key, TokenRecord(token, data, values[1], members, fused=values[2] > 1))

    # advance

    def _advance(self, chosen: list[Chosen]) -> list[Piece]:
        pieces, going = [], []
        plans: list[list[Change]] = []
        for b, pick in enumerate(chosen):
            row = self.rows[self._active[b]]
            plan = self._advance_row(row, pick, self._read[row.number])
            if row.finish is None and plan is not None:
                going.append(b)
                plans.append(plan)
            text = row.release()
            done = row.finish is not None
            if done:
                row.close(row.finish or Finish("length"))
                self._warn_unknown(row)
            pieces.append(Piece(row.number, text, (pick.record,), row.finish if done else None))
        self._select(going)
        if going:
            self._caches.run(plans)
        return pieces

    def _advance_row(self, row: Row, pick: Chosen, read: list[int]) -> list[Change] | None:
        """Give one row its key; returns (kept, new ids) a voice, or None when the row has ended."""
        row.records.append(pick.record)
        if pick.key < 0:
            row.finish = Finish("stop")
            return None
        data = pick.record.bytes
        first = row.tracks[0].lead and len(row.records) == 1
        whole = not row.fragment and not (first and data.startswith(b" "))
        row.extend(data if whole or row.fragment else data[1:])
        if row.finish is not None:  # a stop string: nothing is read any more
            row.tracks[0].append(pick.key)
            return None
        plan = self._ids(row, pick, pick.key if whole and len(row.records) > 1 else None)
        limit = self._task.request.max_tokens
        if row.finish is None and limit is not None and len(row.records) >= limit:
            row.finish = Finish("length")
        if row.finish is not None:
            return None
        prompt = self._prompts[row.number]
        for place, (kept, new) in enumerate(plan):
            member = self._task.voices[place].member
            need = len(prompt[place].ids) + kept + len(new)
            if new and member.context is not None and need > member.context:
                row.finish = Finish("length", full_member=member.name)
                self._task.warn(
                    f"answer {row.number} ends with finish reason 'length' after "
                    f"{len(row.records)} decode steps: member {member.name!r} has "
                    f"{member.context} positions and would need {need}"
                )
                return None
            read[place] += len(new)
        return plan

    def _ids(self, row: Row, pick: Chosen, key: int | None) -> list[Change]:
        """(kept, new ids) of every voice for the row's longer answer.

        ``key`` is the union key whose bytes are all that is new to the voices, if there is one.
        """
        plan = []
        text: str | None = None
        for track, voice in zip(row.tracks, self._task.voices, strict=True):
            if voice.verbatim and pick.record.id is not None:
                plan.append(track.append(pick.record.id))
                continue
            if row.fragment:
                plan.append((len(track.ids), []))
                continue
            if text is None:
                text = row.text(0, row.complete)
            plan.append(track.take(text, key))
        return plan

    def _warn_unknown(self, row: Row) -> None:
        """Say once a row what reached a voice as its unk id."""
        for track, voice in zip(row.tracks, self._task.voices, strict=True):
            if unknown := track.unspelled:
                self._task.warn(
                    f"member {voice.member.name!r} cannot spell all of answer {row.number}: "
                    f"{unknown} of its {len(track.spelled)} ids are its unk id"
                )

    def _select(self, going: list[int]) -> None:
        """Drop finished rows from every cache."""
        if len(going) == len(self._active):
            return
        self._active = [self._active[b] for b in going]
        if going:
            self._caches.select(going)

    def mark(self) -> Any:
        """Remember the whole state, to take back steps in which no row has finished."""
        rows = [self.rows[number].mark() for number in self._active]
        return list(self._active), rows, [list(read) for read in self._read], self._caches.mark()

    @torch.inference_mode()
    def rollback(self, mark: Any) -> None:
        """Return to a mark."""
        active, rows, read, caches = mark
        if active != self._active:
            raise ConfigError(
                f"rows {self._active} run now, rows {active} ran at the mark; a step in which "
                "a row finished cannot be taken back"
            )
        for number, row in zip(active, rows, strict=True):
            self.rows[number].rollback(row)
        self._read = [list(r) for r in read]
        ids = [[track.ids for track in self.rows[number].tracks] for number in active]
        self._caches.rollback(caches, ids)

    # small helpers

    def _main_ids(self, b: int) -> list[int]:
        row = self.rows[self._active[b]]
        return [*self._prompts[row.number][0].ids, *row.tracks[0].ids]

    def usage(self) -> list[Usage]:
        """Counts of every row so far."""
        names = [voice.member.name for voice in self._task.voices]
        return [
            Usage(
                prompt_tokens=len(self._prompts[row.number][0].ids),
                completion_tokens=len(row.tracks[0].ids),
                steps=len(row.records),
                fused_steps=sum(record.fused for record in row.records),
                member_tokens=dict(zip(names, self._read[row.number], strict=True)),
            )
            for row in self.rows
        ]
