from __future__ import annotations

from collections.abc import Callable

import pytest

from langchain_ensemble.vocab.borders import Border, Borders, literals
from langchain_ensemble.vocab.vocabulary import Vocabulary
from tests.unit_tests.vocab.samples import EVERY
from tests.unit_tests.vocab.tiny_tokenizers import tiny


def never(a: str, b: str) -> bool:
    return False


def test_without_a_splitter_a_border_is_a_pair_that_no_token_holds() -> None:
    borders = Borders(None, [b" the", b"he", "é".encode(), b"\xc3"], True, ["xy"], never)
    assert borders.between("t", "h") is Border.NONE
    assert borders.between("e", " ") is Border.HARD
    assert borders.between("x", "y") is Border.NONE
    assert borders.pieces("the the") == ["the", " the"]
    assert borders.last("the the", Border.HARD) == 3
    assert borders.last("the", Border.HARD) == 0
    assert borders.pieces("") == []


def test_tokens_that_hold_parts_of_characters_are_judged_by_their_bytes() -> None:
    borders = Borders(None, [b"\xa9\xc3", b"ab"], True, [], never)
    assert borders.between("é", "é") is Border.NONE  # c3 a9 | c3 a9
    assert borders.between("é", "a") is Border.HARD
    assert borders.between("a", "b") is Border.NONE


def test_a_splitter_that_looks_ahead_makes_no_border_where_it_looks() -> None:
    def split(text: str) -> frozenset[int]:  # before the last space of a run, as GPT-2 does
        return frozenset(
            at
            for at in range(1, len(text))
            if text[at] == " " and (text[at - 1] != " " or text[at + 1 : at + 2] not in ("", " "))
        )

    borders = Borders(split, [b"\xff\xff"], True, [], never)
    assert borders.between("a", " ") is Border.HARD
    assert borders.between(" ", " ") is Border.NONE
    assert borders.between(" ", "a") is Border.NONE


def test_unknown_neighbours_have_a_loose_border() -> None:
    borders = Borders(None, [b"a"], True, [], lambda a, b: a == b == "?")
    assert borders.between("?", "?") is Border.LOOSE
    assert borders.pieces("a??") == ["a", "??"]
    assert borders.last("a??", Border.LOOSE) == 2
    assert borders.last("a??", Border.HARD) == 1


def test_what_a_pattern_spells_out_is_found() -> None:
    assert {"'r", "'R", "re", "RE", "Re"} <= set(literals({"type": "ByteLevel"}))
    split = {"type": "Split", "pattern": {"String": "://"}}
    assert set(literals({"type": "Sequence", "pretokenizers": [split]})) == {":/", "//"}
    assert literals(None) == []


@pytest.mark.parametrize("name", EVERY)
def test_words_begin_at_borders(vocabulary: Callable[[str], Vocabulary], name: str) -> None:
    v = vocabulary(name)
    for before in "ez.,!?;9)":
        assert v.border(before, " ")
    assert v.border("t", "h") == (not any(b"th" in key for key in v.key_of))


def test_no_borders_are_used_where_a_text_of_all_kinds_disproves_them() -> None:
    v = Vocabulary(tiny("metaspace_scripts"))
    assert not v.border("e", " ")
