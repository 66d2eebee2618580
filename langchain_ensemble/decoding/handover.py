"""Sessions that go from one phase of an answer to the next, so that nothing is read twice."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from langchain_ensemble.decoding.task import Held
from langchain_ensemble.errors import ConfigError
from langchain_ensemble.members.base import MemberPrompt


def read_on(held: Held, prompt: MemberPrompt) -> Tensor:
    """Bring a session to a prompt: keep what both begin with, run the rest.

    Args:
        held: A session with one row. Its last id before the prompt's end is run again where the
            prompt adds nothing, because the logits after it are wanted.
        prompt: What the row shall hold; at least one id.

    Returns:
        Logits after the prompt's last id, [1, V_i].

    Raises:
        ConfigError: The session does not hold what ``held`` says, or the prompt is empty.
    """
    session, ids = held.session, prompt.ids
    if session.lengths != [len(held.ids)] or not ids:
        raise ConfigError(
            f"a held session has rows of lengths {session.lengths}, its ids are {len(held.ids)}, "
            f"the prompt has {len(ids)} ids; it must have one row of just those ids, and a prompt"
        )
    kept = min(shared_length(held.ids, ids), len(ids) - 1)
    session.truncate([kept])
    return session.step([ids[kept:]])[:, -1]


def shared_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix."""
    for number, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return number
    return min(len(a), len(b))


class Kept:
    """Sessions of finished rows, until the next phase takes them or the request is closed."""

    def __init__(self) -> None:
        """Start with none."""
        self._rows: dict[int, list[Held]] = {}

    def put(self, row: int, held: list[Held]) -> None:
        """Keep one row's sessions, one a voice."""
        self._rows[row] = held

    def take(self, row: int) -> list[Held]:
        """Give one row's sessions away; they belong to the caller from now on.

        Raises:
            ConfigError: Nothing is kept of that row.
        """
        if row not in self._rows:
            raise ConfigError(
                f"nothing is kept of answer {row}: it is running, was closed or taken before, or "
                "the task has keep=False"
            )
        return self._rows.pop(row)

    def close(self) -> None:
        """Free what nobody took."""
        for held in self._rows.values():
            for one in held:
                one.session.close()
        self._rows = {}
