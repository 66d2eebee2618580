from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models
from transformers import PreTrainedTokenizerFast

from langchain_ensemble.vocab.roles import Role, token_roles
from tests.unit_tests.vocab.samples import EVERY

Tokenizers = Callable[[str], Any]

BOS, END, PAD, UNK = Role.BOS, Role.END, Role.PAD, Role.UNK
TURN, THINK, TOOL, OTHER = Role.TURN, Role.THINK, Role.TOOL, Role.OTHER
LLAMA = {0: UNK, 1: BOS, 2: END}


def among(role: Role, *ids: int) -> dict[int, Role]:
    return dict.fromkeys(ids, role)


# Every id with a role; every other added token is text.
EXPECTED: dict[str, dict[int, Role]] = {
    "llama-2": LLAMA,
    "mistral-v1": LLAMA,
    "openllama": {**LLAMA, 32000: PAD},
    "stories260K": LLAMA,
    "bitllama-1M": LLAMA,
    "babyllama-361": LLAMA,
    "babyllama-105": LLAMA,
    "ms_bpe": LLAMA,
    "ms_uni": LLAMA,
    "gpt2": {50256: END},
    "bl_a": {591: END},
    "bl_b": {400: BOS, 401: END},
    "mpt": {0: END, 1: PAD},
    "pythia": {0: END, 1: PAD, 50277: PAD},
    "deepseek-llm": {100000: BOS, 100001: END},
    "t5": {0: PAD, 1: END, 2: UNK, **among(OTHER, *range(32000, 32100))},
    "minicpm3": {
        **LLAMA,
        73440: END,  # <|im_end|>
        73441: TURN,
        **among(TOOL, 73442, 73443, 73444),
        **among(OTHER, 73445, 73446, 73447),
    },
    "phi-3": {
        **LLAMA,
        32000: END,
        32001: TURN,  # <|assistant|>; an end only if the generation config says so
        **among(OTHER, 32002, 32003, 32004, 32005, 32008, 32009),
        32006: TURN,
        32007: END,
        32010: TURN,
        32011: PAD,
    },
    "qwen2.5": {
        151643: END,
        151644: TURN,
        151645: END,
        **among(OTHER, *range(151646, 151657)),
        151657: TOOL,
        151658: TOOL,
        **among(OTHER, *range(151659, 151665)),
    },
    "llama-3": {
        128000: BOS,
        128001: END,
        **among(OTHER, *range(128002, 128006)),
        128006: TURN,
        128007: TURN,
        128008: OTHER,
        128009: END,
        **among(OTHER, *range(128010, 128256)),
    },
    "mistral-v3": {
        **LLAMA,
        3: TURN,
        4: TURN,
        **among(TOOL, *range(5, 10)),
        **among(OTHER, *range(10, 771)),
    },
    "yi": {
        0: UNK,
        1: BOS,
        2: END,
        **among(TURN, 3, 4, 5, 6, 8),
        7: END,  # <|im_end|>, not flagged special
        **among(OTHER, *range(9, 32)),  # reserved, fim, code repositories
        **among(OTHER, *range(145, 305)),
    },
}


@pytest.mark.parametrize("name", EVERY)
def test_every_added_token_has_the_expected_role(tokenizer: Tokenizers, name: str) -> None:
    own = tokenizer(name)
    roles = token_roles(own)
    found = {i: role for i, role in enumerate(roles) if role is not None}
    added = own.backend_tokenizer.get_added_tokens_decoder()
    wrong = {
        i: (own.convert_ids_to_tokens(i), found.get(i), EXPECTED[name].get(i))
        for i in {*found, *EXPECTED[name], *added}
        if found.get(i) != EXPECTED[name].get(i)
    }
    assert wrong == {}


