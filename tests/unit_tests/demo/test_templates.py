"""The chat templates of the demo members: two families, prefix by prefix, with tools."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from langchain_ensemble import demo
from langchain_ensemble.vocab.roles import Role, token_roles

CALL = {"type": "function", "function": {"name": "find", "arguments": {"city": "Łódź 东", "n": 2}}}
OTHER = {"type": "function", "function": {"name": "find", "arguments": {}}}
PARAMETERS = {"properties": {"city": {"type": "string"}}, "required": ["city"], "type": "object"}
TOOL = {
    "type": "function",
    "function": {"name": "find", "description": "Find it.", "parameters": PARAMETERS},
}
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Where is Łódź?"},
    {"role": "assistant", "content": "In Poland."},
    {"role": "user", "content": "Find it, twice."},
    {"role": "assistant", "content": "", "tool_calls": [CALL, OTHER]},
    {"role": "tool", "content": "51.8"},
    {"role": "tool", "content": "51.9"},
    {"role": "assistant", "content": "Done."},
]


@pytest.fixture(params=demo.members())
def tokenizer(request):
    return AutoTokenizer.from_pretrained(demo.members()[request.param])


def render(tokenizer, messages, **how) -> str:
    return tokenizer.apply_chat_template(messages, tokenize=False, **how)


@pytest.mark.parametrize("tools", [None, [TOOL]], ids=["no tools", "tools"])
def test_an_assistants_turn_goes_on_where_the_prompt_ends(tokenizer, tools):
    whole = render(tokenizer, TALK, tools=tools)
    for at, message in enumerate(TALK):
        if message["role"] == "assistant":
            prompt = render(tokenizer, TALK[:at], tools=tools, add_generation_prompt=True)
            turn = render(tokenizer, TALK[: at + 1], tools=tools)
            assert whole.startswith(turn)
            assert turn.startswith(prompt)
            assert turn.endswith(tokenizer.eos_token + "\n")
            ids = tokenizer(turn, add_special_tokens=False)["input_ids"]
            asked = tokenizer(prompt, add_special_tokens=False)["input_ids"]
            assert ids[: len(asked)] == asked  # no merge across the border


def test_facts_is_spelled_as_chatml():
    tokenizer = AutoTokenizer.from_pretrained(demo.members()["facts"])
    assert render(tokenizer, TALK[1:], tools=[TOOL]) == (
        "<|im_start|>system\nYou can call these tools:\n<tools>\n"
        '{"type": "function", "function": {"name": "find", "description": "Find it.", '
        '"parameters": {"properties": {"city": {"type": "string"}}, "required": ["city"], '
        '"type": "object"}}}\n'
        "</tools><|im_end|>\n"
        "<|im_start|>user\nWhere is Łódź?<|im_end|>\n"
        "<|im_start|>assistant\nIn Poland.<|im_end|>\n"
        "<|im_start|>user\nFind it, twice.<|im_end|>\n"
        "<|im_start|>assistant\n<tool_call>\n"
        '{"name": "find", "arguments": {"city": "Łódź 东", "n": 2}}\n</tool_call>\n'
        '<tool_call>\n{"name": "find", "arguments": {}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\n51.8\n</tool_response>\n"
        "<tool_response>\n51.9\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\nDone.<|im_end|>\n"
    )


def test_facts_writes_what_qwen_writes_but_for_the_preamble(shared):
    ours = AutoTokenizer.from_pretrained(demo.members()["facts"])
    qwen = AutoTokenizer.from_pretrained(shared / "tokenizers/qwen2.5")
    for upto in range(2, len(TALK) + 1):
        how = {"add_generation_prompt": TALK[upto - 1]["role"] in ("user", "tool")}
        assert render(ours, TALK[:upto], **how) == render(qwen, TALK[:upto], **how)


def test_stories_is_spelled_as_zephyr_with_the_tools_of_mistral():
    tokenizer = AutoTokenizer.from_pretrained(demo.members()["stories"])
    assert render(tokenizer, TALK, tools=[TOOL], add_generation_prompt=True) == (
        '<s>[AVAILABLE_TOOLS][{"type": "function", "function": {"name": "find", "description": '
        '"Find it.", "parameters": {"properties": {"city": {"type": "string"}}, "required": '
        '["city"], "type": "object"}}}][/AVAILABLE_TOOLS]'
        "<|system|>\nBe brief.</s>\n<|user|>\nWhere is Łódź?</s>\n<|assistant|>\nIn Poland.</s>\n"
        "<|user|>\nFind it, twice.</s>\n<|assistant|>\n"
        '[TOOL_CALLS][{"name": "find", "arguments": {"city": "Łódź 东", "n": 2}}, '
        '{"name": "find", "arguments": {}}]</s>\n'
        "[TOOL_RESULTS]51.8[/TOOL_RESULTS]\n[TOOL_RESULTS]51.9[/TOOL_RESULTS]\n"
        "<|assistant|>\nDone.</s>\n<|assistant|>\n"
    )


ROLES = {
    "facts": {
        "<|im_start|>": Role.TURN, "<|im_end|>": Role.END, "<|endoftext|>": Role.END,
        "<tool_call>": Role.TOOL, "</tool_call>": Role.TOOL,
        "<tool_response>": Role.TOOL, "</tool_response>": Role.TOOL,
    },
    "stories": {
        "<|system|>": Role.TURN, "<|user|>": Role.TURN, "<|assistant|>": Role.TURN,
        "</s>": Role.END, "<s>": Role.BOS, "[TOOL_CALLS]": Role.TOOL,
        "[AVAILABLE_TOOLS]": Role.TOOL, "[/AVAILABLE_TOOLS]": Role.TOOL,
        "[TOOL_RESULTS]": Role.TOOL, "[/TOOL_RESULTS]": Role.TOOL,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", ROLES)
def test_every_marker_has_its_role_and_is_one_token(name):
    from transformers import GenerationConfig

    folder = demo.members()[name]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ends = GenerationConfig.from_pretrained(folder).eos_token_id
    roles = token_roles(tokenizer, ends if isinstance(ends, list) else [ends])
    found = {m: roles[tokenizer.convert_tokens_to_ids(m)] for m in ROLES[name]}
    assert found == ROLES[name]
    assert all(tokenizer.encode(m, add_special_tokens=False) for m in ROLES[name])
    assert tokenizer.eos_token_id in (ends if isinstance(ends, list) else [ends])


def test_markers_are_not_shared_by_the_two_members():
    markers = [set(roles) for roles in ROLES.values()]
    assert not markers[0] & markers[1]
