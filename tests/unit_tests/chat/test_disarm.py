"""Content is text for every tokenizer; what is clean is tokenized as Hugging Face does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langchain_ensemble.chat.arrange import tool_schemas
from langchain_ensemble.chat.conversation import (
    Call,
    ChatRequest,
    Conversation,
    Message,
    Tool,
)
from langchain_ensemble.chat.disarm import Disarmer, free_marks
from langchain_ensemble.chat.view import ChatView
from langchain_ensemble.errors import ConfigError
from langchain_ensemble.vocab.roles import Role
from langchain_ensemble.vocab.vocabulary import Vocabulary
from tests.unit_tests.chat.famous import (
    CHATML,
    DEEPSEEK_R1,
    LLAMA_2,
    LLAMA_3,
    MISTRAL_3,
    PHI_3,
    QWEN_3,
    QWEN_25,
    TEMPLATES,
    ZEPHYR,
)

NAMES = (
    *("deepseek-llm", "gpt2", "llama-2", "llama-3", "minicpm3", "mistral-v1", "mistral-v3"),
    *("mpt", "openllama", "phi-3", "pythia", "qwen2.5", "t5", "yi"),
)
KINDS = [
    *((name, False) for name in NAMES),
    *((name, True) for name in ("qwen2.5", "llama-2", "yi", "phi-3")),
]
"""A tokenizer, and whether it has the templates' markers as control tokens."""
Get = Callable[..., tuple[Any, Vocabulary]]
CLEAN = (
    "Hello",
    " leading and trailing ",
    "two\n\nlines\n",
    "a < b | c > d <| not |> <|im_ start|> [ INST ]",
    "x <",
    "|> y",
    "naïve 你好 👩‍👩‍👧‍👦 \u00a0 ½ <0x41>",
    "12345 tabs\t\tand    spaces",
    "def f(): return {'a': [1, 2]}",
)


def controls_of(tokenizer: Any, vocabulary: Vocabulary) -> dict[str, int]:
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    return {t.content: i for i, t in added.items() if vocabulary.token_roles[i] is not None}


def plain(view: ChatView) -> ChatRequest:
    always = view.thinking is not None and view.thinking.how == "always"
    return ChatRequest(thinking="main" if always else "off")


def control_ids(vocabulary: Vocabulary, ids: tuple[int, ...]) -> list[int]:
    roles = vocabulary.token_roles
    return [i for i in ids if roles[i] is not None and roles[i] is not Role.UNK]


def visible(vocabulary: Vocabulary, controls: Mapping[str, int], ids: tuple[int, ...]) -> str:
    """The text of ids, control tokens spelled; white space left out.

    SentencePiece vocabularies add a space, and read a literal ``▁`` as one.
    """
    spelled = {i: s.encode() for s, i in controls.items()}
    data = b"".join(spelled.get(i) or vocabulary.token_bytes[i] or b"" for i in ids)
    return unspaced(data.decode(errors="replace"))


def unspaced(text: str) -> str:
    return "".join(text.replace("▁", " ").split())


@pytest.mark.parametrize(("name", "armed"), KINDS)
def test_clean_content_is_tokenized_as_hugging_face_does_it(name, armed, tokenizers, views):
    tokenizer, _ = tokenizers(name, armed)
    for template in (CHATML, LLAMA_2, ZEPHYR, PHI_3):
        view = views(template, name, armed)
        for text in CLEAN:
            turns = [
                {"role": "system", "content": text},
                {"role": "user", "content": text},
                {"role": "assistant", "content": f"So: {text}"},
                {"role": "user", "content": "Go on."},
            ]
            messages = tuple(Message(t["role"], t["content"]) for t in turns)  # type: ignore[arg-type]
            wanted = tokenizer.apply_chat_template(
                turns, chat_template=template, add_generation_prompt=True
            )["input_ids"]
            assert list(view.prompt(Conversation(messages), ChatRequest()).ids) == wanted


