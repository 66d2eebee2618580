"""The authors' relative representations, aggregates and all 576 searches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from langchain_ensemble.fusion.deepen import relative_representation, search, to_relative

STEPS = (0, 1, 5, 10)
RATES = (0.05, 0.15, 0.5)
GROUPS = (
    "m2_uniform",
    "m2_w64",
    "m3_uniform",
    "m3_w532",
    "m2_main1_w64",
    "m3_main2_w532",
)


class Golden:
    def __init__(self, folder: Path) -> None:
        self.given = load_file(folder / "golden_inputs.safetensors")
        self.wanted = load_file(folder / "golden_outputs.safetensors")
        self.manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
        self.tables = [
            relative_representation(self.given[f"emb.{m}"], self.given[f"anchor_ids.{m}"])
            for m in range(3)
        ]

    def members(self, group: str) -> tuple[list[int], list[float]]:
        found = self.manifest["groups"][group]
        return [found["main"], *found["assist"]], found["weights"]

    def aggregate(self, group: str) -> tuple[Tensor, Tensor]:
        members, weights = self.members(group)
        relative = torch.stack(
            [
                to_relative(torch.softmax(self.given[f"logits.{m}"], -1), self.tables[m])
                for m in members
            ],
            1,
        )
        return relative, (relative * torch.tensor(weights)[None, :, None]).sum(1)


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden(Path(__file__).parents[2] / "golden" / "deepen")


def _near(got: Tensor, wanted: Tensor, atol: float) -> None:
    torch.testing.assert_close(got, wanted, atol=atol, rtol=0)


def test_all_groups_are_named_here(golden: Golden) -> None:
    assert sorted(golden.manifest["groups"]) == sorted(GROUPS)
    rows = len(golden.given["logits.0"])
    assert sum(name.endswith(".probs") for name in golden.wanted) == len(GROUPS) * 6
    assert len(GROUPS) * rows * len(STEPS) * len(RATES) == 576


@pytest.mark.parametrize("member", range(3))
def test_relative_representation(golden: Golden, member: int) -> None:
    _near(golden.tables[member], golden.wanted[f"rel_matrix.{member}"], 5e-6)


@pytest.mark.parametrize("block", [1, 7, 97, 1000])
def test_blocks_do_not_change_the_numbers(golden: Golden, block: int) -> None:
    seen: list[tuple[int, int]] = []
    table = relative_representation(
        golden.given["emb.0"],
        golden.given["anchor_ids.0"],
        block=block,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    _near(table, golden.wanted["rel_matrix.0"], 5e-6)
    assert seen[-1] == (97, 97)
    assert len(seen) == -(-97 // block)


@pytest.mark.parametrize("group", GROUPS)
def test_aggregate(golden: Golden, group: str) -> None:
    relative, target = golden.aggregate(group)
    _near(relative, golden.wanted[f"{group}.rel"], 1e-6)
    _near(target, golden.wanted[f"{group}.aggregate"], 1e-6)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("group", GROUPS)
def test_search(golden: Golden, group: str, steps: int, rate: float) -> None:
    main = golden.members(group)[0][0]
    target = golden.aggregate(group)[1]
    found = search(golden.given[f"logits.{main}"], golden.tables[main], target, steps, rate)
    name = f"{group}.T{steps}.eta{rate}"
    _near(found, golden.wanted[f"{name}.logits"], 2e-3)
    if f"{name}.probs" in golden.wanted:  # kept for the longer searches only
        _near(torch.softmax(found, -1), golden.wanted[f"{name}.probs"], 1e-5)
    assert torch.equal(found.argmax(-1), golden.wanted[f"{name}.argmax"])
