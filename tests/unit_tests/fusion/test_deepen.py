"""DeePEn as a fusion: settings, anchors, where rows come from, END, support against dense."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from langchain_ensemble.errors import ConfigError, VocabularyError
from langchain_ensemble.fusion import Deepen, deepen, deepen_fuser, pruned, tables
from langchain_ensemble.fusion.base import FusionContext, MemberKeys, member_distribution
from langchain_ensemble.fusion.deepen import select_anchors
from langchain_ensemble.fusion.relative import mean_row, relative_representation
from langchain_ensemble.fusion.rows import HotRows, StoredRows
from langchain_ensemble.testing import toy_alignment
from langchain_ensemble.testing.cases import Case, columns, random_case


def _wide_case(sharp: float, rows: int = 24, seed: int = 0) -> Case:
    """Two members of 1,200 and 1,500 tokens, 400 of them common, that mostly agree."""
    generator = torch.Generator().manual_seed(seed)
    both = [b"c%d" % i for i in range(400)]
    tokens: list[list[bytes | None]] = [
        [*both, *(b"%c%d" % (letter, i) for i in range(size)), None]
        for letter, size in ((120, 800), (121, 1100))
    ]
    alignment = toy_alignment(tokens)
    base = torch.randn(400, 32, generator=generator)
    shared = torch.randn(rows, 400, generator=generator)
    embeddings, distributions = [], []
    for keys in alignment.members:
        turn = torch.linalg.qr(torch.randn(32, 32, generator=generator))[0]
        own = torch.randn(keys.width, 32, generator=generator)
        own[:400] = base @ turn + 0.5 * own[:400]
        embeddings.append(own)
        logits = torch.randn(rows, keys.width, generator=generator)
        logits[:, :400] = 0.8 * shared + 0.6 * logits[:, :400]
        distributions.append(member_distribution(sharp * logits, keys))
    weights = torch.full((rows, 2), 0.5)
    return Case(tuple(tokens), alignment, tuple(embeddings), tuple(distributions), weights)


def _fused(fusion: Deepen, case: Case) -> Tensor:
    got = fusion.prepare(case.context())(case.distributions, case.weights)
    return columns(got, case.alignment.union_size)


def _apart(first: Tensor, second: Tensor) -> Tensor:
    """Total variation of each row."""
    return (first - second).abs().sum(-1) / 2


def test_support_and_tail_against_the_dense_search() -> None:
    """On rows as sharp as a language model's; the module docstring has the figures."""
    case = _wide_case(sharp=5.0)
    dense = _fused(Deepen(dense=True), case)
    assert float((dense.argmax(-1) != case.distributions[0].logprobs.argmax(-1)).float().mean()) > 0
    pruned = _fused(Deepen(dense=False), case)
    assert torch.equal(pruned.argmax(-1), dense.argmax(-1))
    apart = _apart(pruned, dense)
    assert float(apart.mean()) < 2e-3
    assert float(apart.max()) < 1e-2
    capped = _fused(Deepen(dense=False, support_cap=16), case)
    assert float(_apart(capped, dense).mean()) > float(apart.mean())


def test_flat_rows_keep_the_tails_mass() -> None:
    """With most of the mass past the cap, the tail keeps its share up to the decay."""
    case = _wide_case(sharp=1.0)
    main = case.distributions[0].logprobs
    moved = _fused(Deepen(dense=False, support_cap=64), case)
    best = main.topk(64, dim=-1).indices
    before = 1 - main.exp().gather(-1, best).sum(-1)
    after = 1 - moved.gather(-1, best).sum(-1)
    assert float(before.min()) > 0.5
    assert float((before - after).abs().max()) < 0.15


def test_mean_row_is_near_the_tables_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(4000, 64, generator=generator)
    anchors, tokens = torch.arange(0, 4000, 2), torch.arange(4000)
    table = relative_representation(embeddings, anchors)
    monkeypatch.setattr("langchain_ensemble.fusion.relative.MEAN_ROWS", 4000)
    whole = table.mean(0)
    torch.testing.assert_close(mean_row(embeddings, anchors, tokens), whole, atol=1e-6, rtol=0)
    monkeypatch.setattr("langchain_ensemble.fusion.relative.MEAN_ROWS", 400)
    sampled = mean_row(embeddings, anchors, tokens)
    assert float(sampled.sum()) == pytest.approx(1.0, abs=1e-5)
    assert 0 < float((sampled - whole).abs().sum() / 2) < 0.03
    plain = table[::10].mean(0)  # without the even spread of the anchors' own peaks
    assert float((plain - whole).abs().sum() / 2) > 0.1


def test_zero_embedding_gives_the_uniform_row() -> None:
    embeddings = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    embeddings[2] = 0.0
    table = relative_representation(embeddings, torch.tensor([0, 1, 3]))
    torch.testing.assert_close(table[2], torch.full((3,), 1 / 3))


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_tables_stay_near(precision: Any) -> None:
    case = _wide_case(sharp=5.0)
    full = _fused(Deepen(dense=True), case)
    half = _fused(Deepen(dense=True, precision=precision), case)
    assert float(_apart(half, full).max()) < 2e-2
    fuser = Deepen(dense=True, precision=precision).prepare(case.context())
    rows = fuser._rows[0]
    assert isinstance(rows, StoredRows)
    assert rows.table.element_size() == 2


