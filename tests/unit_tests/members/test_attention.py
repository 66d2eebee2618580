"""Grouped attention gives what stock sdpa gives, and copies no keys and values."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface

from langchain_ensemble.members import attention
from langchain_ensemble.members.attention import NAME, NO_MASK, choose, grouped_attention
from langchain_ensemble.members.fit import _plans, fit
from langchain_ensemble.members.forward import Engine, run_eager
from langchain_ensemble.members.kv_cache import RaggedCache
from tests.unit_tests.members import families

CPU = torch.device("cpu")
OWN = ("gemma2", "gpt-oss", "gptj", "falcon-rope")
"""Families that keep their attention: softcap, sinks, or none through transformers' registry."""


def script(module: Any, name: str, how: str) -> list[Tensor]:
    """Logits of some ragged blocks with roll-backs; of real columns only."""
    results, rng = [], random.Random(name)
    engine = Engine(name, module, CPU, torch.float32, families.VOCAB, 256, _plans(module, how)[0])
    cache, lengths = RaggedCache(), [0, 0]
    for counts in ((40, 40), (1, 1), (3, 1), (1, 1), (2, 2), (0, 5), (45, 33), (1, 1)):
        ids = [[rng.randrange(3, families.VOCAB) for _ in range(n)] for n in counts]
        with torch.no_grad():
            logits = run_eager(engine, cache, ids, lengths, max(counts))
        results += [row[len(row) - n :] for row, n in zip(logits, counts, strict=True) if n]
        lengths = [n + c - (2 if c == 3 else 0) for n, c in zip(lengths, counts, strict=True)]
    return results


@pytest.mark.parametrize("name", [n for n in (*families.RAGGED, *families.PROBED) if n not in OWN])
def test_families_give_what_stock_sdpa_gives(name: str) -> None:
    module = families.build(name)
    stock = script(module, name, "sdpa")
    assert choose(module, sure=False) == NAME == module.config._attn_implementation
    for got, want in zip(script(module, name, NAME), stock, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))
        assert got.argmax(-1).equal(want.argmax(-1))


class Copies(TorchDispatchMode):
    """Operations that make memory of a shape's last two axes."""

    def __init__(self, *tail: int) -> None:
        super().__init__()
        self.tail, self.bytes = tail, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.shape[-2:] == self.tail:
            known = {t.untyped_storage().data_ptr() for t in args if isinstance(t, Tensor)}
            if result.untyped_storage().data_ptr() not in known:
                self.bytes += result.numel() * result.element_size()
        return result


@pytest.mark.parametrize("q", [1, 3, 40])
@pytest.mark.parametrize("batch", [1, 2])
def test_keys_and_values_are_not_copied(q: int, batch: int) -> None:
    torch.manual_seed(q)
    buffer = torch.randn(2, batch, 2, 128, 8)
    key, value = buffer[0, :, :, :61], buffer[1, :, :, :61]
    query = torch.randn(batch, 6, q, 8)
    seen = torch.arange(61) <= torch.arange(61 - q, 61)[:, None]
    seen = seen.expand(batch, 1, q, 61).clone()
    seen[-1, :, :, :7] = False
    layer = torch.nn.Module()
    layer.num_key_value_groups = 3  # type: ignore[assignment]
    stock = AttentionInterface()["sdpa"]
    with Copies(61, 8) as ours:
        got, _ = grouped_attention(layer, query, key, value, seen, scaling=0.3)
    with Copies(61, 8) as theirs:
        want, _ = stock(layer, query, key, value, seen, scaling=0.3)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert ours.bytes == 0
    if q > 1:
        assert theirs.bytes == 2 * batch * 6 * 61 * 8 * 4  # so the counter sees them


@pytest.mark.parametrize("groups", [1, 3])
def test_no_mask_is_causal_from_the_start_and_all_for_one_column(groups: int) -> None:
    torch.manual_seed(groups)
    key, value = torch.randn(2, 2, 2, 9, 8).unbind()
    layer = torch.nn.Module()
    for q in (1, 9):
        query = torch.randn(2, 2 * groups, q, 8)
        seen = torch.arange(9) <= torch.arange(9 - q, 9)[:, None]
        want, _ = grouped_attention(layer, query, key, value, seen.expand(2, 1, q, 9))
        got, _ = grouped_attention(layer, query, key, value, NO_MASK)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
        assert got.shape == (2, q, 2 * groups, 8)
    shared = attention._share(key, groups)  # what a block of several columns attends to
    assert shared.shape == (4, groups, 9, 8)
    assert shared.untyped_storage().data_ptr() == key.untyped_storage().data_ptr()


def test_arguments_that_it_would_get_wrong_are_refused() -> None:
    states = torch.randn(1, 2, 3, 8)
    layer = torch.nn.Module()
    for name in ("softcap", "s_aux", "position_bias", "output_attentions"):
        with pytest.raises(TypeError, match=f"does not know the argument '{name}'"):
            grouped_attention(layer, states, states, states, NO_MASK, **{name: 1.0})
        grouped_attention(layer, states, states, states, NO_MASK, **{name: None})


@pytest.mark.parametrize("name", OWN)
def test_models_with_an_attention_of_their_own_keep_it(name: str) -> None:
    module = families.build(name)
    before = module.config._attn_implementation
    fit(name, module, CPU)
    assert module.config._attn_implementation == before != NAME


def test_eager_turns_it_off_and_replayed_models_get_theirs_back() -> None:
    module = families.build("llama", "eager")
    fit("llama", module, CPU)
    assert module.config._attn_implementation == "eager"
    module = families.build("jamba")
    fit("jamba", module, CPU)
    assert module.config._attn_implementation == "sdpa"


@pytest.fixture
def wrong() -> Iterator[None]:
    def scaled(*args: Any, **kwargs: Any) -> Any:
        return grouped_attention(*args, **{**kwargs, "scaling": 0.1})

    AttentionInterface.register(NAME, scaled)
    yield
    AttentionInterface.register(NAME, grouped_attention)


@pytest.mark.usefixtures("wrong")
def test_a_probe_that_differs_leaves_stock_sdpa() -> None:
    module = families.build("llama")
    assert choose(module, sure=False) == "sdpa"
    assert module.config._attn_implementation == "sdpa"


def test_masks_of_other_forms_are_read_too() -> None:
    mask = torch.zeros(2, 1, 3, 5)
    assert attention.repeat_rows(mask, 4).shape == (2, 1, 12, 5)
    assert attention.repeat_rows(mask[:, :, :1], 4).shape == (2, 1, 1, 5)
    assert attention._rows(attention.repeat_rows(mask, 4), 2, 3).shape == (2, 1, 6, 5)
