"""A member whose logits are no numbers is named, greedy or sampled, alone or fused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.errors import MemberError
from langchain_ensemble.fusion.base import MemberKeys, bounded_distribution, ceiling
from langchain_ensemble.members.session import HFSession
from langchain_ensemble.params import EnsembleParams, RequestParams

NAMES = ["stories260K", "babyllama-361"]


@pytest.mark.parametrize("fusion", ["average", "deepen", "gac", "unite"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("sick", NAMES)
def test_the_member_is_named_and_the_ensemble_lives(
    shared: Path, monkeypatch: pytest.MonkeyPatch, fusion: str, temperature: float, sick: str
) -> None:
    folders = [str(shared / "models" / name) for name in NAMES]
    request = RequestParams(max_tokens=8, temperature=temperature, seed=1)
    with Ensemble(EnsembleParams(members=folders, fusion=fusion)) as owner:
        good = owner.generate(["Once upon"], request)[0][0].text
        collect = HFSession.collect

        def poisoned(self: HFSession, pending: object) -> torch.Tensor:
            logits = collect(self, pending)  # type: ignore[arg-type]
            return logits * float("nan") if self.engine.name == sick else logits

        with monkeypatch.context() as patch:
            patch.setattr(HFSession, "collect", poisoned)
            with pytest.raises(MemberError, match=rf"'{sick}' gave NaN logits in 1 of 1 row"):
                owner.generate(["Once upon"], request)
        assert owner.generate(["Once upon"], request)[0][0].text == good


def test_whether_a_row_must_speak_does_not_depend_on_the_others() -> None:
    """Of two rows without a finite logit one stands inside a character: that one abstains."""
    ids = torch.arange(3)
    keys = MemberKeys(
        "m", 3, ids, ids, ids, ids, torch.tensor([2]), torch.zeros(3, dtype=torch.bool)
    )
    logits = torch.full((3, 3), -torch.inf)
    logits[2] = 0.0
    speaks = torch.tensor([True, False, False])
    said = bounded_distribution(logits, keys, ceiling(keys), speaks=speaks)
    assert said.abstain is not None
    assert said.abstain.tolist() == [False, True, False]
    assert bool(said.logprobs[0, :2].isnan().all())
    assert said.logprobs[1].tolist() == [-torch.inf] * 3
    alone = bounded_distribution(logits[2:], keys, ceiling(keys), speaks=True)
    torch.testing.assert_close(said.logprobs[2:], alone.logprobs)


def test_alone(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(shared / "models" / "stories260K")
    with Ensemble(EnsembleParams(members=[folder])) as owner:
        owner.load()
        collect = HFSession.collect
        monkeypatch.setattr(HFSession, "collect", lambda s, p: collect(s, p) * float("nan"))
        for temperature in (0.0, 1.0):
            with pytest.raises(MemberError, match="'stories260K' gave NaN"):
                owner.generate(["Once"], RequestParams(temperature=temperature))
        with pytest.raises(MemberError, match="'stories260K' gave NaN"):
            owner.score(" upon a time", "Once")