def test_ordinary_text_among_the_added_tokens(tokenizer: Tokenizers) -> None:
    def text(name: str) -> list[str]:
        roles = token_roles(tokenizer(name))
        added = tokenizer(name).backend_tokenizer.get_added_tokens_decoder().items()
        return [token.content for i, token in added if roles[i] is None]

    assert text("pythia") == [" " * n for n in range(24, 1, -1)] == text("mpt")
    assert text("deepseek-llm") == list("øöúÿõ÷ûýÀùÁþü")
    assert {"<h1>", "</td>", "<br/>", "0", "９", ",", "。"} <= set(text("yi"))
    for name in ("llama-2", "llama-3", "qwen2.5", "gpt2", "phi-3", "minicpm3", "t5", "mistral-v3"):
        assert text(name) == []


def test_the_generation_config_makes_ends(tokenizer: Tokenizers) -> None:
    roles = token_roles(tokenizer("phi-3"), end_ids=[32001, 32007])
    assert [roles[i] for i in (32001, 32007, 32010)] == [END, END, TURN]


def tiny(*added: AddedToken | str, words: tuple[str, ...] = (), **named: Any) -> Any:
    vocab = {word: i for i, word in enumerate(("a", "b", *words))}
    rust = Tokenizer(models.BPE(vocab, []))
    rust.add_tokens(list(added))
    return PreTrainedTokenizerFast(tokenizer_object=rust, **named)


def role_of(own: Any, content: str, **settings: Any) -> Role | None:
    return token_roles(own, **settings)[own.convert_tokens_to_ids(content)]


@pytest.mark.parametrize(
    ("content", "role"),
    [
        ("<think>", THINK),
        ("</think>", THINK),
        ("<|begin_of_thought|>", THINK),
        ("<tool_response>", TOOL),
        ("<｜tool▁calls▁begin｜>", TOOL),
        ("<|python_tag|>", TOOL),
        ("<｜User｜>", TURN),
        ("<start_of_turn>", TURN),
        ("<end_of_turn>", END),
        ("<|end_of_turn|>", END),
        ("<|START_OF_TURN_TOKEN|>", TURN),
        ("<unused12>", OTHER),
        ("[control_7]", OTHER),
        ("<|anything at all|>", OTHER),
        ("<|fim_pad|>", OTHER),
        ("<0x0A>", None),
        ("<answer>", None),
        ("[NOTE]", None),
        ("<table>", None),
        ("\n\n", None),
        ("word", None),
    ],
)
def test_unflagged_tokens_show_what_they_are(content: str, role: Role | None) -> None:
    assert role_of(tiny(content), content) is role


def test_a_bracketed_token_in_the_template_is_control() -> None:
    template = "{{ '<answer>' }}{{ '<h1>' }}{{ 'word' }}"
    own = tiny("<answer>", "<h1>", "word")
    assert role_of(own, "<answer>") is None
    assert role_of(own, "<answer>", chat_template=template) is TURN
    assert role_of(own, "<h1>", chat_template=template) is None
    assert role_of(own, "word", chat_template=template) is None
    own.chat_template = {"default": template, "tools": ""}
    assert role_of(own, "<answer>") is TURN


def test_flagged_tokens_are_control_but_not_byte_tokens_or_borrowed_padding() -> None:
    own = tiny(AddedToken("odd", special=True), AddedToken("<0x41>", special=True))
    assert role_of(own, "odd") is OTHER
    assert role_of(own, "<0x41>") is None
    assert role_of(tiny(words=("!",), pad_token="!"), "!") is None
    assert role_of(tiny(pad_token="<pad>"), "<pad>") is PAD


def test_harmony_ends_a_message_not_the_answer_with_end() -> None:
    own = tiny("<|end|>", "<|return|>")
    assert role_of(own, "<|end|>") is TURN
    assert role_of(own, "<|return|>") is END
    assert role_of(tiny("<|end|>"), "<|end|>") is END


def test_what_the_model_emits_for_the_unknown_has_a_role_without_being_added() -> None:
    rust = Tokenizer(models.BPE({"a": 0, "?": 1}, [], unk_token="?"))
    assert token_roles(PreTrainedTokenizerFast(tokenizer_object=rust)) == [None, UNK]
