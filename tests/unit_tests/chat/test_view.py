"""A view: system prompts, tools in either form, the plain template, context, the demo members."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from langchain_ensemble.chat.arrange import tool_schemas
from langchain_ensemble.chat.conversation import (
    Call,
    ChatRequest,
    Conversation,
    Message,
    Tool,
)
from langchain_ensemble.chat.tool_formats import CANONICAL
from langchain_ensemble.chat.view import ChatView
from langchain_ensemble.constraints.compile import compile_all
from langchain_ensemble.constraints.grammar import GrammarVocabulary
from langchain_ensemble.errors import ConfigError, ContextError
from langchain_ensemble.vocab.vocabulary import Vocabulary
from tests.unit_tests.chat.famous import (
    CHATML,
    DEEPSEEK_31,
    GRANITE,
    LLAMA_2,
    LLAMA_3,
    MISTRAL_1,
    MISTRAL_3,
    PHI_3,
    QWEN_25,
    TEMPLATES,
)

PLAIN = ChatRequest()
FUSED = ChatRequest(tools_by="fused")
PARAMETERS = {"type": "object", "properties": {"country": {"type": "string"}}}
TOOL = Tool("look_up", "Look a country up.", PARAMETERS)
CALL = Call("call_1", "look_up", {"country": "Mali"})


def text_of(view: ChatView, conversation: Conversation, request: ChatRequest = PLAIN) -> str:
    return str(view._disarmer._tokenizer.decode(view.prompt(conversation, request).ids))


def asked(*messages: Message, tools: tuple[Tool, ...] = ()) -> Conversation:
    return Conversation(messages or (Message("user", "Hi"),), tools)


def test_the_view_s_system_prompt_comes_before_the_conversation_s(views):
    conversation = asked(Message("system", "Two."), Message("user", "Hi"))
    assert text_of(views(CHATML, system="One."), conversation) == (
        "<|im_start|>system\nOne.<|im_end|>\n<|im_start|>system\nTwo.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert "<s> [INST] One.\n\nTwo.\n\nHi [/INST]" in text_of(
        views(MISTRAL_1, "mistral-v1", False, system="One."), conversation
    )


def test_there_is_one_bos_where_the_template_writes_it(views, tokenizers):
    for name, template in (("llama-2", LLAMA_2), ("llama-3", LLAMA_3), ("mistral-v3", MISTRAL_3)):
        tokenizer, _ = tokenizers(name)
        ids = views(template, name, False).prompt(asked(), PLAIN).ids
        assert ids[0] == tokenizer.bos_token_id
        assert ids.count(tokenizer.bos_token_id) == 1


def test_a_base_model_reads_a_plain_dialogue_and_says_so(tokenizers):
    warnings: list[str] = []
    for name, bos in (("llama-2", True), ("gpt2", False)):
        tokenizer, vocabulary = tokenizers(name)
        view = ChatView(
            name,
            tokenizer,
            vocabulary,
            chat_template=None,
            system=None,
            context=None,
            warn=warnings.append,
        )
        ids = list(view.prompt(asked(), PLAIN).ids)
        assert ids == tokenizer("User:\nHi\n\nAssistant:\n")["input_ids"]
        assert (ids[0] == tokenizer.bos_token_id) == bos
        assert "\nUser:" in view.stop
    assert [w.split(";")[0] for w in warnings] == [
        "member 'llama-2' has no chat template",
        "member 'gpt2' has no chat template",
    ]


def test_a_model_with_a_template_needs_no_stop(views):
    assert views(CHATML).stop == ()


def test_a_conversation_that_does_not_fit_names_the_numbers(views):
    view = views(CHATML, context=5)
    length = view.count(asked())
    with pytest.raises(ContextError, match=rf"{length} tokens .* 5 positions") as caught:
        view.prompt(asked(), PLAIN)
    error = caught.value
    assert (error.member, error.length, error.limit) == ("qwen2.5", length, 5)
    assert views(CHATML, context=length).prompt(asked(), PLAIN)


def test_count_is_the_length_of_the_prompt(views):
    conversation = asked(Message("user", "Hi"), tools=(TOOL,))
    for template in (QWEN_25, LLAMA_3, GRANITE):
        view = views(template)
        assert view.count(conversation) == len(view.prompt(conversation, PLAIN).ids)
        assert view.count(conversation) > view.count(asked())


def test_native_tools_are_shown_by_the_template(views):
    text = text_of(views(QWEN_25), asked(tools=(TOOL,)))
    assert "<tools>\n{" in text
    assert CANONICAL.opening not in text


@pytest.mark.parametrize("family", TEMPLATES)
def test_fused_calls_have_one_form_for_every_member(family, views):
    """Tools, calls and results in the common form; the template's own is off."""
    view = views(TEMPLATES[family])
    always = view.thinking is not None and view.thinking.how == "always"
    request = ChatRequest(tools_by="fused", thinking="main" if always else "off")
    conversation = asked(
        Message("user", "Hi"),
        Message("assistant", calls=(CALL,)),
        Message("tool", "A country.", call_id="call_1"),
        tools=(TOOL,),
    )
    text = text_of(view, conversation, request)
    assert text.count(CANONICAL.write([CALL])) == 1
    assert text.count('```tool_result\n{"name": "look_up", "content": "A country."}\n```') == 1
    assert '{"name": "look_up", "description": "Look a country up.", "parameters"' in text
    for marker in ("<tools>", "[AVAILABLE_TOOLS]", "[TOOL_CALLS]", "<tool_call>\n{", "available_"):
        assert marker not in text


