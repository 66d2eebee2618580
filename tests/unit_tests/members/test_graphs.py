"""Static forwards give the eager path's tokens; what would be captured is fit to be captured."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from langchain_ensemble.errors import ConfigError, EnsembleWarning
from langchain_ensemble.members import attention
from langchain_ensemble.members import fit as fitting
from langchain_ensemble.members.blocks import slot_bucket
from langchain_ensemble.members.capture import CallAgain, CudaCapture
from langchain_ensemble.members.forward import Engine, run, run_eager
from langchain_ensemble.members.graphs import Region, Static, _fill, resolve_forward
from langchain_ensemble.members.huggingface import HFMember
from langchain_ensemble.members.kv_cache import RaggedCache, Slab
from langchain_ensemble.members.loading import load_member
from langchain_ensemble.members.registry import Lease
from langchain_ensemble.members.weights import Weights
from langchain_ensemble.params import Member
from tests.unit_tests.members import families
from tests.unit_tests.members.test_sessions import Walk

CPU = torch.device("cpu")
FAMILIES = ["llama", "qwen2", "gpt-neox", "mistral-sliding"]


class Words:
    eos_token_id = 2
    chat_template = None


_engines: dict[str, Engine] = {}


def engine_of(name: str) -> Engine:
    if name not in _engines:
        module = families.build(name)
        how = fitting.fit(name, module, CPU)
        _engines[name] = Engine(name, module, CPU, torch.float32, how.width, 256, how.masks)
    return _engines[name]


def static(capture: Any = None) -> Static:
    return Static("graphs", capture or CallAgain())


def some_ids(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(3, families.VOCAB) for _ in range(count)]


def same(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))
    assert got.argmax(-1).equal(want.argmax(-1))


class Pair:
    """One cache run by replays and one run eagerly, over the same rows."""

    def __init__(self, engine: Engine, forwards: Static, rows: list[list[int]]) -> None:
        self.plain, self.static = engine, replace(engine, static=forwards)
        self.caches = RaggedCache(), RaggedCache()
        self.lengths = [0] * len(rows)
        self.step(rows)

    @torch.no_grad()
    def step(self, ids: list[list[int]], keep: int | None = None) -> None:
        q = max(map(len, ids))
        keep = keep or q
        got = run(self.static, self.caches[0], ids, self.lengths, keep)
        want = run_eager(self.plain, self.caches[1], ids, self.lengths, keep)
        assert got.shape == want.shape
        for b, row in enumerate(ids):
            if known := min(len(row), keep):
                same(got[b, -known:], want[b, -known:])
        self.lengths = [n + len(row) for n, row in zip(self.lengths, ids, strict=True)]

    def truncate(self, lengths: Sequence[int]) -> None:
        self.lengths = list(lengths)


@pytest.mark.parametrize("name", FAMILIES)
def test_random_scripts_with_rollbacks_give_the_eager_tokens(name: str) -> None:
    rng = random.Random(name)
    forwards = static()
    pair = Pair(engine_of(name), forwards, [some_ids(rng, n) for n in (19, 2, 7)])
    steps = 0
    for _ in range(14):
        ids = [some_ids(rng, rng.choice([0, 1, 1, 2, 5])) for _ in range(3)]
        if any(ids):
            pair.step(ids, rng.choice([1, None]))
            steps += 1
        pair.truncate([max(1, n - rng.choice([0, 0, 1, 4])) for n in pair.lengths])
    pair.step([some_ids(rng, 30), some_ids(rng, 3), []])  # wider than any bucket: eager, same cache
    pair.step([[5], [6], [7]])
    assert forwards.off is None
    assert forwards.replayed == steps + 1
    assert forwards.captured <= 4  # one row bucket, q buckets 1, 2, 4, 8


def test_a_cache_moves_when_it_outgrows_its_slab_and_the_next_cache_finds_it_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("langchain_ensemble.members.blocks.SHORTEST", 16)
    forwards = static()
    pair = Pair(engine_of("llama"), forwards, [[5, 6, 7], [8]])
    for token in range(3, 20):
        pair.step([[token], [token + 1]])
    assert forwards.captured == 2  # 16 slots, then 32
    del pair
    other = Pair(engine_of("llama"), forwards, [[9] * 4, [8, 9]])
    for token in range(3, 20):
        other.step([[token], [token + 1]])
    assert forwards.captured == 2  # both slabs were free again, with what was captured there
    assert forwards.replayed == 34
    assert forwards.off is None


def test_many_rows_are_rounded_up_and_too_many_run_eagerly() -> None:
    rng, forwards = random.Random(4), static()
    pair = Pair(
        engine_of("llama"), forwards, [some_ids(rng, rng.randrange(1, 6)) for _ in range(5)]
    )
    pair.step([[3 + b] for b in range(5)])
    assert forwards.replayed == 1
    crowd = Pair(engine_of("llama"), forwards, [[5]] * 65)
    crowd.step([[6]] * 65)
    assert forwards.replayed == 1


def test_a_session_of_a_member_replays() -> None:
    model = HFMember.wrap(families.build("llama"), Words(), "m")
    plain = model.session()
    forwards = static()
    fast: Any = model.session()
    fast.engine = replace(fast.engine, static=forwards)
    prompt: Any = [type("P", (), {"ids": (5, 6, 7, 8, 9, 10, 11, 12, 13), "encoder_ids": None})()]
    same(fast.prefill(prompt), plain.prefill(prompt))
    held = fast.step([[4]])
    copy = held.clone()
    same(held, plain.step([[4]]))
    fast.step([[9]])
    assert held.equal(copy)  # a later replay does not write into what was handed out
    assert forwards.replayed == 2


class Recorder(TorchDispatchMode):
    """Operations with the shapes of what they take and give."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [x for x in (*args, result) if isinstance(x, Tensor)]
        self.seen.append((str(func), *((tuple(t.shape), t.device.type) for t in tensors)))
        return result


