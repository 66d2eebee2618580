"""Every session gives what the unmodified model gives without a cache, whatever was done before."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from langchain_ensemble.errors import ConfigError, MemberError
from langchain_ensemble.members import fit as fitting
from langchain_ensemble.members.base import MemberPrompt
from langchain_ensemble.members.huggingface import HFMember
from langchain_ensemble.members.replay import ReplaySession
from langchain_ensemble.members.session import HFSession
from tests.unit_tests.members import families


class Words:
    """As much of a tokenizer as a session needs: nothing."""

    eos_token_id = 2
    chat_template = None


_members: dict[tuple[str, str | None], HFMember] = {}


def member(name: str, attention: str | None = None) -> HFMember:
    if (name, attention) not in _members:
        _members[name, attention] = HFMember.wrap(families.build(name, attention), Words(), name)
    return _members[name, attention]


def uncached(model: HFMember, ids: list[int]) -> Tensor:
    with torch.no_grad():
        output = model.module(input_ids=torch.tensor([ids]), use_cache=False)
    return output.logits[0].float()


def close(got: Tensor, want: Tensor) -> None:
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3 * float(want.abs().max()))


def some_ids(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(3, families.VOCAB) for _ in range(count)]


class Walk:
    """A session beside the plain lists of ids that its rows should hold."""

    def __init__(self, model: HFMember, rows: list[list[int]], session: Any = None) -> None:
        self.model, self.rows = model, rows
        self.session = session or model.session()
        if session is None:
            logits = self.session.prefill([MemberPrompt(tuple(r)) for r in rows])
            for row, got in zip(rows, logits, strict=True):
                close(got, uncached(model, row)[-1])

    def step(self, ids: list[list[int]], keep: int | None) -> None:
        logits = self.session.step(ids, keep)
        widest = max(map(len, ids))
        wanted = widest if keep is None else keep
        assert logits.shape == (len(ids), wanted, self.model.logits_width)
        self.rows = [row + new for row, new in zip(self.rows, ids, strict=True)]
        assert self.session.lengths == [len(r) for r in self.rows]
        for row, new, got in zip(self.rows, ids, logits, strict=True):
            known = min(len(new), wanted)
            if known:
                close(got[wanted - known :], uncached(self.model, row)[-known:])

    def truncate(self, lengths: list[int]) -> None:
        self.session.truncate(lengths)
        self.rows = [row[:n] for row, n in zip(self.rows, lengths, strict=True)]

    def select(self, rows: list[int]) -> None:
        self.session.select(rows)
        self.rows = [list(self.rows[r]) for r in rows]

    def fork(self, rows: list[int]) -> Walk:
        return Walk(self.model, [list(self.rows[r]) for r in rows], self.session.fork(rows))


@pytest.mark.parametrize("name", families.ALL)
def test_random_steps_and_rollbacks_equal_the_uncached_model(
    name: str, acceptance_scale: int
) -> None:
    model = member(name)
    for seed in range(acceptance_scale):
        rng = random.Random(f"{name} {seed}")
        walk = Walk(model, [some_ids(rng, n) for n in (9, 2, 5)])
        for _ in range(4):
            walk.step(
                [some_ids(rng, rng.randrange(4)) for _ in walk.rows] or [[3]],
                rng.choice([1, 2, None]),
            )
            walk.truncate([max(1, len(r) - rng.choice([0, 0, 1, 2, 6])) for r in walk.rows])
        mark, before = walk.session.mark(), [list(r) for r in walk.rows]
        walk.step([some_ids(rng, 2), [], some_ids(rng, 1)], None)
        other = walk.fork([2, 0])
        walk.session.rollback(mark)
        walk.rows = before
        walk.select([1, 1, 2])
        walk.step([some_ids(rng, 1), some_ids(rng, 3), some_ids(rng, 1)], None)
        other.step([some_ids(rng, 1), some_ids(rng, 2)], None)


@pytest.mark.parametrize("name", [*families.RAGGED, *families.PROBED])
def test_ragged_families_run_in_one_cache(name: str) -> None:
    assert isinstance(member(name).session(), HFSession)


@pytest.mark.parametrize("name", families.REPLAYED)
def test_the_others_are_replayed(name: str) -> None:
    assert isinstance(member(name).session(), ReplaySession)


@pytest.mark.parametrize("name", families.RAGGED)
def test_known_families_pass_the_probe_that_they_are_spared(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert families.RAGGED[name][0] in fitting.KNOWN
    monkeypatch.setattr(fitting, "KNOWN", ())
    asked = fitting.fit(name, member(name).module, torch.device("cpu"))
    assert asked == member(name)._lease.value.rollback


@pytest.mark.parametrize("name", ["llama", "mistral-sliding", "gemma3", "gpt2", "qwen2"])
def test_eager_attention_takes_float_masks(name: str) -> None:
    model = member(name, "eager")
    assert model.module.config._attn_implementation == "eager"
    walk = Walk(model, [[5, 6, 7, 8, 9, 10, 11], [4]])
    walk.step([[3], [4, 5, 6]], None)
    walk.truncate([5, 2])
    walk.step([[3, 9], [7]], None)


@pytest.mark.parametrize("name", ["mistral-sliding", "gemma2", "qwen2-sliding"])
def test_rollback_is_exact_past_a_sliding_window(name: str) -> None:
    model, rng = member(name), random.Random(1)
    walk = Walk(model, [some_ids(rng, 30), some_ids(rng, 3)])
    walk.step([some_ids(rng, 12), some_ids(rng, 20)], None)
    walk.truncate([7, 6])
    walk.step([some_ids(rng, 2), some_ids(rng, 2)], None)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt-neox", "qwen2", "bitnet", "gemma2"])
def test_greedy_steps_equal_generate(name: str) -> None:
    model = member(name)
    prompt = [7, 8, 9, 10]
    session = model.session()
    logits = session.prefill([MemberPrompt(tuple(prompt))])
    ids = list(prompt)
    for _ in range(20):
        ids.append(int(logits[0].argmax()))
        logits = session.step([[ids[-1]]])[:, -1]
    with torch.no_grad():
        want = model.module.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, 4, dtype=torch.long),
            max_new_tokens=20,
            do_sample=False,
            eos_token_id=-1,
        )
    assert ids == want[0].tolist()


def test_long_prompts_run_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("langchain_ensemble.members.session.CHUNK", 7)
    model, rng = member("llama"), random.Random(2)
    for lengths in ([30, 3, 14], [7, 7, 7], [8, 1, 29]):
        walk = Walk(model, [some_ids(rng, n) for n in lengths])
        walk.step([some_ids(rng, 17), [], some_ids(rng, 8)], None)
        walk.step([some_ids(rng, 17), some_ids(rng, 9), []], 9)


def test_a_step_without_ids_changes_nothing() -> None:
    model = member("llama")
    walk = Walk(model, [[5, 6], [7]])
    assert model.session().lengths == []
    logits = walk.session.step([[], []], keep=1)
    assert logits.shape == (2, 1, families.VOCAB)
    assert walk.session.lengths == [2, 1]
    walk.step([[5], [6]], 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_float32_logits_close_to_the_models_own(dtype: torch.dtype) -> None:
    model = HFMember.wrap(families.build("llama", dtype=dtype), Words(), "half")
    session = model.session()
    rows = [[5, 6, 7, 8], [9]]
    session.prefill([MemberPrompt(tuple(r)) for r in rows])
    got = session.step([[4], [4, 5]], keep=1)
    assert got.dtype == torch.float32
    for row, new, logits in zip(rows, ([4], [4, 5]), got, strict=True):
        want = uncached(model, row + new)[-1]
        assert float((logits[0] - want).abs().max()) < 0.05 * float(want.abs().max())


def test_logits_width_counts_the_padded_columns() -> None:
    assert member("gpt-neox").logits_width == families.VOCAB
    assert member("gpt-neox").embeddings().shape == (families.VOCAB, 32)


def test_the_step_that_does_not_fit_the_context_is_refused_and_changes_nothing() -> None:
    model = member("gpt2")
    walk = Walk(model, [[5] * 255])
    with pytest.raises(ConfigError, match=r"member 'gpt2' has 256 positions; this step needs 257"):
        walk.session.step([[5, 6]])
    assert walk.session.lengths == [255]
    walk.step([[7]], 1)


def test_wrong_use_is_refused() -> None:
    session = member("llama").session()
    session.prefill([MemberPrompt((5, 6))])
    with pytest.raises(ConfigError, match="has 1 rows; ids for 2"):
        session.step([[5], [6]])
    with pytest.raises(ConfigError, match=r"cannot roll back to lengths \[3\]"):
        session.truncate([3])
    with pytest.raises(ConfigError, match="prompt 0 has no ids"):
        session.prefill([MemberPrompt(())])
    with pytest.raises(MemberError, match="another session's step"):
        session.collect(member("llama").session().submit([]))
    with pytest.raises(MemberError, match="no encoder"):
        session.prefill([MemberPrompt((5,), encoder_ids=(4,))])


def test_a_model_whose_cache_gives_other_logits_is_refused() -> None:
    model = families.build("bloom")
    right = type(model).forward

    def wrong(self: Any, *args: Any, use_cache: bool = True, **kwargs: Any) -> Any:
        output = right(self, *args, use_cache=use_cache, **kwargs)
        if use_cache:
            output.logits = output.logits.flip(-1)
        return output

    model.__class__ = type("Odd", (type(model),), {"forward": wrong})
    with pytest.raises(MemberError, match="'odd': Odd gives other logits with its cache"):
        HFMember.wrap(model, Words(), "odd")


def test_a_model_that_ignores_positions_is_not_given_a_ragged_cache() -> None:
    model = families.build("llama")
    model.config.model_type = "unheard-of"
    right = type(model).forward

    def wrong(
        self: Any, *args: Any, position_ids: Any = None, past_key_values: Any = None, **kwargs: Any
    ) -> Any:
        return right(self, *args, past_key_values=past_key_values, **kwargs)

    model.__class__ = type("Deaf", (type(model),), {"forward": wrong})
    assert isinstance(HFMember.wrap(model, Words(), "deaf").session(), ReplaySession)


def test_out_of_memory_leaves_the_session_usable() -> None:
    model = member("llama")
    walk = Walk(model, [[5, 6], [7]])
    layer = model.module.model.layers[1]

    def full(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("tried to allocate 3 GiB")

    handle = layer.register_forward_pre_hook(full)
    with pytest.raises(
        MemberError, match=r"'llama' ran out of memory on cpu at a step of 2 rows x 3"
    ):
        walk.session.step([[5, 6, 7], [8]])
    handle.remove()
    walk.step([[9], [8, 5]], None)


def test_longrope_rows_cross_the_length_at_which_all_positions_turn() -> None:
    rng = random.Random(3)
    walk = Walk(member("phi3-longrope"), [some_ids(rng, 14), some_ids(rng, 20)])
    walk.step([some_ids(rng, 2), some_ids(rng, 1)], None)
    walk.step([some_ids(rng, 1), []], None)  # 16 -> 17: all keys change
    walk.truncate([15, 12])
    walk.step([some_ids(rng, 1), some_ids(rng, 6)], None)
