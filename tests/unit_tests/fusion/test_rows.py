"""Hot rows: those of a naive computation, within their bytes, the least used going first."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from langchain_ensemble.fusion.relative import relative_representation
from langchain_ensemble.fusion.rows import HotRows, StoredRows

WIDTH, HIDDEN = 60, 8
ANCHORS = torch.arange(0, WIDTH, 3)
CPU = torch.device("cpu")


def _embeddings(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(WIDTH, HIDDEN, generator=torch.Generator().manual_seed(0)).to(dtype)


def _hot(embeddings: Tensor, room: int = 1, budget: int = 0) -> HotRows:
    mean = torch.full((len(ANCHORS),), 1 / len(ANCHORS))
    return HotRows(embeddings, ANCHORS, mean, CPU, budget=budget, least=room)


def _read(rows: HotRows, ids: Tensor) -> int:
    """Ask for rows; how many had to be computed."""
    request = rows.request(ids, torch.ones_like(ids, dtype=torch.bool))
    count, missing = request.counts.tolist()
    assert count == len(ids.unique())
    rows.fetch(request, missing)
    return int(missing)


@pytest.mark.parametrize("budget", [0, 10**6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hot_rows_are_the_tables_rows(dtype: torch.dtype, budget: int) -> None:
    """With normalised anchors kept and without, through evictions, in any company."""
    embeddings = _embeddings(dtype)
    table = relative_representation(embeddings, ANCHORS)
    stored = StoredRows(table, table.mean(0), CPU, least=12)
    hot = _hot(embeddings, room=12, budget=budget)
    assert hot.room == (WIDTH if budget else 12)
    generator = torch.Generator().manual_seed(1)
    first: dict[int, Tensor] = {}
    for _ in range(40):
        ids = torch.randint(WIDTH + 5, (3, 4), generator=generator)  # past the embeddings: the last
        _read(hot, ids.clamp_max(WIDTH - 1))
        got = hot(ids)
        torch.testing.assert_close(got, stored(ids), atol=1e-6, rtol=0)
        weights = torch.rand(3, 4, generator=generator)
        naive = (weights[..., None] * table[ids.clamp_max(WIDTH - 1)]).sum(1)
        for rows in (hot, stored):
            torch.testing.assert_close(rows.weigh(ids, weights), naive, atol=1e-6, rtol=0)
        got = hot(ids)
        inside = ids.clamp_max(WIDTH - 1).flatten().tolist()
        for token, row in zip(inside, got.flatten(0, 1), strict=True):
            assert torch.equal(first.setdefault(token, row.clone()), row)


def test_weights_of_nothing_read_the_mean_row() -> None:
    hot = _hot(_embeddings(), room=4)
    _read(hot, torch.tensor([[1, 2]]))
    got = hot(torch.tensor([[1, 7]]))
    assert torch.equal(got[0, 1], hot.mean)
    weighed = hot.weigh(torch.tensor([[1, 7]]), torch.tensor([[1.0, 0.0]]))
    assert torch.equal(weighed[0], got[0, 0])


def test_only_missing_rows_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    hot = _hot(_embeddings(), room=4)
    computed: list[int] = []
    compute = hot._computed

    def counted(ids: Tensor) -> Tensor:
        computed.extend(ids.tolist())
        return compute(ids)

    monkeypatch.setattr(hot, "_computed", counted)
    for ids, new in (([1, 2], [1, 2]), ([2, 1, 2], []), ([2, 3], [3]), ([3, 9, 9, 7], [7, 9])):
        computed.clear()
        _read(hot, torch.tensor([ids]))
        assert computed == new


def test_the_least_recently_used_row_goes_first() -> None:
    hot = _hot(_embeddings(), room=3)
    for ids, missing in (([1, 2, 3], 3), ([1], 0), ([3], 0), ([4], 1), ([1, 3, 4], 0), ([2], 1)):
        assert _read(hot, torch.tensor([ids])) == missing


@pytest.mark.parametrize(
    ("width", "anchors", "hidden"),
    [(151_936, 109_566, 1024), (151_936, 109_566, 4096), (128_256, 109_566, 4096)],
)
def test_storage_at_the_sizes_of_real_vocabularies(width: int, anchors: int, hidden: int) -> None:
    """Nothing is allocated. Normalised anchors alone would be 1.8 GB at 4096."""
    meta = torch.device("meta")
    embeddings = torch.empty(width, hidden, dtype=torch.bfloat16, device=meta)
    ids = torch.arange(anchors, device=meta)
    hot = HotRows(embeddings, ids, torch.empty(anchors), meta, budget=10**9, least=576)
    assert hot.room >= 576
    assert 0.9e9 < hot.stored_bytes <= 1e9
