"""The UTF-8 automaton against Python's own decoder."""

from __future__ import annotations

import codecs

from hypothesis import given
from hypothesis import strategies as st

from langchain_ensemble.constraints.utf8 import (
    REJECT,
    START,
    complete_length,
    next_states,
    state_after,
)


def decodable(data: bytes) -> bool:
    """Whether some continuation of the bytes is valid UTF-8, by Python's incremental decoder."""
    try:
        codecs.getincrementaldecoder("utf-8")("strict").decode(data, final=False)
    except UnicodeDecodeError:
        return False
    return True


@given(st.binary(max_size=8))
def test_automaton_agrees_with_python(data: bytes) -> None:
    state = state_after(data)
    assert (state != REJECT) == decodable(data)
    try:
        data.decode()
        whole = True
    except UnicodeDecodeError:
        whole = False
    assert (state == START) == whole


@given(st.text(max_size=6), st.integers(0, 3))
def test_complete_length_cuts_only_the_unfinished_character(text: str, cut: int) -> None:
    data = text.encode()
    data = data[: max(0, len(data) - cut)]
    length = complete_length(data)
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    assert data[:length].decode() == decoder.decode(data)


def test_bytes_that_can_never_be_text_count_as_finished() -> None:
    assert complete_length(b"a\xff") == 2
    assert complete_length(b"\x80\x80") == 2
    assert complete_length(b"\xed\xa0") == 2  # a surrogate
    assert complete_length("a€".encode()[:-1]) == 1


@given(st.lists(st.one_of(st.none(), st.binary(max_size=5)), min_size=1, max_size=20))
def test_table_of_a_vocabulary_equals_token_by_token(tokens: list[bytes | None]) -> None:
    table = next_states(tokens)
    assert table.shape == (8, len(tokens))
    for state in range(8):
        for token, data in enumerate(tokens):
            expected = REJECT if data is None else state_after(data, state)
            assert int(table[state, token]) == expected
