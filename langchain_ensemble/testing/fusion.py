"""The laws that every fusion keeps, as a pytest class to inherit.

Give your fusion, and pytest runs the laws on it::

    class TestMine(FusionContract):
        def fusion(self):
            return Mine()

All cases are small and made here: random vocabularies of byte strings with prefixes of one another,
spare ids, control ids and end ids; random distributions; no tokenizer and no model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from langchain_ensemble.fusion.base import Fuser, Fusion, MemberDistribution
from langchain_ensemble.testing.cases import Case, columns, random_case, take_rows


class FusionContract:
    """Inherit, give :meth:`fusion`, and every law is a test.

    Attributes:
        seeds: Random cases a law is tried on.
        tolerance: Greatest difference of two probabilities that should be equal.
        truncates: Whether the fusion leaves keys out by design (UniTE), so that one voice gives
            that member renormalised over its best keys.
        keeps_equal_members: Whether equal members give exactly the one member's probabilities;
            False where only the best key is promised.
        roles: How many members the fusion has roles for. Then it takes exactly so many, of one
            vocabulary, and of their weights only who has none at all matters: ``fusion()`` names
            them ``m0`` (main), ``m1``, … 0: any number of members, which weights make equal.
    """

    seeds: ClassVar[Sequence[int]] = (0, 1, 2, 3, 4)
    tolerance: ClassVar[float] = 2e-5
    truncates: ClassVar[bool] = False
    keeps_equal_members: ClassVar[bool] = True
    roles: ClassVar[int] = 0

    def fusion(self) -> Fusion:
        """Your fusion, with the settings to be tried."""
        raise pytest.UsageError(f"{type(self).__name__} must define fusion()")

    def oracle(self, case: Case) -> Tensor | None:
        """A float64 calculation of the same case, [N, U + 1] with END last; None: not compared."""
        return None

    def case(self, seed: int, members: int, *, equal: bool = False, scale: float = 2.0) -> Case:
        """A random case, with as many members as the fusion takes."""
        if not self.roles:
            return random_case(seed, members, equal=equal, scale=scale)
        return random_case(seed, self.roles, equal=equal, scale=scale, one_vocabulary=True)

    def prepared(self, case: Case) -> Fuser:
        """Your fusion, ready for a case."""
        return self.fusion().prepare(case.context())

    def fused(self, case: Case) -> Tensor:
        """Dense probabilities of a case, [N, U + 1]."""
        got = self.prepared(case)(case.distributions, case.weights)
        return columns(got, case.alignment.union_size)

    @pytest.mark.parametrize("members", [1, 2, 3])
    def test_rows_sum_to_one(self, members: int) -> None:
        """Keys and END together."""
        for seed in self.seeds:
            total = self.fused(self.case(seed, members)).sum(-1)
            torch.testing.assert_close(total, torch.ones_like(total), atol=self.tolerance, rtol=0)

    def test_one_voice_is_main(self) -> None:
        """All weight on main gives main, up to the fusion's truncation."""
        for seed in self.seeds:
            case = self.case(seed, 3)
            alone = torch.zeros_like(case.weights)
            alone[:, 0] = 1.0
            got = self.fused(replace(case, weights=alone))
            self._is_main(got, case)

    def test_equal_members_are_one_member(self) -> None:
        """Members that say the same are one member, whatever the weights."""
        for seed in self.seeds:
            case = self.case(seed, 3, equal=True)
            got = self.fused(case)
            if self.keeps_equal_members:
                self._is_main(got, case)
            else:
                assert torch.equal(got.argmax(-1), self._main(case).argmax(-1))

    def test_order_of_auxiliaries_does_not_matter(self) -> None:
        """The second and the third member change places."""
        self._weights_are_shares()
        for seed in self.seeds:
            case = self.case(seed, 3)
            order = [0, 2, 1]
            members = tuple(case.alignment.members[i] for i in order)
            swapped = Case(
                tuple(case.vocabularies[i] for i in order),
                replace(case.alignment, members=members),
                tuple(case.embeddings[i] for i in order),
                tuple(case.distributions[i] for i in order),
                case.weights[:, order],
            )
            self._close(self.fused(swapped), self.fused(case))

    def test_batch_is_rows_one_by_one(self) -> None:
        """A row does not depend on its neighbours."""
        for seed in self.seeds:
            case = self.case(seed, 2)
            fuser = self.prepared(case)
            whole = self.fused(case)
            for row in range(len(case.weights)):
                one = [take_rows(d, slice(row, row + 1)) for d in case.distributions]
                got = fuser(one, case.weights[row : row + 1])
                self._close(columns(got, case.alignment.union_size), whole[row : row + 1])

    def test_masked_keys_never_win(self) -> None:
        """Keys that every member masks have no mass, and nothing is NaN."""
        for seed in self.seeds:
            case = self.case(seed, 2)
            barred = torch.zeros(case.alignment.union_size, dtype=torch.bool)
            barred[::2] = True
            masked = replace(
                case,
                distributions=tuple(
                    _bar(d, barred[keys.to_union.clamp_min(0)])
                    for d, keys in zip(case.distributions, case.alignment.members, strict=True)
                ),
            )
            got = self.fused(masked)
            assert bool(torch.isfinite(got).all())
            assert bool((got[:, :-1][:, barred] == 0).all())

    def test_ties_give_the_first_key(self) -> None:
        """Columns are in union order, so the first maximum is the tie rule."""
        for seed in self.seeds:
            case = self.case(seed, 2)
            got = self.prepared(case)(case.distributions, case.weights)
            if got.keys is None:
                continue
            full = got.keys >= 0
            count = full.sum(-1)
            for row, size in enumerate(count.tolist()):
                keys = got.keys[row, :size]
                assert bool(full[row, :size].all()), "empty slots stand at the end"
                assert bool((keys[1:] > keys[:-1]).all()), "keys ascend, without repeats"

    def test_a_member_without_weight_has_no_say(self) -> None:
        """Weight 0, abstaining, and not run at all are the same."""
        for seed in self.seeds:
            case = self.case(seed, 3)
            weights = case.weights.clone()
            weights[:, -1] = 0.0
            weights = weights / weights.sum(-1, keepdim=True)
            fuser, size = self.prepared(case), case.alignment.union_size
            *others, last = case.distributions
            silent = columns(fuser(case.distributions, weights), size)
            absent = columns(fuser([*others, None], weights), size)
            nothing = replace(
                last,
                logprobs=torch.full_like(last.logprobs, -torch.inf),
                end=torch.full_like(last.end, -torch.inf),
                abstain=torch.ones_like(last.end, dtype=torch.bool),
            )
            abstaining = columns(fuser([*others, nothing], case.weights), size)
            self._close(absent, silent)
            self._close(abstaining, silent)
            if self.roles:
                self._is_main(silent, case)

    def test_any_member_can_vote_to_end(self) -> None:
        """More END from an auxiliary is more END."""
        self._weights_are_shares()
        for seed in self.seeds:
            case = self.case(seed, 2)
            before = self.fused(case)[:, -1]
            other = case.distributions[1]
            loud = torch.full_like(other.end, 0.9999)
            left = (other.logprobs.exp().sum(-1) / 0.0001).log()
            louder = replace(other, logprobs=other.logprobs - left[:, None], end=loud.log())
            after = self.fused(replace(case, distributions=(case.distributions[0], louder)))[:, -1]
            assert bool((after > before).all())

    def test_sparse_members_are_accepted(self) -> None:
        """A list of all ids is the dense form; a short list still gives a distribution."""
        if self.fusion().needs.logprobs == "dense":
            pytest.skip("this fusion needs dense members and says so")
        for seed in self.seeds:
            case = self.case(seed, 2)
            whole = [d.to_sparse(d.logprobs.shape[-1]) for d in case.distributions]
            self._close(self.fused(replace(case, distributions=tuple(whole))), self.fused(case))
            short = [d.to_sparse(4) for d in case.distributions]
            total = self.fused(replace(case, distributions=tuple(short))).sum(-1)
            torch.testing.assert_close(total, torch.ones_like(total), atol=self.tolerance, rtol=0)

    def test_score_is_finite_where_main_can_say_the_key(self) -> None:
        """Every key of main, even where main has no weight."""
        for seed in self.seeds:
            case = self.case(seed, 2, scale=20.0)
            fuser = self.prepared(case)
            own = case.alignment.main.own & (case.alignment.main.to_union >= 0)
            other = torch.eye(len(case.distributions))[1:2].expand_as(case.weights)
            for weights in (case.weights, other):
                for key in own.nonzero()[:, 0].tolist():
                    targets = torch.full((len(weights),), key)
                    score = fuser.score(case.distributions, weights, targets)
                    assert bool(torch.isfinite(score).all())
                    assert bool((score <= self.tolerance).all())

    def test_score_is_the_fused_probability(self) -> None:
        """Where nothing is truncated."""
        if self.truncates:
            pytest.skip("score is completed outside the fusion's candidates")
        for seed in self.seeds:
            case = self.case(seed, 2)
            fuser = self.prepared(case)
            fused = fuser(case.distributions, case.weights)
            best = fused.logprobs.argmax(-1)
            targets = best if fused.keys is None else fused.keys.gather(-1, best[:, None])[:, 0]
            score = fuser.score(case.distributions, case.weights, targets)
            self._close(score.exp(), fused.logprob_of(targets).exp())

    @pytest.mark.parametrize("members", [2, 3])
    def test_equals_the_float64_oracle(self, members: int) -> None:
        """If :meth:`oracle` is given."""
        for seed in self.seeds:
            case = self.case(seed, members)
            expected = self.oracle(case)
            if expected is None:
                pytest.skip("no oracle given")
            self._close(self.fused(case), expected.float())

    def test_settings_are_json_and_make_the_same_fusion(self) -> None:
        """Settings survive a round trip."""
        fusion = self.fusion()
        again = type(fusion)(**json.loads(json.dumps(fusion.settings())))
        assert again.settings() == fusion.settings()
        assert again.name == fusion.name

    def _weights_are_shares(self) -> None:
        if self.roles:
            pytest.skip("its members have roles: they are no auxiliaries that add their share")

    def _main(self, case: Case) -> Tensor:
        """Main's own probabilities over union keys and END."""
        main = case.distributions[0]
        wide = torch.zeros(len(main.end), case.alignment.union_size + 1)
        wide[:, : case.alignment.main.width] = main.logprobs.exp()
        wide[:, -1] = main.end.exp()
        return wide

    def _is_main(self, got: Tensor, case: Case) -> None:
        expected = self._main(case)
        if self.truncates:
            expected = torch.where(got > 0, expected, 0.0)
            assert bool((got > 0).any(-1).all())
            assert torch.equal(got.argmax(-1), self._main(case).argmax(-1))
            expected = expected / expected.sum(-1, keepdim=True)
        self._close(got, expected)

    def _close(self, got: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(got, expected, atol=self.tolerance, rtol=0)


def _bar(distribution: MemberDistribution, barred: Tensor) -> MemberDistribution:
    """Mask ids and renormalise, as a grammar would before the softmax."""
    logprobs = distribution.logprobs.masked_fill(barred, -torch.inf)
    total = torch.logaddexp(logprobs.logsumexp(-1), distribution.end)
    return replace(distribution, logprobs=logprobs - total[:, None], end=distribution.end - total)