def test_tables_are_remembered_by_content() -> None:
    case = random_case(0)
    seen: list[dict[str, Any]] = []
    kept: dict[str, dict[str, Tensor]] = {}

    def remember(key: Any, build: Any) -> dict[str, Tensor]:
        seen.append(dict(key))
        return kept.setdefault(repr(sorted(key.items())), build())

    context = replace(case.context(), remember=remember)
    Deepen(anchors=4, dense=True).prepare(context)
    Deepen(anchors=4, dense=True).prepare(context)
    assert len(kept) == 2
    Deepen(anchors=3, dense=True).prepare(context)
    assert len(kept) == 4
    other = replace(context, embedding_hashes=lambda i: f"other-{i}")
    Deepen(anchors=4, dense=True).prepare(other)
    assert len(kept) == 6
    Deepen(anchors=4, dense=False).prepare(context)
    assert len(kept) == 8
    assert all(key["format"] == tables.FORMAT for key in seen)


def test_progress_is_reported() -> None:
    case = random_case(0)
    seen: list[tuple[str, int, int]] = []
    context = replace(case.context(), on_progress=lambda *step: seen.append(step))
    Deepen(anchors=4, dense=True).prepare(context)
    assert [s[0] for s in seen] == [f"relative representation of 'm{i}'" for i in (0, 1)]
    assert all(done == total for _, done, total in seen)


def test_automatic_size_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    context = random_case(0).context()
    assert Deepen(anchors=4).prepare(context).dense
    monkeypatch.setattr(deepen, "DENSE_CELLS", 10)
    kept = Deepen(anchors=4).prepare(context)
    assert not kept.dense
    assert all(isinstance(rows, StoredRows) for rows in kept._rows)
    monkeypatch.setattr(tables, "TABLE_BYTES", 10)
    made = Deepen(anchors=4).prepare(context)
    assert all(isinstance(rows, HotRows) for rows in made._rows)


def test_chunks_do_not_change_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    case = _wide_case(sharp=4.0, rows=7)
    whole = _fused(Deepen(dense=False), case)
    monkeypatch.setattr(pruned, "CHUNK_CELLS", 1)
    torch.testing.assert_close(_fused(Deepen(dense=False), case), whole, atol=1e-6, rtol=0)


def test_end_is_outside_the_search() -> None:
    """Pooled by weight, exactly; the keys share what is left."""
    for dense in (True, False):
        case = random_case(3, members=3)
        got = _fused(Deepen(anchors=4, dense=dense), case)
        ends = torch.stack([d.end.exp() for d in case.distributions], -1)
        expected = (case.weights * ends).sum(-1)
        torch.testing.assert_close(got[:, -1], expected, atol=1e-6, rtol=0)


def test_others_can_end_a_main_that_does_not_want_to() -> None:
    case = random_case(0)
    main, other = case.distributions
    sure = replace(
        other,
        logprobs=torch.full_like(other.logprobs, -torch.inf),
        end=torch.zeros_like(other.end),
    )
    weights = torch.tensor([[0.4, 0.6]]).expand(len(main.end), -1)
    got = _fused(Deepen(anchors=4), replace(case, distributions=(main, sure), weights=weights))
    assert torch.equal(got.argmax(-1), torch.full((len(got),), got.shape[-1] - 1))


@pytest.mark.parametrize("dense", [True, False])
def test_only_end_is_left(dense: bool) -> None:
    case = random_case(0)
    over = tuple(
        replace(d, logprobs=torch.full_like(d.logprobs, -torch.inf), end=torch.zeros_like(d.end))
        for d in case.distributions
    )
    got = _fused(Deepen(anchors=4, dense=dense), replace(case, distributions=over))
    assert torch.equal(got[:, -1], torch.ones(len(got)))
    assert float(got[:, :-1].abs().max()) == 0.0


@pytest.mark.parametrize("dense", [True, False])
def test_an_abstaining_main_starts_from_all_its_keys_alike(dense: bool) -> None:
    case = random_case(0)
    main = case.distributions[0]
    nothing = replace(
        main,
        logprobs=torch.full_like(main.logprobs, -torch.inf),
        end=torch.full_like(main.end, -torch.inf),
        abstain=torch.ones_like(main.end, dtype=torch.bool),
    )
    case = replace(case, distributions=(nothing, case.distributions[1]))
    got = _fused(Deepen(anchors=4, dense=dense), case)
    torch.testing.assert_close(got.sum(-1), torch.ones(len(got)))
    assert bool((got[:, : case.alignment.main.width][:, case.alignment.main.own] > 0).all())


def test_agreeing_members_are_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> Tensor:
        raise AssertionError("searched")

    monkeypatch.setattr(deepen_fuser, "search", never)
    case = random_case(0, members=3, equal=True)
    got = _fused(Deepen(anchors=4, dense=True), case)
    main = case.distributions[0].logprobs.exp()
    torch.testing.assert_close(got[:, : main.shape[-1]], main, atol=1e-6, rtol=0)


