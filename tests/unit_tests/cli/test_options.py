from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from langchain_ensemble import ConfigError, EnsembleLLM, Member
from langchain_ensemble.cli.options import make_ensemble, read_members, read_weights


def test_members_by_name_and_by_id():
    made = read_members(["a=gpt2", "EleutherAI/pythia-1b", "/folders/x=1/model", "b=/folders/y=2"])
    assert made == [
        Member("gpt2", name="a"),
        Member("EleutherAI/pythia-1b"),
        Member("/folders/x=1/model"),
        Member("/folders/y=2", name="b"),
    ]
    llm = make_ensemble(["a=gpt2", "EleutherAI/pythia-1b"], None)
    assert llm.params.names == ("a", "pythia-1b")


@pytest.mark.parametrize("item", ["=gpt2", "a=", ""])
def test_half_a_member_is_refused(item):
    with pytest.raises(ConfigError, match="write name=id"):
        read_members([item])


def test_weights():
    assert read_weights("uniform") == "uniform"
    assert read_weights("a=0.6, b=0.4") == {"a": 0.6, "b": 0.4}
    assert read_weights("0.25,0.75") == (0.25, 0.75)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a=0.6,0.4", "name all or none"),
        ("a=0.6,a=0.4", "'a' twice"),
        ("a=half,b=0.5", "'half' is no number"),
        ("unifrom", "'unifrom' is no number"),
    ],
)
def test_wrong_weights_are_refused(text, said):
    with pytest.raises(ConfigError, match=said):
        read_weights(text)


def test_a_configuration_is_what_to_config_writes(tmp_path: Path):
    llm = EnsembleLLM(
        members={"a": Member("gpt2", dtype="float32"), "b": "EleutherAI/pythia-1b"},
        fusion={"name": "unite", "union_k": 5},
        weights={"a": 0.25, "b": 0.75},
        main="b",
        max_tokens=9,
        stop=["\n"],
    )
    llm.to_config(tmp_path / "ensemble.yaml")
    made = make_ensemble(None, tmp_path / "ensemble.yaml")
    assert made.params == llm.params
    assert made.request() == llm.request()


def test_options_win_over_the_file(tmp_path: Path):
    path = tmp_path / "ensemble.yaml"
    settings = {
        "members": {"a": "gpt2", "b": "pythia"},
        "fusion": {"name": "unite", "union_k": 5},
        "max_new_tokens": 7,
        "temperature": 0.5,
    }
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    made = make_ensemble(None, path, max_tokens=3, weights="a=1,b=0", stop=["x"], seed=None)
    assert made.request().max_tokens == 3
    assert made.request().temperature == 0.5
    assert made.request().weights == {"a": 1.0, "b": 0.0}
    assert made.request().stop == ("x",)
    assert make_ensemble(None, path, fusion="unite").params.fusion == settings["fusion"]
    assert make_ensemble(None, path, fusion="gac").params.fusion == "gac"


def test_members_come_from_one_place(tmp_path: Path):
    path = tmp_path / "ensemble.yaml"
    path.write_text("members: [gpt2]", encoding="utf-8")
    with pytest.raises(ConfigError, match="not from both"):
        make_ensemble(["gpt2"], path)
    with pytest.raises(ConfigError, match="no members"):
        make_ensemble(None, None)
    with pytest.raises(ConfigError, match="no members"):
        make_ensemble([], None)
