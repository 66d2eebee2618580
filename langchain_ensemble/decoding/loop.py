"""The decode loop: prefill, fuse, choose, advance.

Every member keeps its own KV cache and its own ids for the answer's bytes; after each chosen key
only what is new, or newly spelled, is run. With one voice (main is the only member with weight)
nothing is fused, masked or re-tokenised, which makes a one-member ensemble equal ``generate``.

What chat adds stands beside the loop: ``masks`` (under a grammar, illegal ids are -inf before the
softmax, with one voice too), ``opening`` (a tool call is one more choice), ``handover`` (sessions
go from one phase of an answer to the next).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from math import isnan
from typing import Any

import torch

from langchain_ensemble.constraints.stop import StopScanner
from langchain_ensemble.decoding.caches import Caches, Change
from langchain_ensemble.decoding.choose import generators_for
from langchain_ensemble.decoding.choosing import choose_all
from langchain_ensemble.decoding.fusing import check_finite
from langchain_ensemble.decoding.grammars import GrammarState
from langchain_ensemble.decoding.handover import Kept
from langchain_ensemble.decoding.question import Question
from langchain_ensemble.decoding.records import Finish, Piece, Usage
from langchain_ensemble.decoding.remarks import Remarks
from langchain_ensemble.decoding.speculation import Speculation
from langchain_ensemble.decoding.state import Row, Track
from langchain_ensemble.decoding.task import Chosen, Held, Task
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
            Row(number, self._tracks(prompt), stops, self._one_voice, self._grammar())
            for number, prompt in enumerate(self._prompts)
        ]
        self._active = list(range(len(self.rows)))  # session row -> row number
        seeds = (request.seed, len(self.rows), n)
        generators = generators_for(*seeds) if request.temperature > 0 else None
        self._caches = Caches(task, generators)
        self._kept = Kept(task)
        self._remarks = Remarks(task)
        self._read = [[len(p.ids) for p in prompt] for prompt in self._prompts]
        self._ahead = Speculation(task, self._caches)
        self._plans: list[list[Change]] = []  # what the voices read next, row by row
        self._deadline = None if request.timeout is None else time.monotonic() + request.timeout

    def _tracks(self, prompt: Sequence[MemberPrompt]) -> list[Track]:
        return [
            Track(v.vocabulary, v.pairs, lead=int(p.text_start and v.vocabulary.dummy_prefix))
            for v, p in zip(self._task.voices, prompt, strict=True)
        ]

    def _grammar(self) -> GrammarState | None:
        return None if self._task.grammar is None else GrammarState(self._task.grammar)

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
        while not self.done and not self.read:
            self.read_on()
        if self.done:
            return []
        begun = time.perf_counter()
        question = self.ask()
        (chosen,) = choose_all([question]) if question is not None else ([],)
        pieces = self.answer(question, chosen)
        self.collect()
        self.note(len(chosen), time.perf_counter() - begun)
        return pieces

    def note(self, settled: int, seconds: float) -> None:
        """Tell what a round cost in which some rows got a key."""
        self._ahead.note(settled / max(1, len(self._active)), seconds)

    @property
    def read(self) -> bool:
        """Whether the prompts were read."""
        return self._caches.opened

    def read_on(self) -> None:
        """Read the prompts, or some of what is left of them.

        Raises:
            DeadlineError: ``timeout`` passed.
        """
        self._check_deadline()
        self._remarks.prompts()
        self._caches.prefill()

    def ask(self) -> Question | None:
        """Say which rows want a key, and what they stand on.

        Returns:
            The question; None where no row runs, or where voices have to read on first.

        Raises:
            DeadlineError: ``timeout`` passed; carries what was decoded.
        """
        self._check_deadline()
        if self.done:
            return None
        self._ahead.keep_pace([self.rows[number] for number in self._active])
        at, logits = self._ahead.standing()
        if not at:
            return None
        draws = self._caches.generators and [self._caches.generators[b] for b in at]
        rows = [self.rows[self._active[b]] for b in at]
        ids = [self._main_ids(row) for row in rows] if self._task.sampling.penalty else []
        proposed = self._ahead.proposed(at)
        shares = self._task.shares(rows)
        told = (self._caches, draws, ids, proposed, shares)
        return Question(self._task, rows, at, logits, *told)

    def answer(
        self, question: Question | None, chosen: Sequence[Chosen], turn: int | None = None
    ) -> list[Piece]:
        """Take a key in every row and start what the voices read next.

        Args:
            question: What was asked, if anything was.
            chosen: One choice a row of the question.
            turn: With drafts, whose turn it is among all requests; None: this request's own.

        Returns:
            The rows' new text.
        """
        records = [pick.record for pick in chosen if pick.record is not None]
        said = [v for record in records for v in (record.logprob, *record.members.values()) if v]
        if question is not None and any(isnan(value) for value in said):
            check_finite(self._task.voices[: len(question.logits)], question.logits)
        pieces = self._advance(*self._ahead.credited(question, chosen))
        if not self.done:
            self._ahead.submit(self._plans, turn)
        if self.done:
            self._ahead.drop()
            self._caches.close()
        return pieces

    def collect(self) -> None:
        """Take what the voices say next."""
        if not self.done:
            self._ahead.collect()

    def kept(self, row: int, voices: int | None = None) -> list[Held]:
        """Give away the sessions of a finished row (``keep=True``), one a voice.

        Args:
            row: Row number.
            voices: How many, main's first; None: all.

        Returns:
            What each voice has read; it belongs to the caller, or to the task it is handed to.

        Raises:
            ConfigError: Nothing is kept of that row.
        """
        return self._kept.take(row, voices)

    def close(self) -> None:
        """Free the caches, kept ones too; the loop cannot go on afterwards."""
        self._ahead.drop()
        self._caches.close()
        self._kept.close()
        self._active = []

    def _check_deadline(self) -> None:
        if self.done or self._deadline is None or time.monotonic() < self._deadline:
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

    def _advance(self, at: Sequence[int], chosen: Sequence[Chosen]) -> list[Piece]:
        pieces: list[Piece] = []
        ended: list[int] = []
        plans: dict[int, list[Change]] = {}
        for b, pick in zip(at, chosen, strict=True):
            row = self.rows[self._active[b]]
            plan = self._advance_row(row, pick)
            text = row.release()
            if row.finish is not None:
                row.close(row.finish)
                self._remarks.spelling(row)
                self._keep(b, row, plan)
                ended.append(b)
            else:
                plans[b] = plan
                self._ahead.settle(b, pick.key, plan)
            tokens = () if pick.record is None else (pick.record,)
            pieces.append(Piece(row.number, text, tokens, row.finish))
        self._select([b for b in range(len(self._active)) if b not in ended])
        self._plans = list(plans.values())
        return pieces

    def _advance_row(self, row: Row, pick: Chosen) -> list[Change]:
        """Give one row its key; returns (kept, new ids) a voice, to be run unless it has ended."""
        standing: list[Change] = [(len(track.ids), []) for track in row.tracks]
        if pick.record is not None:
            row.note(pick.record, pick.evidence)
        if pick.finish is not None or pick.record is None:
            row.finish = pick.finish
            return standing
        data = pick.record.bytes
        first = row.tracks[0].lead and len(row.records) == 1 and self._task.voices[0].trie is None
        whole = not row.fragment and not (first and data.startswith(b" "))
        row.extend(data if whole or row.fragment else data[1:])
        self._remarks.ignored_stop(row)
        if row.finish is not None:  # a stop string: nothing is read any more
            row.tracks[0].append(pick.key)
            return standing
        key = pick.key if whole and len(row.records) > 1 else None
        plan = self._ids(row, pick.record.id, key)
        limit = self._task.request.max_tokens
        if limit is not None and len(row.records) >= limit:
            row.finish = Finish("length")
        else:
            self._make_room(row, plan)
        return plan

    def _make_room(self, row: Row, plan: list[Change]) -> None:
        """Count what every voice is about to read; end the row where one has no room for it."""
        read, prompt = self._read[row.number], self._prompts[row.number]
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
                return
            read[place] += len(new)

    def _keep(self, b: int, row: Row, plan: list[Change]) -> None:
        """Put a finished row's sessions aside for a next phase, or for later requests."""
        if self._kept.wants(row.number):
            counts = self._ahead.cached(b, [count for count, _ in plan])
            self._kept.put(row, counts, lambda: self._caches.hand_over(b, counts))

    def _ids(self, row: Row, token: int | None, key: int | None) -> list[Change]:
        """(kept, new ids) of every voice for the row's longer answer.

        ``token`` is main's id of what was chosen, if it has one; ``key`` is the union key
        whose bytes are all that is new to the voices, if there is one.
        """
        plan = []
        text: str | None = None
        for place, (track, voice) in enumerate(zip(row.tracks, self._task.voices, strict=True)):
            if token is not None and (voice.verbatim or (place == 0 and row.fragment)):
                plan.append(track.append(token))
                continue
            if row.fragment:
                plan.append((len(track.ids), []))
                continue
            if text is None:
                text = row.text(0, row.complete)
            plan.append(track.take(text, key))
        return plan

    def _select(self, going: list[int]) -> None:
        """Drop finished rows from every cache."""
        if len(going) == len(self._active):
            return
        self._active = [self._active[b] for b in going]
        if going:
            self._caches.select(going)
            self._ahead.select(going)

    @torch.inference_mode()
    def mark(self) -> Any:
        """Remember the whole state, to take back steps in which no row has finished."""
        while not self.done and not self.read:
            self.read_on()
        self._ahead.level()
        rows = [self.rows[number].mark() for number in self._active]
        return list(self._active), rows, [list(read) for read in self._read], self._caches.mark()

    @torch.inference_mode()
    def rollback(self, mark: Any) -> None:
        """Return to a mark."""
        active, rows, read, caches = mark
        self._ahead.drop()
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

    def _main_ids(self, row: Row) -> list[int]:
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
                member_seconds=dict(zip(names, self._caches.seconds, strict=True)),
                own_weights=self._task.own_weights(row),
                cached_tokens=dict(zip(names, self._caches.cached, strict=True)),
            )
            for row in self.rows
        ]
