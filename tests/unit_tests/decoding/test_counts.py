"""A fused step in numbers: operations, copies to the host, sizes of what moves. No clocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from langchain_ensemble.decoding import choosing
from langchain_ensemble.decoding.boundary import BoundaryTracker
from langchain_ensemble.decoding.choose import drawn, generators_for, uniforms
from langchain_ensemble.decoding.ranges import Layout
from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.fusion import Unite
from langchain_ensemble.fusion.base import MemberDistribution, TokenSpace, member_distribution
from langchain_ensemble.fusion.lookup import STEP, top_in_order
from langchain_ensemble.params import EnsembleParams, RequestParams
from langchain_ensemble.testing.cases import random_case

DYNAMIC = ("nonzero", "unique", "masked_select", "_local_scalar_dense", "item")
READS = ("tolist", "item", "__bool__", "__int__", "__float__", "numpy")


class Watch(TorchDispatchMode):
    """Operations of every fused choice, and what the host reads of tensors meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Counter[str]] = []
        self.reads: list[list[int]] = []
        self.on = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.steps[-1][str(func)] += 1
        if "aten.index." in str(func):  # a mask as an index has a size that depends on data
            assert all(i is None or i.dtype != torch.bool for i in args[1])
        return func(*args, **(kwargs or {}))

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        choose = choosing.choose_fused

        def watched(question: Any) -> Any:
            self.steps.append(Counter())
            self.reads.append([])
            self.on = True
            try:
                with self:
                    return choose(question)
            finally:
                self.on = False

        patch.setattr(choosing, "choose_fused", watched)
        for name in READS:
            patch.setattr(torch.Tensor, name, self._noted(getattr(torch.Tensor, name)))

    def _noted(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def read(tensor: Any, *args: Any) -> Any:
            if self.on:
                self.reads[-1].append(tensor.numel())
            return method(tensor, *args)

        return read


def watched(owner: Ensemble, prompts: list[str], patch: pytest.MonkeyPatch, **more: Any) -> Watch:
    watch = Watch()
    request = RequestParams(max_tokens=12, speculation="off", **more)
    with patch.context() as inner, owner.open(prompts, request) as decoding:
        watch.watch(inner)
        while not decoding.done:
            decoding.step()
    return watch


@pytest.mark.parametrize("fusion", ["average", "gac", "unite"])
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.8, "top_p": 0.9, "seed": 3}])
def test_a_step_does_the_same_whatever_the_context_and_the_batch(
    pico: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, fusion: str, settings: Any
) -> None:
    members = {"main": str(pico("qwen2")), "other": str(pico("llama"))}
    long = "Once upon a time there was a little fox. " * 5
    with Ensemble(EnsembleParams(members=members, fusion=fusion)) as owner:
        early = watched(owner, ["Once"], monkeypatch, **settings)
        late = watched(owner, [long], monkeypatch, **settings)
        pair = watched(owner, ["Once"] * 2, monkeypatch, **settings)
        batch = watched(owner, ["Once"] * 5, monkeypatch, **settings)
        width = owner._ready().voices[0].member.logits_width
    counts = {kind: {sum(step.values()) for step in kind.steps[1:]} for kind in (early, late)}
    assert abs(min(counts[early]) - min(counts[late])) <= 4  # a last key of several ids, say
    assert max(*counts[early], *counts[late]) <= min(counts[early]) + 40  # inside a character
    own = 6 if settings else 0  # a row's own number is drawn on the host
    several = [min(sum(step.values()) for step in kind.steps) for kind in (pair, batch)]
    assert several[1] <= several[0] + own * 3
    assert several[0] <= min(counts[early]) + own + 40  # what one row needs no fixed slots for
    for watch in (early, late, batch):
        assert all(len(reads) == 1 and reads[0] < width for reads in watch.reads)
        seen = {name for step in watch.steps for name in step}
        assert not [name for name in seen if any(word in name for word in DYNAMIC)]


