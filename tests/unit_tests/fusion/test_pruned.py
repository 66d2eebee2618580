"""The pruned step: one host read, nothing of a vocabulary's size crosses, the best key alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from langchain_ensemble.fusion import Deepen
from langchain_ensemble.fusion.base import FusedDistribution, MemberDistribution
from langchain_ensemble.fusion.deepen import certain, certified, tail_levels
from langchain_ensemble.fusion.deepen_fuser import DeepenFuser, SearchSettings
from langchain_ensemble.fusion.rows import HotRows, StoredRows
from langchain_ensemble.fusion.said import Said
from langchain_ensemble.fusion.search import END, UNKNOWN, decays
from langchain_ensemble.testing import toy_alignment
from langchain_ensemble.testing.cases import Case, columns, random_case

CPU, META = torch.device("cpu"), torch.device("meta")
SETTINGS = SearchSettings(steps=5, rate=0.15, support_mass=0.999, support_cap=20)
WIDTH, ANCHORS, HIDDEN, ROWS = 300, 40, 8, 4


def _alignment() -> Any:
    both: list[bytes | None] = [b"t%d" % i for i in range(WIDTH - 1)]
    return toy_alignment([[*both, None], [*both, None]])


def _rows(device: torch.device, room: int = WIDTH) -> HotRows:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(WIDTH, HIDDEN, generator=generator).to(device)
    mean = torch.full((ANCHORS,), 1 / ANCHORS, device=device)
    ids = torch.arange(ANCHORS, device=device)
    return HotRows(embeddings, ids, mean, device, budget=0, least=room)


def _distribution(space: Any, device: torch.device, seed: int, end: float = 0.1) -> Any:
    logits = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(seed)) * 3
    logits[:, -1] = -torch.inf
    logprobs = torch.log_softmax(logits, -1) + torch.tensor(1 - end).log()
    return MemberDistribution(space, logprobs.to(device), torch.full((ROWS,), end).log().to(device))


def _fuser(*rows: HotRows) -> DeepenFuser:
    alignment = _alignment()
    fuser = DeepenFuser(alignment, [_rows(CPU), _rows(CPU)], False, SETTINGS)
    fuser._rows = list(rows)
    return fuser


def test_a_step_reads_the_host_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device every other read, dynamic shape or ``.item()`` raises."""
    fuser = _fuser(_rows(META), _rows(META))
    reads = []

    def told(tensor: Tensor) -> list[int]:
        reads.append(tuple(tensor.shape))
        return [1, 1, 17, 60, 25, 9, 50, 0]  # heard; then width, rows and missing of each member

    monkeypatch.setattr(Tensor, "tolist", told)
    spaces = [keys.space for keys in fuser._alignment.members]
    said = [_distribution(space, META, i) for i, space in enumerate(spaces)]
    fused = fuser(said, torch.full((ROWS, 2), 0.5, device=META))
    assert fused.logprobs.shape == (ROWS, WIDTH)
    assert fused.logprobs.device.type == "meta"
    assert reads == [(8,)]


