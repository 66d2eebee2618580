"""Incomplete characters: the UTF-8 automaton, over bytes and over a whole vocabulary at once.

States: 0 between characters; 1, 2, 3 that many continuation bytes are missing; 4-7 the second byte
after E0, ED, F0, F4, which is restricted (no overlong forms, no surrogates, nothing above
U+10FFFF). :data:`REJECT` is final: no further byte can make the bytes valid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

START = 0
REJECT = 8
NUM_STATES = 8


def _transitions() -> list[list[int]]:
    table = [[REJECT] * 256 for _ in range(NUM_STATES + 1)]

    def arrow(state: int, low: int, high: int, target: int) -> None:
        table[state][low : high + 1] = [target] * (high + 1 - low)

    arrow(0, 0x00, 0x7F, 0)
    arrow(0, 0xC2, 0xDF, 1)
    arrow(0, 0xE1, 0xEF, 2)
    arrow(0, 0xF1, 0xF3, 3)
    for first, state in ((0xE0, 4), (0xED, 5), (0xF0, 6), (0xF4, 7)):
        table[0][first] = state
    arrow(1, 0x80, 0xBF, 0)
    arrow(2, 0x80, 0xBF, 1)
    arrow(3, 0x80, 0xBF, 2)
    arrow(4, 0xA0, 0xBF, 1)
    arrow(5, 0x80, 0x9F, 1)
    arrow(6, 0x90, 0xBF, 2)
    arrow(7, 0x80, 0x8F, 2)
    return table


_TABLE = _transitions()


def state_after(data: bytes, state: int = START) -> int:
    """Run the automaton over some bytes.

    Args:
        data: Bytes to read.
        state: Where it stands before them.

    Returns:
        The state after them.
    """
    for byte in data:
        state = _TABLE[state][byte]
    return state


def complete_length(data: bytes | bytearray) -> int:
    """Length of the longest prefix that ends between characters.

    Args:
        data: UTF-8, possibly cut inside its last character. Bytes that can never become valid
            count as finished.

    Returns:
        Number of bytes before the unfinished character.
    """
    tail = bytes(data[-4:])
    for back in range(1, len(tail) + 1):
        byte = tail[-back]
        if byte < 0x80:
            return len(data)
        if byte >= 0xC0:
            finished = state_after(tail[-back:]) in (START, REJECT)
            return len(data) if finished else len(data) - back
    return len(data)


def next_states(token_bytes: Sequence[bytes | None]) -> Tensor:
    """For every state and token: the state after the token's bytes.

    Args:
        token_bytes: Bytes of every id; None ids reject.

    Returns:
        [8, V] uint8; :data:`REJECT` where the token makes the bytes impossible to complete.
    """
    table = torch.tensor(_TABLE, dtype=torch.uint8)  # [9, 256]
    states = torch.arange(NUM_STATES, dtype=torch.uint8)[:, None].repeat(1, len(token_bytes))
    lengths = torch.tensor([len(b) if b is not None else -1 for b in token_bytes])
    order = lengths.argsort(descending=True)
    ordered = [token_bytes[i] for i in order.tolist()]
    longest = int(lengths.max()) if len(ordered) else 0
    for column in range(longest):
        active = int((lengths > column).sum())  # the first rows of the ordering
        bytes_here = torch.frombuffer(
            bytearray(b[column] for b in ordered[:active] if b is not None), dtype=torch.uint8
        ).long()
        rows = order[:active]
        states[:, rows] = table[states[:, rows].long(), bytes_here]
    states[:, lengths < 0] = REJECT
    return states