def test_only_candidates_leave_a_members_device(monkeypatch: pytest.MonkeyPatch) -> None:
    case = random_case(0, members=3, rows=4)
    fuser = Unite(union_k=2).prepare(case.context())
    widest = max(one.logprobs.shape[-1] for one in case.distributions)
    moved: list[int] = []
    move = torch.Tensor.to

    def noted(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        moved.append(tensor[0].numel() if tensor.dim() > 1 else tensor.numel())
        return move(tensor, *args, **kwargs)

    fuser(case.distributions, case.weights)
    monkeypatch.setattr(torch.Tensor, "to", noted)
    fuser(case.distributions, case.weights)
    assert moved
    assert max(moved) <= 2 * 3 < widest


def test_best_columns_in_the_order_of_their_names() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = -torch.randint(1, 5, (50, 40), generator=generator).float() / 3
    rows[torch.rand(50, 40, generator=generator) < 0.4] = -torch.inf
    names = torch.randperm(40, generator=generator)
    got = top_in_order(rows, 1 + names.double() * STEP, 7)
    twin = top_in_order(rows, names.float(), 7)
    for row, one, other in zip(rows, got[1], twin[1], strict=True):
        value = {int(names[c]): float(row[c]) for c in range(40)}
        wanted = sorted(value, key=lambda name: (-value[name], name))[:7]
        wanted = [name for name in wanted if value[name] > -torch.inf]
        for where in (one, other):
            assert sorted(n for n in names[where].tolist() if value[n] > -torch.inf) == sorted(
                wanted
            )


def test_merged_ids_without_an_id_that_fills_up() -> None:
    case = random_case(3)
    for keys, said in zip(case.alignment.members, case.distributions, strict=True):
        total = said.logprobs.exp().sum(-1) + said.end.exp()
        torch.testing.assert_close(total, torch.ones_like(total))
        nothing = torch.full((1, keys.width), -torch.inf)
        got = member_distribution(nothing, keys)
        assert got.abstain is not None
        assert bool(got.abstain.all())
        assert bool((got.logprobs == -torch.inf).all())
        assert bool(member_distribution(nothing * torch.nan, keys).logprobs.isnan().any())


@pytest.mark.parametrize("size", [1, 2, 5, 27, 28, 1000])
def test_slices_are_made_of_their_pieces(size: int) -> None:
    layout = Layout(size)
    values = torch.randn(2, size, generator=torch.Generator().manual_seed(size))
    stored = layout.filled(values)
    step = max(size // 23, 1)
    for low in range(0, size, step):
        for high in range(low + 1, size + 1, step):
            parts = layout.parts(low, high)
            ends = list(zip(parts[::2], parts[1::2], strict=True))
            assert len(ends) <= 5
            assert all(0 < b - a <= layout.base for a, b in ends)
            got = torch.cat([stored[:, a:b] for a, b in ends], -1).logsumexp(-1)
            torch.testing.assert_close(got, values[:, low:high].logsumexp(-1))


class Letters:
    keys = sorted(
        a.encode() + b.encode() + c.encode() for a in "ab" for b in ["", "a", "b"] for c in "ac"
    )
    keys = sorted({*keys, b"a", b"b", b"c"})
    order = torch.arange(len(keys))

    def range(self, prefix: bytes) -> tuple[int, int]:
        hits = [n for n, key in enumerate(self.keys) if key.startswith(prefix)]
        return (hits[0], hits[-1] + 1) if hits else (0, 0)

    def position(self, key: bytes) -> int | None:
        return self.keys.index(key) if key in self.keys else None


def test_boundaries_of_a_row_alone_in_a_batch_and_taken_back() -> None:
    generator = torch.Generator().manual_seed(1)
    answers = [b"", b"a", b"ab", b"aba", b"abac", b"abacb"]
    said = torch.log_softmax(torch.randn(6, 4, len(Letters.keys), generator=generator) * 9, -1)
    space = TokenSpace("x", len(Letters.keys))
    end = torch.full((4,), -torch.inf)

    def of(step: int, rows: list[int]) -> MemberDistribution:
        return MemberDistribution(space, said[step][rows], end[rows])

    tracker, alone = BoundaryTracker(Letters(), 4), BoundaryTracker(Letters(), 1)
    for step, answer in enumerate(answers):
        mark = tracker.mark()
        for _ in range(2 if step == 2 else 1):
            tracker.rollback(mark)
            on = [True, step != 3, True, True]
            got = tracker.observe(of(step, [3, 2, 1, 0]), [answer] * 4, on, [3, 2, 1, 0])
            if step == 2:  # a step ahead, taken back with it
                tracker.observe(of(3, [0]), [b"abaa"], [True], [0])
        if step == 2:
            tracker.rollback(mark)
            got = tracker.observe(of(step, [3, 2, 1, 0]), [answer] * 4, [True] * 4, [3, 2, 1, 0])
        one = alone.observe(of(step, [0]), [answer], [True], [0])
        torch.testing.assert_close(got[3:], one)
        assert step != 3 or float(got[1]) == 1.0


def test_rows_draw_by_their_own_number() -> None:
    probs = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]]).expand(4, -1)
    last = 1 - 2.0**-53
    got = drawn(probs, torch.tensor([0.0, 0.2499, 0.25, last], dtype=torch.float64))
    assert got.tolist() == [1, 1, 3, 3]
    assert drawn(torch.zeros(1, 3), torch.tensor([0.5])).tolist() == [0]
    assert drawn(torch.full((1, 3), torch.nan), torch.tensor([0.5])).tolist() == [0]
    many = torch.softmax(torch.randn(1, 7, generator=torch.Generator().manual_seed(2)), -1)
    numbers = uniforms(generators_for(5, 20_000, 20_000))
    counts = torch.bincount(drawn(many.expand(20_000, -1), numbers), minlength=7)
    expected = many[0] * 20_000
    assert float(((counts - expected) ** 2 / expected).sum()) < 22.5  # 6 degrees: p = 0.001
    single = torch.cat([drawn(many, numbers[i : i + 1]) for i in range(50)])
    assert torch.equal(single, drawn(many.expand(50, -1), numbers[:50]))
