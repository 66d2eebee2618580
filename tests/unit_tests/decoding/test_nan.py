"""A member whose logits are no numbers is named, greedy or sampled, alone or fused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.errors import MemberError
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
