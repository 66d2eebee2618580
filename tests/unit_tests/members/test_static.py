"""Blocks, masks and slabs: where a forward's columns go, and what stays where it is."""

from __future__ import annotations

import gc
import random
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from langchain_ensemble.members import attention
from langchain_ensemble.members.blocks import Block, MaskPlan, bucket, layout
from langchain_ensemble.members.fit import mask_plan
from langchain_ensemble.members.forward import Engine, run_eager
from langchain_ensemble.members.kv_cache import RaggedCache, RaggedLayer, Slab

CPU = torch.device("cpu")


def test_planes_of_a_static_block() -> None:
    planes = torch.tensor(layout([[7, 8], [], [9]], [4, 6, 0], q=2, rows=4, trash=512))
    ids, positions, slots, rows = planes.view(4, 4, 2).tolist()
    assert ids == [[7, 8], [0, 0], [0, 9], [0, 0]]
    assert positions == [[4, 5], [0, 0], [0, 0], [0, 0]]
    assert slots == [[4, 5], [512, 512], [512, 0], [512, 512]]
    assert rows == [[0, 0], [1, 1], [2, 2], [3, 3]]


def test_pads_of_a_growing_block_lie_behind_the_row() -> None:
    block = Block.plan([[7, 8, 9], [], [5]], [4, 6, 0], CPU)
    assert block.slots is not None
    assert block.slots.tolist() == [[4, 5, 6], [6, 7, 8], [1, 2, 0]]
    assert block.positions.tolist() == [[4, 5, 6], [0, 0, 0], [0, 0, 0]]
    assert (block.visible, block.start) == (7, None)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_even_rows_write_one_stretch_of_slots(device: str) -> None:
    block = Block.plan([[7, 8], [5, 6]], [4, 4], torch.device(device))
    assert (block.start, block.visible, block.slots) == (4, 6, None)
    if device == "cpu":
        assert block.ids.tolist() == [[7, 8], [5, 6]]
        assert block.positions.tolist() == [[4, 5], [4, 5]]


@pytest.mark.parametrize("kind", ["full", "sliding", "chunked"])
def test_a_mask_is_left_out_only_where_it_hides_nothing(kind: str) -> None:
    rng = random.Random(kind)
    left_out = 0
    for _ in range(200):
        count, rows = rng.choice([1, 1, 3, 8]), rng.choice([1, 2])
        even = rng.random() < 0.7
        start = rng.choice([0, rng.randrange(9)])
        lengths = [start if even else rng.randrange(9) for _ in range(rows)]
        block = Block.plan([[5] * count] * rows, lengths, CPU)
        mask = block.mask(kind, 6)
        assert bool(mask.any(-1).all())  # every column sees something
        causal = torch.arange(block.visible) <= torch.arange(count)[:, None] + block.visible - count
        if block.hides_nothing(kind, 6):
            left_out += 1
            assert mask.equal(causal.expand(mask.shape))
            assert count in (1, block.visible)
        elif block.start is not None and count == 1:
            assert not bool(mask.all())
    assert left_out > 20


def test_masks_are_repeated_once_for_the_heads_of_a_group() -> None:
    block = Block.plan([[5, 6], [7]], [3, 2], CPU)
    plan = MaskPlan({"a": ("full", None), "b": ("sliding", 2)}, additive=False, groups=3)
    made: Any = plan.build(block, torch.bfloat16)
    assert {n: (m.shape, m.dtype) for n, m in made.items()} == {
        n: ((2, 1, 6, 5), torch.bfloat16) for n in "ab"
    }
    assert made["a"].view(2, 3, 2, 5).eq(0).equal(block.mask("full", None).expand(2, 3, 2, 5))


class Transfers(TorchDispatchMode):
    """Copies between devices."""

    def __init__(self) -> None:
        super().__init__()
        self.up = self.down = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and args and isinstance(args[0], Tensor):
            ends = args[0].device.type, result.device.type
            self.up += ends == ("cpu", "meta")
            self.down += ends == ("meta", "cpu")
        return result


@pytest.mark.parametrize("grouped", [True, False])
def test_a_forward_makes_one_copy_to_the_device_and_none_back(grouped: bool) -> None:
    meta = torch.device("meta")
    config = AutoConfig.for_model(
        "mistral", vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, sliding_window=6,
    )  # fmt: skip
    with meta:
        module = AutoModelForCausalLM.from_config(config).eval()
    how = attention.choose(module, sure=True) if grouped else "sdpa"
    plan = mask_plan(module.config, how, one_mask=True)
    engine = Engine("m", module, meta, torch.float32, 50, None, plan)
    cache = RaggedCache()
    forwards = [([[5] * 9] * 2, [0, 0]), ([[5], [6]], [9, 9]), ([[5, 6], [7]], [10, 8])]
    for ids, lengths in forwards:
        with Transfers() as seen, torch.no_grad():
            run_eager(engine, cache, ids, lengths, 1)
        assert (seen.up, seen.down) == (1, 0)


def filled(rows: int, slots: int) -> RaggedCache:
    cache = RaggedCache()
    torch.manual_seed(rows)
    for _ in range(2):
        layer = RaggedLayer(cache)
        layer.lazy_initialization(torch.zeros(rows, 2, 1, 4), torch.zeros(rows, 2, 1, 4))
        layer.keys, layer.values = torch.randn(2, rows, 2, slots, 4).unbind()
        cache.layers.append(layer)
    cache.capacity = slots
    return cache


def test_a_slab_takes_a_cache_in_and_notices_when_it_leaves() -> None:
    cache = filled(3, 64)
    before = [layer.keys[:2, :, :10].clone() for layer in cache.layers]
    slab = Slab(cache, 4, 512)
    for keys in slab.keys:
        keys.fill_(torch.nan)
    assert not slab.holds(cache)
    slab.adopt(cache, 2, 10)
    assert slab.holds(cache)
    assert cache.capacity == 512
    for layer, keys in zip(cache.layers, before, strict=True):
        assert layer.keys[:2, :, :10].equal(keys)
        assert not bool(layer.keys[:2].isnan().any())  # nothing of whoever was here before
    addresses = [layer.keys.data_ptr() for layer in cache.layers]
    view = slab.view(2)
    assert [layer.keys.data_ptr() for layer in view.layers] == addresses
    assert view.layers[0].keys.shape == (2, 2, 576, 4)
    cache.put(filled(1, 64), [0], [3], 5)  # a row more, in place
    assert slab.holds(cache)
    cache.put(filled(1, 64), [0], [4], 5)  # one more than there are
    assert not slab.holds(cache)


def test_a_cache_that_nobody_holds_is_gone_at_once() -> None:
    gc.disable()
    try:
        cache = filled(1, 64)
        watch = weakref.ref(cache)
        del cache
        assert watch() is None
    finally:
        gc.enable()


def test_buckets() -> None:
    assert [bucket(n, (1, 2, 4)) for n in (1, 3, 4, 5)] == [1, 4, 4, None]
