"""Members whose state cannot be rolled back: the changed tail is run again from a kept checkpoint.

For recurrent and hybrid models (Mamba, RWKV, Jamba …) and for those that take no masks or positions
of ours (alibi, longrope). Every row runs alone with the model's own cache, exactly as ``generate``
would run it, so nothing depends on the other rows; the price is speed. A row keeps its ids and the
last few states; the next step after a roll-back picks the newest state that is not past the target
and runs what lies between before its own ids. A full-attention cache is cropped instead of copied.
A model without any state that we know is run over all ids again.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from langchain_ensemble.members.forward import Engine, forward_names, keep_argument
from langchain_ensemble.members.kv_cache import can_crop, plain_cache
from langchain_ensemble.members.session import SessionBase

CHECKPOINTS = 4
"""States kept a row, beside the present one."""

STATE_NAMES = ("past_key_values", "cache_params", "state")
"""What models call the state that they take and return."""


@dataclass
class Row:
    """One row: its ids, and states after some of them.

    Attributes:
        ids: All ids of the row.
        states: (number of ids read, state), oldest first; a state is copied before it is run on.
    """

    ids: list[int] = field(default_factory=list)
    states: list[tuple[int, Any]] = field(default_factory=list)

    def copy(self) -> Row:
        """Copy of the row that can go its own way."""
        return Row(list(self.ids), [(n, copy.deepcopy(s)) for n, s in self.states[-1:]])


class ReplaySession(SessionBase):
    """Rows that run one by one, each with checkpoints of its state.

    Args of the constructor are those of :class:`~langchain_ensemble.members.session.HFSession`;
    ``single`` runs ids one at a time after the first forward, for models whose cached forward over
    several ids is not the same as one by one; ``switch`` is the length past which longrope models
    rotate all positions anew, so that no state survives it.
    """

    def __init__(
        self, engine: Engine, single: bool, switch: int | None = None, rows: Sequence[Row] = ()
    ) -> None:
        """Start empty, or over rows that were copied."""
        self.engine = engine
        self.single = single
        self.switch = switch
        self._rows = list(rows)
        self.lengths = [len(row.ids) for row in self._rows]
        names = forward_names(engine.module)
        self._state_name = next((n for n in STATE_NAMES if n in names), None)

    def _open(self, rows: int) -> None:
        self._rows = [Row() for _ in range(rows)]
        self.lengths = [0] * rows

    def _run(self, ids: Sequence[Sequence[int]], counts: list[int], keep: int) -> Tensor:
        shape = (len(ids), keep, self.engine.width)
        logits = torch.zeros(shape, dtype=self.engine.dtype, device=self.engine.device)
        ends = [n + c for n, c in zip(self.lengths, counts, strict=True)]
        for number, (row, new) in enumerate(zip(self._rows, ids, strict=True)):
            if new:
                wanted = min(keep, len(new))
                row.ids[self.lengths[number] :] = list(new)
                logits[number, keep - wanted :] = self._advance(row, self.lengths[number], wanted)
        self.lengths = ends
        return logits

    def _advance(self, row: Row, start: int, wanted: int) -> Tensor:
        """Run a row's ids that no usable state holds; logits of the last ``wanted``."""
        done, state = self._resume(row, start)
        whole = len(row.ids) - (wanted - 1 if self.single else 0)  # end of the first piece
        if self.single and state is not None:
            whole = done + 1
        ends = [whole, *range(whole + 1, len(row.ids) + 1)]
        parts: list[Tensor] = []
        for end in ends:
            logits, state = self._forward(row.ids[done:end], done, state, wanted)
            parts.append(logits[:, -wanted:])
            done = end
        kept = [] if can_crop(state) else row.states[-CHECKPOINTS:]
        row.states = [*kept, (done, state)]
        return torch.cat(parts, dim=1)[0, -wanted:]

    def _resume(self, row: Row, start: int) -> tuple[int, Any]:
        """The newest state that holds no more than ``start`` ids, free to be run on."""
        usable = [(n, s) for n, s in row.states if self._same(n, len(row.ids))]
        if usable and can_crop(usable[-1][1]):
            done, state = usable[-1]
            row.states = []
            state.crop(min(start - done, 0))
            return min(start, done), state
        row.states = [(n, s) for n, s in usable if n <= start]
        if not row.states:
            return 0, None
        done, state = row.states[-1]
        return done, copy.deepcopy(state)

    def _forward(self, ids: list[int], done: int, state: Any, keep: int) -> tuple[Tensor, Any]:
        """One forward of the model with its own state; (logits [1, q, V_i], state after it)."""
        module, name = self.engine.module, self._state_name
        arguments: dict[str, Any] = {"return_dict": True, **keep_argument(module, keep)}
        if name is not None:
            if state is None and name == "past_key_values":
                state = plain_cache(module.config)
            arguments |= {name: state, "use_cache": True}
        if "position_ids" in forward_names(module):
            positions = torch.arange(done, done + len(ids), device=self.engine.device)
            arguments["position_ids"] = positions[None]
        tensor = torch.tensor([ids], device=self.engine.device)
        output = module(input_ids=tensor, **arguments)
        return cast(Tensor, output.logits), None if name is None else getattr(output, name)

    def _same(self, before: int, after: int) -> bool:
        """Whether the model's positions mean the same at both lengths."""
        return self.switch is None or (before > self.switch) == (after > self.switch)

    def select(self, rows: Sequence[int]) -> None:
        """Keep, drop, reorder or repeat rows."""
        self._rows = [self._live(row).copy() for row in rows]
        self.lengths = [len(row.ids) for row in self._rows]

    def fork(self, rows: Sequence[int]) -> ReplaySession:
        """A second session over copies of some rows."""
        return ReplaySession(
            self.engine, self.single, self.switch, [self._live(row).copy() for row in rows]
        )

    def _live(self, number: int) -> Row:
        """A row without what was rolled back."""
        row, length = self._rows[number], self.lengths[number]
        return Row(row.ids[:length], [(n, s) for n, s in row.states if n <= length])

    def close(self) -> None:
        """Free the states."""
        self._rows = []
        self.lengths = []