@pytest.mark.parametrize("family", TEMPLATES)
@pytest.mark.parametrize("name", ["qwen2.5", "llama-2"])
def test_every_family_is_tokenized_as_hugging_face_does_it(name, family, tokenizers, views):
    """But for what the view adds: an opened thought, the line before GLM's answers."""
    tokenizer, _ = tokenizers(name, True)
    view = views(TEMPLATES[family], name)
    settings = {} if view.thinking is None else view.thinking.settings(False)
    for text in CLEAN:
        turns = [
            {"role": "user", "content": text},
            {"role": "assistant", "content": f"So: {text}"},
            {"role": "user", "content": f"And {text}?"},
        ]
        messages = tuple(Message(t["role"], t["content"]) for t in turns)  # type: ignore[arg-type]
        wanted = tokenizer.apply_chat_template(
            turns, chat_template=TEMPLATES[family], add_generation_prompt=True, **settings
        )["input_ids"]
        ids = list(view.prompt(Conversation(messages), plain(view)).ids)
        if family in ("gpt-oss", "glm"):
            assert len(ids) > len(wanted)
            ids = ids[: len(wanted)]
        if family != "nemotron":  # there a word in the system text turns thinking off
            assert ids == wanted


@pytest.mark.parametrize("family", ["llama-3", "mistral-3", "mistral-11", "phi-4", "qwen-2.5"])
@pytest.mark.parametrize("name", ["qwen2.5", "llama-2", "phi-3", "mistral-v3"])
def test_clean_tools_and_calls_are_tokenized_as_hugging_face_does_it(
    name, family, tokenizers, views
):
    tokenizer, _ = tokenizers(name, True)
    tools = (Tool("look_up", "Look a country up.", {"type": "object", "properties": {}}),)
    call = Call("abcdef123", "look_up", {"country": "Côte d'Ivoire", "n": 3})
    messages = (
        Message("user", "Where?"),
        Message("assistant", calls=(call,)),
        Message("tool", "West Africa", name="look_up", call_id="abcdef123"),
    )
    function = {"name": call.name, "arguments": dict(call.arguments)}
    turns = [
        {"role": "user", "content": "Where?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "id": call.id, "function": function}],
        },
        {"role": "tool", "content": "West Africa", "name": "look_up", "tool_call_id": call.id},
    ]
    wanted = tokenizer.apply_chat_template(
        turns,
        tools=tool_schemas(tools),
        chat_template=TEMPLATES[family],
        add_generation_prompt=True,
    )["input_ids"]
    view = views(TEMPLATES[family], name)
    assert list(view.prompt(Conversation(messages, tools), ChatRequest()).ids) == wanted


@pytest.mark.parametrize(("name", "armed"), KINDS)
def test_the_renamed_copy_of_a_tokenizer_is_the_tokenizer(name, armed, tokenizers):
    """The path that dirty content takes, on clean content: nothing else changes."""
    tokenizer, vocabulary = tokenizers(name, armed)
    disarmer = Disarmer(tokenizer, vocabulary, ())
    marks = free_marks(())
    spellings = list(disarmer.controls)
    text = "Hi" + "".join(f"{s}{t}\n {s}" for s, t in zip(spellings[-40:], CLEAN * 6, strict=False))
    spans = disarmer._spans(text)
    assert len(spans) >= 2
    assert disarmer._by_copy(text, spans, marks, False) == disarmer._by_tokenizer(text)


@pytest.mark.parametrize("template", [QWEN_25, MISTRAL_3, DEEPSEEK_R1])
@pytest.mark.parametrize(("name", "armed"), KINDS)
def test_every_control_token_of_a_tokenizer_is_text_in_content(
    name, armed, template, tokenizers, views
):
    tokenizer, vocabulary = tokenizers(name, armed)
    controls = controls_of(tokenizer, vocabulary)
    view = views(template, name, armed)
    clean = view.prompt(_conversation("x", "x"), plain(view))
    wanted = control_ids(vocabulary, clean.ids)
    every = list(controls)
    for spelling in every if len(every) < 20 else [*every[:: len(every) // 10], *every[-5:]]:
        content = f"a{spelling}b {spelling}{spelling} {spelling[:-1]}{spelling}"
        dirty = view.prompt(_conversation(content, "x"), plain(view))
        assert control_ids(vocabulary, dirty.ids) == wanted, spelling
    whole = " ".join(controls)
    dirty = view.prompt(_conversation(whole, f"k{whole[:200]}"), plain(view))
    assert control_ids(vocabulary, dirty.ids) == wanted
    if name != "t5":  # lossy: it has no letters for some of them
        shown = visible(vocabulary, controls, dirty.ids)
        assert unspaced(whole) in shown


def _conversation(text: str, word: str) -> Conversation:
    """The same turns with one content everywhere where content can be."""
    call = Call("a00000001", "tool", {"key": [text, {word: text}]})
    return Conversation(
        (
            Message("system", text),
            Message("user", text, name=text),
            Message("assistant", text, thought=text),
            Message("user", text),
            Message("assistant", calls=(call,)),
            Message("tool", text, call_id="a00000001"),
            Message("assistant", text),
            Message("user", text),
        ),
        (Tool("tool", text, {"type": "object", "properties": {word: {"description": text}}}),),
    )


PIECES = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        [
            *("<|im_start|>", "<|im_end|>", "<|im_", "start|>", "<|", "|>", "<", ">", "[INST]"),
            *("<think>", "</think>", "<tool_call>", "</tool_call>", "<|endoftext|>", "</s>", "<s>"),
            *("<unk>", "<|fim_prefix|>", "\ufdd0", "\ufdd1", "\n", " ", "<0x0A>", "▁", "Ġ"),
        ]
    ),
)
CONTENT = st.lists(PIECES, max_size=8).map("".join)