def test_fewer_embedding_rows_than_columns() -> None:
    """Padded logits columns have no embedding and no mass."""
    vocabulary: list[bytes | None] = [b"a", b"b", b"ab", b"c", None, None, None]
    alignment = toy_alignment([vocabulary, vocabulary], end_ids=[[4], [4]])
    generator = torch.Generator().manual_seed(0)
    embeddings = [torch.randn(5, 8, generator=generator) for _ in range(2)]
    distributions = [
        member_distribution(torch.randn(3, 7, generator=generator), keys)
        for keys in alignment.members
    ]
    context = FusionContext(alignment, lambda i: embeddings[i], str)
    for dense in (True, False):
        fuser = Deepen(anchors=3, dense=dense).prepare(context)
        got = fuser(distributions, torch.full((3, 2), 0.5))
        total = got.logprobs.exp().sum(-1) + got.end.exp()
        torch.testing.assert_close(total, torch.ones(3))
        assert bool((got.logprobs[:, 4:] == -torch.inf).all())
    short = FusionContext(alignment, lambda i: embeddings[i][:2], str)
    with pytest.raises(VocabularyError, match="2 embedding rows but anchor id 3"):
        Deepen().prepare(short)


def test_anchors() -> None:
    vocabularies: list[list[bytes | None]] = [
        [b"a", b"b", b"c", b"d", b"e", b"only", None],
        [b"e", b"d", b"c", b"b", b"a", None],
    ]
    alignment = toy_alignment(vocabularies)
    assert select_anchors("all", alignment).tolist() == [0, 1, 2, 3, 4]
    assert select_anchors(2, alignment).tolist() == [0, 2]
    assert select_anchors((4, 1), alignment).tolist() == [1, 4]
    with pytest.raises(VocabularyError, match="id 5 of member 'm0'"):
        select_anchors((5,), alignment)
    with pytest.raises(VocabularyError, match=r"share 5 common tokens.*anchors=6"):
        select_anchors(6, alignment)


def test_a_byte_fallback_id_is_no_anchor_where_another_id_spells_it() -> None:
    """Only possible where the encoder itself prefers the byte token."""
    alignment = toy_alignment([[b"a", b"b", b"a", None], [b"a", b"b", None]])
    main = alignment.main
    odd = replace(
        alignment,
        members=(
            type(main)(
                **{
                    **{f: getattr(main, f) for f in main.__dataclass_fields__ if f not in _DERIVED},
                    "byte_fallback": torch.tensor([True, True, False, False]),
                }
            ),
            alignment.members[1],
        ),
    )
    assert select_anchors("all", odd).tolist() == [1]


_DERIVED = tuple(f.name for f in fields(MemberKeys) if not f.init)


def test_needs_say_how_many_common_tokens() -> None:
    assert Deepen().needs.min_common == 100
    assert Deepen(anchors=7).needs.min_common == 7
    assert Deepen(anchors=(1, 2)).needs.min_common == 2
    assert Deepen().needs.embeddings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"search_steps": 11}, "search_steps=11"),
        ({"search_lr": {"m0": -1.0}}, "search_lr=-1"),
        ({"anchors": 0}, "anchors=0"),
        ({"anchors": "some"}, "anchors='some'"),
        ({"anchors": ()}, r"anchors=\(\)"),
        ({"precision": "int8"}, "unknown precision"),
        ({"support_mass": 0.0}, "support_mass=0"),
        ({"support_cap": 0}, "support_cap=0"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Deepen(**settings)


def test_rate_by_main() -> None:
    fusion = Deepen(search_lr={"m0": 0.1, "m1": 0.3}, anchors=4)
    assert fusion.rate("m1") == 0.3
    with pytest.raises(ConfigError, match=r"'m2'.*Known: 'm0', 'm1'"):
        fusion.rate("m2")
    case = random_case(0)
    first = _fused(fusion, case)
    torch.testing.assert_close(first, _fused(Deepen(search_lr=0.1, anchors=4), case))


class _Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(one, Tensor):
                self.cells = max(self.cells, one.numel())
        return made


def test_without_tables_nothing_of_their_size_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """[V, A] would be 480,000 cells; the support's rows are (16 + 64) x 400, and the mean row."""
    monkeypatch.setattr(tables, "TABLE_BYTES", 10)  # room for one position's rows
    monkeypatch.setattr("langchain_ensemble.fusion.relative._BLOCK_CELLS", 20_000)
    case = _wide_case(sharp=5.0, rows=1)
    with _Largest() as seen:
        fuser = Deepen(dense=False, support_cap=16).prepare(case.context())
        fuser(case.distributions, case.weights)
    widest = max(table.numel() for table in case.embeddings)
    assert widest < 60_000
    assert seen.cells <= max((16 + 64 + 1) * 400, widest)
    with _Largest() as seen:
        Deepen(dense=True).prepare(case.context())
    assert seen.cells == 1501 * 400
