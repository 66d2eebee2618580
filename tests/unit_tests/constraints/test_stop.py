"""Stop strings: found across any cut into tokens, never leaked."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from langchain_ensemble.constraints.stop import StopScanner

ALPHABET = "ab\n"


def first_match(text: str, stops: list[str]) -> int | None:
    """Where the match that is complete first begins (the longest of those), byte by byte."""
    for end in range(1, len(text) + 1):
        starts = [end - len(s) for s in stops if text[:end].endswith(s)]
        if starts:
            return min(starts)
    return None


@given(
    st.text(ALPHABET, max_size=30),
    st.lists(st.text(ALPHABET, min_size=1, max_size=4), min_size=1, max_size=3),
    st.data(),
)
def test_any_cut_into_tokens_gives_the_same_answer(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    scanner = StopScanner(stops)
    answer, given_out, scanned, at = bytearray(), 0, 0, None
    rest = text.encode()
    while rest and at is None:
        size = data.draw(st.integers(1, len(rest)))
        answer += rest[:size]
        rest = rest[size:]
        found = scanner.find(answer, scanned)
        scanned = len(answer)
        if found is not None:
            at, stop = found
            assert stop in stops
            assert text[at : at + len(stop)] == stop
        else:
            given_out = len(answer) - scanner.held(answer)
            expected = first_match(text, stops)
            assert expected is None or given_out <= expected  # nothing of a match leaks
    assert at == first_match(text, stops)


def test_what_is_held_is_only_a_possible_beginning() -> None:
    scanner = StopScanner(["\nObservation"])
    assert scanner.held(b"Action: x\nObs") == 4
    assert scanner.held(b"Action: x\nObx") == 0
    assert StopScanner([]).held(b"abc") == 0


def test_bytes_of_one_character_are_not_matched_inside_another() -> None:
    assert StopScanner(["é"]).find("è".encode(), 0) is None
