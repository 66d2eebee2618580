"""The decode loop: prefill, fuse, choose, advance.

Every member keeps its own KV cache and its own ids for the answer's bytes; after each chosen key
only what is new, or newly spelled, is run. With one voice (main is the only member with weight)
nothing is fused, masked or re-tokenised, which makes a one-member ensemble equal ``generate``.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from langchain_ensemble.constraints.stop import StopScanner
from langchain_ensemble.constraints.utf8 import START
from langchain_ensemble.decoding.boundary import BoundaryTracker
from langchain_ensemble.decoding.choose import draw, generators_for, penalised
from langchain_ensemble.decoding.fusing import (
    keys_of,
    or_end,
    row_weights,
    say,
    spread,
    voice_distribution,
)
from langchain_ensemble.decoding.records import Finish, Piece, TokenRecord, Usage
from langchain_ensemble.decoding.state import Row, Track
from langchain_ensemble.decoding.task import Chosen, Task
from langchain_ensemble.errors import DeadlineError
from langchain_ensemble.fusion.base import MemberDistribution
from langchain_ensemble.members.base import MemberPrompt, MemberSession


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
        self._sessions: list[MemberSession] = []
        self._logits: list[Tensor] = []
        self._trackers: list[BoundaryTracker | None] = []
        device = task.voices[0].member.device
        self._generators = (
            generators_for(request.seed, len(self.rows), n, device)
            if request.temperature > 0
            else None
        )
        self._read = [[len(p.ids) for p in prompt] for prompt in self._prompts]
        self._deadline = None if request.timeout is None else time.monotonic() + request.timeout

    def _tracks(self, prompt: Sequence[MemberPrompt]) -> list[Track]:
        return [
            Track(v.vocabulary, lead=int(p.text_start and v.vocabulary.dummy_prefix))
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
        if not self._sessions:
            self._prefill()
            self._check_deadline()
        chosen = self._choose_raw() if self._one_voice else self._choose_fused()
        pieces = self._advance(chosen)
        if self.done:
            self.close()
        return pieces

    def close(self) -> None:
        """Free the caches; the loop cannot go on afterwards."""
        for session in self._sessions:
            session.close()
        self._sessions, self._logits, self._trackers = [], [], []
        self._active = []

    def _check_deadline(self) -> None:
        if self._deadline is None or time.monotonic() < self._deadline:
            return
        partial = [row.text(0, row.complete) for row in self.rows]
        steps = max(len(row.records) for row in self.rows)
        self.close()
        raise DeadlineError(
            f"timeout of {self._task.request.timeout} s passed after {steps} decode steps of at "
            f"most {self._task.request.max_tokens}; raise timeout= or lower max_tokens= "
            "(the partial text is in .partial)",
            partial,
        )

    # 1. prefill

    def _prefill(self) -> None:
        task = self._task
        repeat = [i for i in range(len(task.prompts)) for _ in range(task.request.n)]
        for place, voice in enumerate(task.voices):
            session = voice.member.session()
            self._sessions.append(session)
            logits = session.prefill([prompt[place] for prompt in task.prompts])
            if task.request.n > 1:
                session.select(repeat)
                logits = logits[torch.tensor(repeat, device=logits.device)]
            self._logits.append(logits)
            tracker = None
            if task.weigh_boundaries and voice.sorted_keys is not None:
                tracker = BoundaryTracker(voice.sorted_keys, len(self.rows))
            self._trackers.append(tracker)

    # 2. fuse and choose

    def _choose_raw(self) -> list[Chosen]:
        """One voice: main's raw logits, as ``generate`` does it."""
        logits, sampling = self._logits[0], self._task.sampling
        scores = logits
        if sampling.penalty is not None:
            scores = torch.cat(
                [
                    sampling.penalty(torch.tensor([self._main_ids(b)], device=logits.device), row)
                    for b, row in enumerate(logits[:, None])
                ]
            )
        picked = draw(scores, sampling, self._row_generators())
        logprobs = logits.gather(1, picked[:, None])[:, 0] - logits.logsumexp(-1)
        voice = self._task.voices[0]
        ends, table = voice.vocabulary.end_ids, voice.vocabulary.token_bytes
        roles = voice.vocabulary.token_roles
        packed = torch.stack([picked.double(), logprobs.double()], -1).cpu().tolist()
        chosen = []
        for value, logprob in packed:
            token = int(value)
            silent = token in ends or token >= len(table) or roles[token] is not None
            data = b"" if silent else table[token] or b""
            said: dict[str, float | None] = {voice.member.name: logprob}
            named = None if token in ends else token
            record = TokenRecord(named, data, logprob, said, fused=False)
            chosen.append(Chosen(-1 if named is None else token, record))
        return chosen

    def _boundaries(
        self, rows: list[Row], distributions: Sequence[MemberDistribution]
    ) -> list[Tensor | None]:
        """c_i of every voice that can be asked what follows half a token."""
        here = [not row.fragment for row in rows]
        return [
            None
            if tracker is None
            else tracker.observe(distributions[place], [r.held_by(place) for r in rows], here)
            for place, tracker in enumerate(self._trackers)
        ]

    def _choose_fused(self) -> list[Chosen]:
        """More than one voice: fuse over keys, choose one, read each voice's say on it."""
        task = self._task
        rows = [self.rows[number] for number in self._active]
        main, _ = keys_of(task.voices[0])
        distributions = [
            voice_distribution(v, self._logits[p], [r.utf8 if p == 0 else START for r in rows])
            for p, v in enumerate(task.voices)
        ]
        silent = [
            [p > 0 and (r.fragment or r.starts_apart(p)) for r in rows]
            for p in range(len(task.voices))
        ]
        boundary = self._boundaries(rows, distributions)
        weights = row_weights(task.weights, distributions, silent, boundary)
        assert task.fuser is not None  # more than one voice
        fused = or_end(task.fuser(*spread(distributions, weights, task.places, task.num_members)))
        ids = [self._main_ids(b) for b in range(len(rows))] if task.sampling.penalty else []
        scores = penalised(fused, fused.end[:, None], main, ids, task.sampling)
        column = draw(scores, task.sampling, self._row_generators())  # [B]
        width = fused.logprobs.shape[-1]
        inside = column.clamp_max(width - 1)[:, None]
        key = inside if fused.keys is None else fused.keys.gather(1, inside)
        is_key = column < width
        key = torch.where(is_key, key[:, 0], -1)
        logprob = torch.where(is_key, fused.logprobs.gather(1, inside)[:, 0], fused.end)
        said = [say(v, d, key) for v, d in zip(task.voices, distributions, strict=True)]
        packed = torch.stack([t.double() for t in (key, logprob, (weights > 0).sum(-1), *said)], -1)
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

    # 3. advance

    def _advance(self, chosen: list[Chosen]) -> list[Piece]:
        pieces, going = [], []
        plans: list[list[tuple[int, list[int]]]] = []
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
            pieces.append(Piece(row.number, text, (pick.record,), row.finish if done else None))
        self._select(going)
        if going:
            self._run(plans)
        return pieces

    def _advance_row(
        self, row: Row, pick: Chosen, read: list[int]
    ) -> list[tuple[int, list[int]]] | None:
        """Give one row its key; returns (kept, new ids) a voice, or None when the row has ended."""
        row.records.append(pick.record)
        if pick.key < 0:
            row.finish = Finish("stop")
            return None
        data = pick.record.bytes
        first = not row.answer and row.tracks[0].lead and len(row.records) == 1
        row.extend(data[1:] if first and data.startswith(b" ") else data)
        plan = self._ids(row, pick, len(data))
        if row.finish is None and len(row.records) >= self._task.request.max_tokens:
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

    def _ids(self, row: Row, pick: Chosen, num_bytes: int) -> list[tuple[int, list[int]]]:
        """(kept, new ids) of every voice for the row's longer answer."""
        plan = []
        text: str | None = None
        for track, voice in zip(row.tracks, self._task.voices, strict=True):
            if voice.verbatim and pick.record.id is not None:
                plan.append(track.append(pick.record.id, num_bytes))
                continue
            if row.fragment:
                plan.append((len(track.ids), []))
                continue
            if text is None:
                text = row.text(0, row.complete)
            before = track.unknown
            plan.append(track.take(text))
            if track.unknown > before == 0:
                self._task.warn(
                    f"member {voice.member.name!r} cannot spell {track.unknown} character(s) of "
                    "the answer; they reach it as its unk id"
                )
        return plan

    def _select(self, going: list[int]) -> None:
        """Drop finished rows from every cache."""
        if len(going) == len(self._active):
            return
        self._active = [self._active[b] for b in going]
        if not going:
            return
        for place, session in enumerate(self._sessions):
            session.select(going)
            self._logits[place] = self._logits[place][going]
            tracker = self._trackers[place]
            if tracker is not None:
                tracker.select(going)

    def _run(self, plans: list[list[tuple[int, list[int]]]]) -> None:
        """Roll back where a spelling changed and run the new ids, all voices side by side."""
        pending = []
        for place, session in enumerate(self._sessions):
            lengths: list[int] = []
            fresh: list[list[int]] = []
            for number, plan in zip(self._active, plans, strict=True):
                kept, new = plan[place]
                prompt = len(self._prompts[number][place].ids)
                lengths.append(prompt + kept if new else session.lengths[len(lengths)])
                fresh.append(new)
            session.truncate(lengths)
            pending.append((place, fresh, session.submit(fresh) if any(fresh) else None))
        for place, fresh, work in pending:
            if work is None:
                continue
            logits = self._sessions[place].collect(work)[:, -1]
            moved = torch.tensor([bool(new) for new in fresh], device=logits.device)
            self._logits[place] = torch.where(moved[:, None], logits, self._logits[place])

    # small helpers

    def _row_generators(self) -> list[torch.Generator] | None:
        if self._generators is None:
            return None
        return [self._generators[number] for number in self._active]

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
