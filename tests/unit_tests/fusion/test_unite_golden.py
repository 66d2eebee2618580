"""The authors' numbers, met by a reference mode; and what our UniTE does in the same rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from langchain_ensemble.fusion import Unite
from langchain_ensemble.fusion.base import FusionContext, member_distribution
from langchain_ensemble.testing import toy_alignment
from tests.golden import unite_reference as reference

NAMES = (
    "bl_bl",
    "bl_ms",
    "ms_bl",
    "ms_ms",
    "uni_bl",
    "bl_ms_k3",
    "bl_ms_k1",
    "three",
    "three_ms_first",
    "flat",
    "negative",
    "mmlu",
    "deepseek_bl",
    "newline_first",
    "newline_second",
    "eos_bl_ms",
    "eos_ms_bl",
    "id0",
    "ties",
)


GOLDEN = Path(__file__).parents[2] / "golden" / "unite"


@pytest.fixture(scope="module")
def cases() -> dict[str, Any]:
    listed = json.loads((GOLDEN / "cases.json").read_text())
    return {case["name"]: case for case in listed}


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return load_file(GOLDEN / "cases.safetensors")


@pytest.fixture(scope="module")
def tokenizers(shared: Path) -> dict[str, Tokenizer]:
    folder = shared / "golden" / "unite" / "tokenizers"
    return {path.stem: Tokenizer.from_file(str(path)) for path in sorted(folder.glob("*.json"))}


def test_all_cases_are_named_here(cases: dict[str, Any]) -> None:
    assert sorted(cases) == sorted(NAMES)
    assert sum(len(case["rows"]) for case in cases.values()) == 66


@pytest.mark.parametrize("name", NAMES)
def test_reference_mode_equals_the_authors_code(
    name: str,
    cases: dict[str, Any],
    tensors: dict[str, Tensor],
    tokenizers: dict[str, Tokenizer],
) -> None:
    case = cases[name]
    for row, expected in enumerate(case["rows"]):
        updated = []
        for m, (kind, alias) in enumerate(
            zip(case["tokenizers"], case["unite_names"], strict=True)
        ):
            logits = tensors[f"{name}.logits{m + 1}"][row]
            ids = tensors[f"{name}.topk_ids{m + 1}"][row].tolist()
            if name != "ties":  # the order of equal logits in a top-k is not specified
                assert ids == logits.topk(case["k"]).indices.tolist()
            top = reference.top_keys(tokenizers[kind], ids, logits)
            updated.append(
                reference.update(
                    expected["union"],
                    top,
                    tokenizers[kind],
                    logits,
                    alias,
                    mmlu=case["module"] == "unite_mmlu",
                )
            )
        keys, fused = reference.fuse(updated)
        assert keys == expected["keys"]
        assert keys[int(fused.argmax())] == expected["chosen_key"]
        size = len(keys)
        got = tensors[f"{name}.fused"][row][:size]
        torch.testing.assert_close(fused, got, atol=1e-6, rtol=0)
        for m, one in enumerate(updated):
            place = [one.keys.index(key) for key in keys]
            assert [one.rules[p] for p in place] == expected["rules"][m]
            assert [one.ids[p] for p in place] == tensors[f"{name}.ids{m + 1}"][row][:size].tolist()
            torch.testing.assert_close(
                one.probs()[place], tensors[f"{name}.probs{m + 1}"][row][:size], atol=1e-6, rtol=0
            )


def _bytes(tokenizer: Tokenizer) -> tuple[list[bytes | None], list[int]]:
    """Bytes of the golden tokenizers' ids (two simple families), and their end ids."""
    letters = {chr(b): b for b in [*range(33, 127), *range(161, 173), *range(174, 256)]}
    letters.update(
        {chr(256 + n): b for n, b in enumerate(b for b in range(256) if chr(b) not in letters)}
    )
    control = ("<unk>", "<s>", "</s>", "<|endoftext|>")
    names = [tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size())]
    ends = [i for i, name in enumerate(names) if name in ("</s>", "<|endoftext|>")]
    byte_level = "Ċ" in names
    table: list[bytes | None] = []
    for name in names:
        if name in control:
            table.append(None)
        elif byte_level:
            table.append(bytes(letters[c] for c in name))
        elif len(name) == 6 and name.startswith("<0x"):
            table.append(bytes([int(name[3:5], 16)]))
        else:
            table.append(name.replace("▁", " ").encode())
    return table, ends


def _ours(
    case: dict[str, Any], tensors: dict[str, Tensor], tokenizers: dict[str, Tokenizer]
) -> list[bytes | str]:
    read = [_bytes(tokenizers[kind]) for kind in case["tokenizers"]]
    alignment = toy_alignment([table for table, _ in read], [ends for _, ends in read])
    distributions = [
        member_distribution(tensors[f"{case['name']}.logits{m + 1}"], keys)
        for m, keys in enumerate(alignment.members)
    ]
    context = FusionContext(alignment, lambda i: torch.zeros(1), str)
    rows = len(distributions[0].end)
    weights = torch.full((rows, len(read)), 1 / len(read))
    fused = Unite(union_k=case["k"]).prepare(context)(distributions, weights)
    total = fused.logprobs.exp().sum(-1) + fused.end.exp()
    torch.testing.assert_close(total, torch.ones(rows), atol=1e-5, rtol=0)
    names: dict[int, bytes] = {}
    for (table, _), keys in zip(read, alignment.members, strict=True):
        for key, place in zip(table, keys.to_union.tolist(), strict=True):
            if key is not None:
                names[place] = key
    chosen: list[bytes | str] = []
    assert fused.keys is not None
    for row in range(rows):
        best = int(fused.logprobs[row].argmax())
        key = int(fused.keys[row, best])
        ended = bool(fused.end[row] > fused.logprobs[row, best])
        chosen.append("END" if ended else names[key])
    return chosen


def test_ours_appends_the_newline_where_theirs_appends_a_slash(
    cases: dict[str, Any], tensors: dict[str, Tensor], tokenizers: dict[str, Tokenizer]
) -> None:
    case = cases["newline_second"]
    assert case["rows"][1]["chosen_model1_token"] == "/"
    assert _ours(case, tensors, tokenizers)[1] == b"\n"


def test_ours_ends_where_theirs_appends_a_bracket(
    cases: dict[str, Any], tensors: dict[str, Tensor], tokenizers: dict[str, Tokenizer]
) -> None:
    case = cases["eos_bl_ms"]
    assert [row["chosen_model1_token"] for row in case["rows"]] == ["<", "<"]
    assert _ours(case, tensors, tokenizers)[1] == "END"


def test_ours_agrees_where_no_mistake_is_involved(
    cases: dict[str, Any], tensors: dict[str, Tensor], tokenizers: dict[str, Tokenizer]
) -> None:
    """Rows in which every model has every key of the union, and it is ASCII text."""
    compared = 0
    for name in NAMES:
        chosen = _ours(cases[name], tensors, tokenizers)
        for got, expected in zip(chosen, cases[name]["rows"], strict=True):
            known = all(max(rules) <= reference.HIT for rules in expected["rules"])
            text = all(key.replace("Ġ", "").isascii() for key in expected["keys"])
            if known and text and not expected["order_sensitive"]:
                wanted = expected["chosen_key"].replace("Ġ", " ").replace("/n", "\n").encode()
                assert got == wanted, name
                compared += 1
    assert compared >= 5, compared