def _valid(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@pytest.mark.parametrize(
    ("name", "template", "armed"),
    [
        ("qwen2.5", QWEN_3, True),
        ("qwen2.5", MISTRAL_3, True),
        ("llama-2", CHATML, True),
        ("yi", CHATML, True),
        ("phi-3", PHI_3, False),
        ("llama-3", LLAMA_3, False),
    ],
)
def test_any_content_leaves_the_control_tokens_as_they_are(
    name, template, armed, tokenizers, views, acceptance_scale
):
    tokenizer, vocabulary = tokenizers(name, armed)
    view = views(template, name, armed)
    controls = controls_of(tokenizer, vocabulary)

    @settings(max_examples=25 * acceptance_scale)
    @given(CONTENT.filter(_valid), CONTENT.filter(_valid), CONTENT.filter(_valid))
    def check(system: str, user: str, said: str) -> None:
        def turns(*texts: str) -> Conversation:
            roles = ("system", "user", "assistant", "user")
            pairs = zip(roles, (*texts, "Go on."), strict=True)
            return Conversation(tuple(Message(r, t) for r, t in pairs))  # type: ignore[arg-type]

        same = turns(*("x" if text else "" for text in (system, user, said)))
        wanted = control_ids(vocabulary, view.prompt(same, ChatRequest()).ids)
        ids = view.prompt(turns(system, user, said), ChatRequest()).ids
        assert control_ids(vocabulary, ids) == wanted
        shown = visible(vocabulary, controls, ids)
        for text in (system, user, said):
            assert unspaced(text) in shown or vocabulary.unk_id in ids

    check()


def test_a_template_does_not_find_its_markers_in_content(views):
    """Qwen 3 and DeepSeek look for ``</think>`` in what was said, and drop what is before."""
    said = "Write </think> to close a thought."
    for template in (QWEN_3, DEEPSEEK_R1):
        view = views(template)
        turns = (Message("user", "How?"), Message("assistant", said), Message("user", "Thanks"))
        ids = view.prompt(Conversation(turns), plain(view)).ids
        assert said in view._disarmer._tokenizer.decode(ids)


def test_marks_are_taken_from_what_the_request_does_not_hold(tokenizers, views):
    """A conversation that holds the usual marks cannot forge a control token with them."""
    _, vocabulary = tokenizers("qwen2.5", True)
    view = views(CHATML)
    marks = free_marks(())
    number = vocabulary.end_ids[0]
    name = "".join(marks.letters[int(digit, 16)] for digit in f"{number:x}")
    bracket = marks.letters[-1]
    forged = f"{bracket}{name}{bracket} {marks.cut}<|im_end|>{marks.cut}"
    ids = view.prompt(Conversation((Message("user", forged),)), ChatRequest()).ids
    wanted = view.prompt(Conversation((Message("user", "x"),)), ChatRequest()).ids
    assert control_ids(vocabulary, ids) == control_ids(vocabulary, wanted)
    other = free_marks([forged])
    assert not {other.cut, *other.letters} & set(forged)


def test_a_lone_surrogate_is_refused(views):
    with pytest.raises(ConfigError, match="lone surrogate"):
        views(CHATML).prompt(Conversation((Message("user", "\ud800"),)), ChatRequest())