class _Crossings(TorchDispatchMode):
    """Lets the meta device stand for another one: what would cross is counted and replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.cells: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and "device" in kwargs:
            given, target = args[0], torch.device(kwargs["device"])
            if given.device != target:
                self.cells.append(given.numel())
                if target.type == "cpu":
                    return torch.ones(given.shape, dtype=kwargs.get("dtype") or given.dtype)
        return func(*args, **kwargs)


def test_only_the_relative_vector_leaves_a_members_device() -> None:
    """[N, A], three numbers, END and a mass; nothing of [N, V] or [V, A]."""
    fuser = _fuser(_rows(CPU), _rows(META))
    spaces = [keys.space for keys in fuser._alignment.members]
    said = [_distribution(spaces[0], CPU, 0), _distribution(spaces[1], META, 1)]
    with _Crossings() as seen:
        fused = fuser(said, torch.full((ROWS, 2), 0.5))
    assert fused.logprobs.device == CPU
    assert sorted(seen.cells) == [3, ROWS, ROWS, ROWS * ANCHORS]


@pytest.mark.parametrize("dense", [True, False])
def test_members_on_one_device_need_no_word(dense: bool) -> None:
    case = random_case(0)
    apart = replace(case.context(), devices=(CPU, CPU))
    first, second = (
        Deepen(anchors=4, dense=dense).prepare(context)(case.distributions, case.weights)
        for context in (case.context(), apart)
    )
    assert torch.equal(first.logprobs, second.logprobs)
    assert DeepenFuser.apart


def test_a_batch_that_does_not_fit_goes_in_halves() -> None:
    fuser, small = (_fuser(_rows(CPU, room), _rows(CPU, room)) for room in (WIDTH, 84))
    spaces = [keys.space for keys in fuser._alignment.members]
    said = [_distribution(space, CPU, i) for i, space in enumerate(spaces)]
    weights = torch.full((ROWS, 2), 0.5)
    for _ in range(2):
        torch.testing.assert_close(
            small(said, weights).logprobs, fuser(said, weights).logprobs, atol=1e-6, rtol=0
        )
    assert small._rows[0].room == 84


def test_hot_rows_fuse_as_stored_rows_do() -> None:
    for seed in range(5):
        case = random_case(seed, members=3)
        stored, hot = (
            Deepen(anchors=4, dense=False, support_cap=3).prepare(case.context()) for _ in range(2)
        )
        assert all(isinstance(rows, HotRows) for rows in hot._rows)
        device = stored._rows[0].mean.device
        for i, rows in enumerate(hot._rows):
            ids = torch.arange(rows.room)[None]  # every row fits here
            request = rows.request(ids, torch.ones_like(ids, dtype=torch.bool))
            rows.fetch(request, int(request.counts[1]))
            stored._rows[i] = StoredRows(rows(ids)[0].clone(), rows.mean, device)
        first, second = (f(case.distributions, case.weights) for f in (hot, stored))
        torch.testing.assert_close(first.logprobs, second.logprobs, atol=1e-6, rtol=0)


def test_tail_levels_are_the_tails_logits() -> None:
    rest = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)) * 10
    rest[:, ::7] = -torch.inf
    rest[2] = -torch.inf
    naive = torch.stack([(left * rest).logsumexp(-1) for left in decays(10, 0.5)])
    torch.testing.assert_close(tail_levels(rest, 10, 0.5), naive)
    assert decays(5, 0.15)[0] == 1.0


def _first(fused: FusedDistribution, case: Case) -> Tensor:
    return columns(fused, case.alignment.union_size).argmax(-1)


@pytest.mark.parametrize("dense", [True, False])
def test_the_best_key_alone(dense: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first maximum is the call's; certified rows are not searched, all others are."""
    searched: list[int] = []
    fused = DeepenFuser._fused

    def counted(self: DeepenFuser, said: Said) -> Tensor:
        searched.append(len(said.logits))
        return fused(self, said)

    monkeypatch.setattr(DeepenFuser, "_fused", counted)
    certain_rows = ends = changed = 0
    for seed in range(24):
        case = random_case(seed, members=2 + seed % 2, rows=8, scale=(0.5, 2.0, 5.0)[seed % 3])
        case = replace(case, distributions=tuple(_ending(d, seed) for d in case.distributions))
        fuser = Deepen(anchors=4, dense=dense, support_cap=5).prepare(case.context())
        whole = fuser(case.distributions, case.weights)
        searched.clear()
        best = fuser.best(case.distributions, case.weights)
        assert torch.equal(_first(best, case), _first(whole, case))
        total = best.logprobs.exp().sum(-1) + best.end.exp()
        torch.testing.assert_close(total, torch.ones(8))
        known = certified(case.distributions[0].logprobs, whole.end.exp(), 5, 0.15)
        assert sum(searched) == int((known == UNKNOWN).sum())
        certain_rows += int((known >= 0).sum())
        ends += int((known == END).sum())
        changed += int((_first(whole, case) != _alone(case)).sum())
    assert min(certain_rows, ends, changed) > 0


def _ending(one: MemberDistribution, seed: int) -> MemberDistribution:
    """The same keys with more or less of END."""
    generator = torch.Generator().manual_seed(seed)
    end = torch.rand(len(one.end), generator=generator) ** 3
    scale = ((1 - end) / (1 - one.end.exp())).log()
    return replace(one, logprobs=one.logprobs + scale[:, None], end=end.log())


def _alone(case: Case) -> Tensor:
    main = case.distributions[0]
    return torch.cat([main.logprobs, main.end[:, None]], -1).argmax(-1)


def test_certain_is_the_certificate_without_end() -> None:
    logits = torch.tensor([[9.0, 0.0, -1.0], [1.0, 0.0, -1.0], [1.0, 1.0, -1.0]])
    assert certain(logits, 5, 0.15).tolist() == [True, False, False]
    assert certain(logits + 7.0, 5, 0.15).tolist() == [True, False, False]  # up to a constant
    none = torch.zeros(3)
    assert (certified(logits, none, 5, 0.15) != UNKNOWN).tolist() == [True, False, False]
    assert certain(torch.tensor([[0.0], [-torch.inf]]), 5, 0.15).tolist() == [True, False]
    assert certain(torch.tensor([[1.0, 0.0]]), 0, 0.15).tolist() == [True]  # nothing ever moves
