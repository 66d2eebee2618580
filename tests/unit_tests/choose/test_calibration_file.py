"""The calibration file: round trip, damage, and who it refuses to serve."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from langchain_ensemble.choose.calibration_file import (
    Calibration,
    early_facts,
    read_calibration,
    write_calibration,
)
from langchain_ensemble.errors import ConfigError

OWNER = {
    **early_facts(["a", "b"], "a", "average", "discount"),
    "members": {
        "a": {"weights": "w1", "tokenizer": "t1"},
        "b": {"weights": "w2", "tokenizer": "t2"},
    },
    "fusion settings": {"mean": "geometric"},
    "reads": "texts",
}
MAP = {"features": ["mean_logprob"], "coefficients": [1.5], "intercept": -0.25}
MADE = Calibration(OWNER, {"a": 0.25, "b": 0.75}, MAP, {"verdict": "é"})


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "made.json"
    write_calibration(path, MADE)
    found = read_calibration(path)
    assert replace(found, path="", digest="") == MADE
    assert found.path == str(path)
    found.check(OWNER)
    found.check(early_facts(["b", "a"], "a", "average", "discount"))  # order is no difference
    assert [p.name for p in tmp_path.iterdir()] == ["made.json"]


def test_a_file_that_changed_is_read_again(tmp_path):
    path = tmp_path / "made.json"
    write_calibration(path, MADE)
    first = read_calibration(path)
    write_calibration(path, replace(MADE, weights={"a": 0.5, "b": 0.5}))
    assert read_calibration(path).weights == {"a": 0.5, "b": 0.5}
    assert read_calibration(path).digest != first.digest


def change(key, value, member=None):
    owner = json.loads(json.dumps(OWNER))
    (owner["members"][member] if member else owner)[key] = value
    return owner


@pytest.mark.parametrize(
    ("owner", "told"),
    [
        (early_facts(["a", "c"], "a", "average", "discount"), "list of members is ['a', 'c'] here"),
        (change("main", "b"), "main is 'b' here, 'a' in the file"),
        (change("fusion", "gac"), "fusion is 'gac' here, 'average' in the file"),
        (change("open_boundaries", "vote"), "open_boundaries is 'vote' here, 'discount'"),
        (change("fusion settings", {"mean": "arithmetic"}), "fusion settings is {'mean'"),
        (change("weights", "new", "b"), "weights of member 'b' is 'new' here, 'w2' in the file"),
        (change("tokenizer", "new", "a"), "tokenizer of member 'a' is 'new' here, 't1'"),
        (change("system", "Be brief.", "a"), "system of member 'a' is 'Be brief.' here, None"),
    ],
)
def test_others_are_refused_with_the_first_difference(tmp_path, owner, told):
    write_calibration(tmp_path / "made.json", MADE)
    with pytest.raises(ConfigError) as error:
        read_calibration(tmp_path / "made.json").check(owner)
    assert told in str(error.value)
    assert "calibrate these members again" in str(error.value)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": 2}, "has format 2"),
        ({"weights": {"a": 0.5}}, "needs one number of at least 0 for each"),
        ({"weights": {"a": 0.5, "b": 0.6}}, "needs one number"),
        ({"weights": {"a": 1.5, "b": -0.5}}, "needs one number"),
        ({"weights": {"a": "x", "b": 1}}, "needs one number"),
        ({"belongs_to": None}, "needs one number"),
        ({"confidence": {"features": ["f"], "coefficients": [], "intercept": 0}}, "as many"),
        ({"confidence": {"features": ["f"]}}, "as many"),
        ({"confidence": {"features": "f", "coefficients": [1], "intercept": 0}}, "as many"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(tmp_path, change, told):
    path = tmp_path / "made.json"
    write_calibration(path, MADE)
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | change), "utf-8")
    with pytest.raises(ConfigError, match=told):
        read_calibration(path)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_a_damaged_file_is_refused(tmp_path, data):
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(ConfigError, match="calibrate again"):
        read_calibration(tmp_path / "x.json")


def test_a_missing_file_says_how_to_make_one(tmp_path):
    with pytest.raises(ConfigError, match=r"llm\.calibrate\(dev_set, file=\.\.\.\) writes one"):
        read_calibration(tmp_path / "none.json")


def test_a_place_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(ConfigError, match="cannot write the calibration"):
        write_calibration(tmp_path / "no" / "x.json", MADE)
    folder = tmp_path / "taken"
    folder.mkdir()
    with pytest.raises(ConfigError, match="cannot write"):
        write_calibration(folder, MADE)
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]