def test_tools_that_a_template_calls_but_does_not_describe_are_described(views):
    view = views(DEEPSEEK_31)
    text = text_of(view, asked(tools=(TOOL,)))
    assert "# Tools" in text
    assert '<｜tool▁call▁begin｜>tool<｜tool▁sep｜>{"argument": "value"}' in text
    assert CANONICAL.opening not in text


def test_what_must_not_be_called_is_not_shown(views):
    for request in (ChatRequest(call="none"), ChatRequest(call="none", tools_by="fused")):
        text = text_of(views(QWEN_25), asked(tools=(TOOL,)), request)
        assert text == text_of(views(QWEN_25), asked())


def test_a_model_that_knows_a_syntax_but_no_calls_reads_them_in_it(views):
    """Granite's template tells of ``<|tool_call|>`` and never writes one."""
    view = views(GRANITE)
    turns = (
        Message("user", "Hi"),
        Message("assistant", calls=(CALL,)),
        Message("tool", "<|tool_call|>[]", call_id="call_1"),
    )
    ids = view.prompt(asked(*turns, tools=(TOOL,)), PLAIN).ids
    opening = view.tools.opening_ids[0]
    assert ids.count(opening) == 2  # in the instructions and in the call, not in the result


def test_opening_and_closing_are_the_member_s_control_ids(views, tokenizers):
    tokenizer, _ = tokenizers("qwen2.5")
    view = views(QWEN_25, armed=False)
    assert view.tools.opening_ids == (tokenizer.convert_tokens_to_ids("<tool_call>"),)
    assert set(view.tools.spelled.values()) == {b"<tool_call>", b"</tool_call>"}
    assert views(QWEN_25, "llama-2", False).tools.opening_ids == ()


def test_the_space_before_an_answer_is_no_byte_of_it(views):
    """Llama 2 writes ``[/INST] Hello``: its first token brings the space."""
    assert views(LLAMA_2, "llama-2", False).prompt(asked(), PLAIN).text_start
    assert not views(CHATML, "llama-2", False).prompt(asked(), PLAIN).text_start
    assert not views(LLAMA_2, "qwen2.5").prompt(asked(), PLAIN).text_start
    assert not views(PHI_3, "qwen2.5").prompt(asked(), PLAIN).text_start


def test_a_template_that_refuses_the_content_is_a_config_error(views):
    view = views(
        "{% for m in messages %}{% if m.content == 'x' %}{{ raise_exception('no x') }}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    with pytest.raises(ConfigError, match=r"'qwen2.5' refuses this conversation: no x"):
        view.prompt(asked(Message("user", "x")), PLAIN)


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("family", ["qwen-2.5", "llama-3", "mistral-3", "deepseek-3.1", "chatml"])
def test_grammars_of_calls_are_walked_by_the_real_engine(family, parallel, views, tokenizers):
    _, vocabulary = tokenizers("qwen2.5", True)
    style = views(TEMPLATES[family]).tools
    table = [
        None if role is not None else data
        for data, role in zip(vocabulary.token_bytes, vocabulary.token_roles, strict=True)
    ]
    for token, data in style.spelled.items():
        table[token] = data
    spelled = GrammarVocabulary(tuple(table), f"test-{family}")
    calls = [CALL] * (2 if parallel and style.syntax.between is not None else 1)
    text = style.write(calls)
    for grammar, whole in (
        (style.whole([TOOL], parallel=parallel), text),
        (style.body([TOOL], parallel=parallel), text[len(style.opening) :]),
    ):
        (compiled,) = compile_all(grammar, [spelled])
        matcher = compiled.matcher()
        assert matcher.advance(whole.encode())
        assert matcher.may_end
        assert not matcher.advance(b'{"name": "other')


@pytest.mark.parametrize("member", ["facts", "stories"])
def test_the_members_of_the_package_read_conversations_as_hugging_face_renders_them(member):
    folder = Path(str(files("langchain_ensemble") / "demo" / member))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    view = ChatView(
        member,
        tokenizer,
        Vocabulary(tokenizer),
        chat_template=tokenizer.chat_template,
        system=None,
        context=None,
        warn=pytest.fail,
    )
    assert view.tools.name == {"facts": "hermes", "stories": "mistral"}[member]
    assert view.thinking is None
    call = {"type": "function", "id": "a", "function": {"name": "look_up", "arguments": {"a": 1}}}
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "A country.", "tool_call_id": "a"},
    ]
    wanted = tokenizer.apply_chat_template(
        turns, tools=tool_schemas([TOOL]), add_generation_prompt=True
    )["input_ids"]
    conversation = asked(
        Message("system", "Be brief."),
        Message("user", "Hi"),
        Message("assistant", calls=(Call("a", "look_up", {"a": 1}),)),
        Message("tool", "A country.", call_id="a"),
        tools=(TOOL,),
    )
    assert list(view.prompt(conversation, PLAIN).ids) == wanted
