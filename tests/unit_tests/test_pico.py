"""The models that other tests stand on are what they claim to be."""

from __future__ import annotations

import asyncio
import socket

import pytest
import torch
from pytest_socket import SocketConnectBlockedError
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.pico import KINDS, build


@pytest.mark.parametrize("kind", KINDS)
def test_loads_encodes_and_generates(kind, pico):
    folder = pico(kind)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    text = "The fox said: déjà vu 日本 🦊\n\tx = 1"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert model.config.vocab_size >= len(tokenizer)
    prompt = torch.tensor([ids])
    first = model.generate(prompt, max_new_tokens=8, do_sample=False)
    again = model.generate(prompt, max_new_tokens=8, do_sample=False)
    assert torch.equal(first, again)
    assert first.shape[1] > prompt.shape[1]


def test_same_seed_gives_same_weights(pico, tmp_path):
    other = build("qwen2", tmp_path / "again")
    one, two = (
        AutoModelForCausalLM.from_pretrained(f).state_dict() for f in (pico("qwen2"), other)
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    seeded = AutoModelForCausalLM.from_pretrained(pico("qwen2", seed=1)).state_dict()
    assert any(not torch.equal(one[name], seeded[name]) for name in one)


def test_tests_cannot_reach_the_internet():
    with pytest.raises((SocketConnectBlockedError, UserWarning), match=r"127\.0\.0\.1"):
        socket.create_connection(("93.184.215.14", 80), timeout=0.2)


def test_tests_can_talk_to_themselves():
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen()
    client = socket.create_connection(server.getsockname(), timeout=1)
    client.close()
    server.close()


async def test_async_tests_run():
    await asyncio.sleep(0)
    assert asyncio.get_running_loop().is_running()