SYNCS = ("_local_scalar_dense", "item", "nonzero", "unique", "masked_select", "is_nonzero", "equal")


def recorded(region: Region) -> list[tuple[Any, ...]]:
    with Recorder() as recorder, torch.no_grad():
        region()
    return recorder.seen


def assert_no_sync(seen: list[tuple[Any, ...]], device: str) -> None:
    for name, *tensors in seen:
        base = name.removeprefix("aten.").split(".")[0]
        assert base not in SYNCS, name
        for shape, where in tensors:
            assert where == device or 0 in shape, (name, shape, where)  # NO_MASK is never read


@pytest.mark.parametrize("name", [*FAMILIES, "gemma3", "gpt2", "qwen3", "phi3-sliding", "olmo3"])
def test_the_region_is_the_same_operations_for_all_lengths_of_a_bucket(name: str) -> None:
    engine, cache = engine_of(name), RaggedCache()
    with torch.no_grad():
        run_eager(engine, cache, [[5, 6, 7], [8]], [0, 0], 1)
    slab = Slab(cache, 4, 512)
    slab.adopt(cache, 2, 3)
    region = Region(engine, slab, (4, 2, 512))
    _fill(region, slab, [[5, 6], [7]], [3, 1])
    first = recorded(region)
    _fill(region, slab, [[], [7]], [200, 131])
    assert recorded(region) == first
    assert_no_sync(first, "cpu")


def test_the_region_of_a_large_model_runs_on_the_meta_device() -> None:
    config = AutoConfig.for_model(
        "llama", vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=2,
        num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=8192,
    )  # fmt: skip
    meta = torch.device("meta")
    with meta:
        module = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    attention.choose(module, sure=True)
    plan = fitting.mask_plan(module.config, attention.NAME, one_mask=True)
    engine = Engine("large", module, meta, torch.bfloat16, 128256, 8192, plan)
    cache = RaggedCache()
    with torch.no_grad():
        run_eager(engine, cache, [[5, 6, 7]], [0], 1)
    slab = Slab(cache, 8, 2048)
    region = Region(engine, slab, (8, 4, 1024))
    seen = recorded(region)
    assert_no_sync(seen, "meta")
    # keys and values of 8 heads are never repeated for the 32 heads of the queries
    assert not any(shape == (8, 32, 1024, 128) for _, *used in seen for shape, _ in used)
    assert region().shape == (8, 4, 128256)


