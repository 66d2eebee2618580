"""A step costs the same late as early: only new ids are run, only a tail is tokenised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.members.session import HFSession
from langchain_ensemble.params import EnsembleParams, RequestParams
from langchain_ensemble.vocab.encoder import Encoder


@pytest.mark.parametrize("fusion", ["average", "deepen", "gac", "unite"])
def test_late_steps_run_and_tokenise_no_more_than_early_ones(
    shared: Path, monkeypatch: pytest.MonkeyPatch, fusion: str
) -> None:
    columns: list[int] = []
    characters: list[int] = []
    forward, spell = HFSession._forward, Encoder.spell

    def counted_forward(self: HFSession, ids: Any, *rest: Any) -> Any:
        columns.append(max(len(row) for row in ids))
        return forward(self, ids, *rest)

    def counted_spell(self: Encoder, text: str) -> Any:
        characters.append(len(text))
        return spell(self, text)

    members = [str(shared / "models" / n) for n in ("babyllama-361", "stories260K")]
    params = EnsembleParams(members=members, fusion=fusion, open_boundaries="discount")
    request = RequestParams(max_tokens=95)
    with Ensemble(params) as owner, owner.open(["Once"], request) as decoding:
        decoding.step()
        monkeypatch.setattr(HFSession, "_forward", counted_forward)
        monkeypatch.setattr(Encoder, "spell", counted_spell)
        while not decoding.done:
            decoding.step()
        row = decoding._loop.rows[0]
    steps = len(row.records)
    assert steps > 60
    assert max(columns) <= 16  # a key, or a tail that is spelled differently now
    assert len(columns) <= 2 * steps
    assert sum(columns) <= 6 * steps
    assert max(characters, default=0) <= 40  # a word or two, never the answer