def test_whatever_fails_is_said_once_and_runs_eagerly() -> None:
    def broken(region: Callable[[], Tensor]) -> Callable[[], Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing")

    forwards = static(broken)
    with warns(r"member 'llama': forward='graphs' is off .*RuntimeError: operation not permitted"):
        pair = Pair(engine_of("llama"), forwards, [[5, 6, 7]])
        pair.step([[8]])
        pair.step([[9]])
    assert forwards.replayed == 0


def test_a_replay_that_gives_other_logits_is_not_used() -> None:
    def wrong(region: Callable[[], Tensor]) -> Callable[[], Tensor]:
        return lambda: region().flip(-1)

    forwards = static(wrong)
    with warns("differ from the eager forward's by"):
        pair = Pair(engine_of("llama"), forwards, [[5, 6, 7]])
        pair.step([[8]])
    pair.step([[9]])


@contextmanager
def warns(match: str) -> Iterator[None]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    found = [w for w in caught if issubclass(w.category, EnsembleWarning)]
    assert len(found) == 1
    with pytest.raises(EnsembleWarning, match=match):
        raise EnsembleWarning(str(found[0].message))


def test_graphs_on_the_cpu_are_refused_and_replayed_models_are_eager() -> None:
    with pytest.raises(ConfigError, match=r"member 'm' is on 'cpu'; forward='graphs' needs a CUDA"):
        resolve_forward("m", "graphs", CPU, ragged=True)
    assert resolve_forward("m", None, CPU, ragged=True) == "eager"
    assert resolve_forward("m", None, torch.device("cuda:1"), ragged=True) == "graphs"
    assert resolve_forward("m", None, torch.device("cuda"), ragged=False) == "eager"
    with pytest.warns(EnsembleWarning, match="forward='compiled' needs rows in one cache"):
        assert resolve_forward("m", "compiled", CPU, ragged=False) == "eager"


def test_slot_buckets_double() -> None:
    assert [slot_bucket(n) for n in (1, 512, 513, 5000)] == [512, 512, 1024, 8192]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", FAMILIES)
def test_graphs_give_the_eager_tokens_on_the_gpu(name: str) -> None:
    device = torch.device("cuda")
    module = families.build(name).to(device)
    how = fitting.fit(name, module, device)
    engine = Engine(name, module, device, torch.float32, how.width, 256, how.masks)
    rng, forwards = random.Random(name), static(CudaCapture(device))
    pair = Pair(engine, forwards, [some_ids(rng, n) for n in (19, 2, 7)])
    for _ in range(10):
        pair.step([some_ids(rng, rng.choice([1, 2, 5])) for _ in range(3)])
        pair.truncate([max(1, n - rng.choice([0, 1, 4])) for n in pair.lengths])
    assert forwards.off is None
    assert forwards.replayed == 10


@pytest.mark.parametrize("name", ["llama", "gemma3", "mixtral"])
def test_sessions_over_static_forwards_equal_the_uncached_model(name: str) -> None:
    module = families.build(name)
    weights = Weights.of(module, "x", name)
    forwards = weights.statics["compiled"] = static()  # of the same shapes, run as they are
    model = HFMember(name, Lease.private(weights), Words(), forward="compiled")
    rng = random.Random(name)
    walk = Walk(model, [some_ids(rng, n) for n in (9, 2, 15)])
    for _ in range(3):
        walk.step([some_ids(rng, rng.choice([1, 1, 2, 4])) for _ in walk.rows], None)
        walk.truncate([max(1, len(r) - rng.choice([0, 1, 3])) for r in walk.rows])
    other = walk.fork([2, 0])
    walk.select([1, 1, 2])
    for _ in range(2):
        walk.step([[5], [6, 7], [8]], 1)
        other.step([[9], [4]], 1)
    assert forwards.off is None
    assert forwards.replayed >= 5
    assert model.session().engine.static is forwards  # type: ignore[attr-defined]


def test_the_setting_reaches_the_member(pico: Callable[..., Path]) -> None:
    where = str(pico("llama"))
    with pytest.raises(ConfigError, match="forward='graphs' needs a CUDA device"):
        load_member(Member(where, forward="graphs"), device="cpu")
    member = load_member(Member(where), device="cpu", forward="compiled")
    assert member.forward == "compiled"
    engine = member.session().engine  # type: ignore[attr-defined]
    assert engine.static.how == "compiled"
    member.close()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_forwards_on_the_gpu_wait_for_nothing() -> None:
    device = torch.device("cuda")
    module = families.build("llama").to(device)
    how = fitting.fit("llama", module, device)
    engine = Engine("llama", module, device, torch.float32, how.width, 256, how.masks)
    pair = Pair(engine, static(CudaCapture(device)), [[5, 6, 7], [8]])
    pair.step([[5], [6]])  # captured
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.no_grad():
            run(pair.static, pair.caches[0], [[7], [9]], pair.lengths, 1)
            run_eager(engine, pair.caches[1], [[7], [9]], pair.lengths, 1)
            run_eager(engine, pair.caches[1], [[7, 8], [9]], pair.lengths, 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
