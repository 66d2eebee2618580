"""The evaluation harness runs on an ensemble; on one member it gives its own model's numbers."""

from __future__ import annotations

import json
import runpy
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from langchain_ensemble import ChatEnsemble, ConfigError, EnsembleLLM

pytest.importorskip(
    "lm_eval", reason='the harness is not installed; pip install "langchain-ensemble[eval]"'
)
pytestmark = pytest.mark.filterwarnings("default")  # the harness's and its dependencies' own

STORY = "Once upon a time there was a little fox. She was happy."
PAIRS = [
    ("Once upon a time", " there was a little girl"),
    ("Once upon a time ", "there"),  # the space moves
    ("Lily liked\n\n", "to play"),
    ("", " Once upon"),
    ("", "Once upon a time"),
    ("One day", "."),
    ("The cat", " é日本"),
    ("Once upon a time, there was", " a"),
]
PROMPTS: list[tuple[str, dict[str, Any]]] = [
    ("Once upon a time", {"until": ["."], "max_gen_toks": 24}),
    ("Lily and Tom", {"until": "\n", "max_gen_toks": 12, "do_sample": False, "temperature": 0.0}),
    ("One day, a", {"until": "\n", "max_gen_toks": 12, "do_sample": False, "temperature": 0.0}),
    ("The sun", {"until": [], "max_gen_toks": 1}),
]


@pytest.fixture(autouse=True, scope="module")
def _offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_DATASETS_OFFLINE", "1")
        patch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        yield


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, args, n) for n, args in enumerate(arguments)]


def ensemble_lm(*members: Path | str, **settings: Any) -> Any:
    from langchain_ensemble.lm_eval import EnsembleLM

    named = [str(member) for member in members]
    return EnsembleLM(**{"members": named, "fusion": "average", "dtype": "float32", **settings})


def harness_lm(folder: Path, **settings: Any) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=2, **settings)


@pytest.fixture(scope="module", params=["stories260K", "gpt2"])
def folder(request: pytest.FixtureRequest, pico: Any) -> Path:
    """A SentencePiece-like vocabulary that adds bos, and a byte-level one without."""
    if request.param == "gpt2":
        return Path(pico("gpt2"))
    return Path(request.getfixturevalue("shared")) / "models" / request.param


# --- the same numbers as the harness's own model ----------------------------------------------


def test_loglikelihoods_are_the_harness_own(folder):
    blank = [] if "gpt2" in folder.name else [(" ", "x y")]  # the harness's own fails without a bos
    asked = requests("loglikelihood", *PAIRS, *blank)
    theirs = harness_lm(folder).loglikelihood(asked, True)
    ours = ensemble_lm(folder).loglikelihood(asked, True)
    assert [nats for nats, _ in ours] == pytest.approx([nats for nats, _ in theirs], abs=1e-4)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    assert any(greedy for _, greedy in ours) or folder.name != "stories260K"


def test_rolling_loglikelihoods_are_the_harness_own(folder):
    """Without the harness's second bos, which it scores too where a tokenizer adds one."""
    asked = requests("loglikelihood_rolling", (STORY,), ("Hello",), ("",))
    theirs = harness_lm(folder, add_bos_token=False).loglikelihood_rolling(asked, True)
    assert ensemble_lm(folder).loglikelihood_rolling(asked, True) == pytest.approx(theirs, abs=1e-4)


def test_answers_are_the_harness_own(folder):
    """Up to the space that Hugging Face's SentencePiece decoders take from a text's start."""
    asked = requests("generate_until", *PROMPTS)
    theirs = harness_lm(folder).generate_until(asked, True)
    ours = ensemble_lm(folder, batch_size=2).generate_until(asked, True)
    if "gpt2" in folder.name:  # it cannot end inside a character; the harness writes U+FFFD
        theirs = [text.rstrip("\ufffd") for text in theirs]
        ours = [text.rstrip("\ufffd") for text in ours]
    else:
        ours = [text.removeprefix(" ") for text in ours]
    assert ours == theirs


def test_a_text_longer_than_a_context_is_read_in_windows(pico, caplog):
    lm = ensemble_lm(pico("gpt2"))
    long = STORY * 40
    (nats,) = lm.loglikelihood_rolling(requests("loglikelihood_rolling", (long,)), True)
    score = lm.llm.score(long)
    assert (nats, score.windows > 1) == (score.logprob, True)
    assert "1 of 1 texts did not fit" in caplog.text


# --- fused, drawn, kept -----------------------------------------------------------------


@pytest.fixture(scope="module")
def fused(pico: Any) -> Any:
    from langchain_ensemble.lm_eval import EnsembleLM

    members = {"llama": str(pico("llama")), "gpt2": str(pico("gpt2"))}
    return EnsembleLM(members=members, fusion="unite", main="gpt2", batch_size=3, max_concurrent=4)


def test_two_members_are_fused(fused):
    (got,) = fused.loglikelihood(requests("loglikelihood", ("The fox", " went home")), True)
    score = fused.llm.score(" went home", "The fox")
    assert got == (score.logprob, score.is_greedy)
    alone = fused.llm.solo("gpt2").score(" went home", "The fox")
    assert got[0] != pytest.approx(alone.logprob, abs=1e-3)


def test_the_harness_seed_brings_drawn_answers_back(fused):
    import torch

    drawn = ("The fox", {"until": [], "max_gen_toks": 12, "do_sample": True, "temperature": 1.5})
    runs = []
    for seed in (7, 7, 8):
        torch.manual_seed(seed)
        runs.append(fused.generate_until(requests("generate_until", *[drawn] * 4), True))
    assert runs[0] == runs[1] != runs[2]
    assert len(set(runs[0])) > 1


def test_the_harness_cache_hears_every_result(fused):
    class Hook:
        heard: list[tuple[str, Any, Any]] = []  # noqa: RUF012

        def add_partial(self, name: str, arguments: Any, result: Any) -> None:
            self.heard.append((name, arguments, result))

    hook, before = Hook(), fused.cache_hook
    fused.set_cache_hook(hook)
    try:
        (pair,) = fused.loglikelihood(requests("loglikelihood", ("a ", "b")), True)
        (text,) = fused.generate_until(requests("generate_until", PROMPTS[3]), True)
        (nats,) = fused.loglikelihood_rolling(requests("loglikelihood_rolling", ("a",)), True)
    finally:
        fused.set_cache_hook(before)
    assert hook.heard == [
        ("loglikelihood", ("a ", "b"), pair),
        ("generate_until", PROMPTS[3], text),
        ("loglikelihood_rolling", ("a",), nats),
    ]


# --- what it refuses ---------------------------------------------------------------------------


def test_pictures_are_refused(fused):
    with pytest.raises(ConfigError, match="text only"):
        fused.generate_until(requests("generate_until", ("x", {}, {"visual": []})), True)
    with pytest.raises(ConfigError, match="text only"):
        fused.loglikelihood(requests("loglikelihood", ("x", " y", {"visual": []})), True)


def test_a_model_of_the_harness_own_arguments_is_refused():
    from langchain_ensemble.lm_eval import EnsembleLM

    with pytest.raises(ConfigError, match="pretrained"):
        EnsembleLM(demo=True, pretrained="gpt2")


def test_an_ensemble_that_exists_is_used_as_it_is():
    from langchain_ensemble.lm_eval import EnsembleLM

    with EnsembleLLM.demo() as llm:
        assert EnsembleLM(llm, batch_size="auto").batch_size == llm.max_concurrent
        assert EnsembleLM(llm, batch_size="auto", max_batch_size=8).batch_size == 8
        assert EnsembleLM(llm).llm is llm
        with pytest.raises(ConfigError, match="settings of its own"):
            EnsembleLM(llm, fusion="unite")


# --- conversations ------------------------------------------------------------------------------


def test_conversations_reach_each_member_in_its_own_template():
    from langchain_ensemble.lm_eval import EnsembleLM

    with ChatEnsemble.demo() as chat:
        lm = EnsembleLM(chat, batch_size=2)
        talk = [{"role": "user", "content": "What is the capital of France?"}]
        context = lm.apply_chat_template(talk)
        asked = requests("generate_until", (context, {"max_gen_toks": 8}))
        assert lm.generate_until(asked, True) == [chat.invoke(talk, max_tokens=8).text]
        (pair,) = lm.loglikelihood(requests("loglikelihood", (context, "Paris")), True)
        score = chat.score(talk, "Paris")
        assert pair == (score.logprob, score.is_greedy)
        with pytest.raises(ConfigError, match="gen_prefix"):
            lm.apply_chat_template(talk, add_generation_prompt=False)
        with pytest.raises(ConfigError, match="names a template"):
            lm.chat_template("chatml")


# --- through the harness itself ----------------------------------------------------------------


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a task of each kind over one small file."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [
        {"question": "Once upon a", "choices": ["time", "cat"], "gold": 0},
        {"question": "Lily was very", "choices": ["table", "happy"], "gold": 1},
        {"question": "One day, Tom went to the", "choices": ["park", "said"], "gold": 0},
    ]
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "metadata": {"version": 1.0},
    }
    kinds: dict[str, dict[str, Any]] = {
        "ens_choice": {
            "output_type": "multiple_choice",
            "doc_to_choice": "choices",
            "doc_to_target": "gold",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        },
        "ens_text": {
            "output_type": "loglikelihood_rolling",
            "doc_to_target": "{{question}} {{choices[gold]}}.",
            "metric_list": [{"metric": "bits_per_byte"}],
        },
        "ens_answer": {
            "output_type": "generate_until",
            "doc_to_target": "{{choices[gold]}}",
            "generation_kwargs": {"until": ["."], "max_gen_toks": 4},
            "metric_list": [{"metric": "exact_match"}],
        },
    }
    for name, kind in kinds.items():
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"task": name, **common, **kind}), encoding="utf-8")
    return folder


def run_harness(model: Any, tasks: Path, **settings: Any) -> dict[str, Any]:
    import lm_eval
    from lm_eval.tasks import TaskManager

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = lm_eval.simple_evaluate(
            model,
            tasks=["ens_choice", "ens_text", "ens_answer"],
            task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
            bootstrap_iters=0,
            **settings,
        )
    assert result is not None
    return dict(result)


def test_simple_evaluate_gives_the_numbers_of_the_harness_own_model(tasks, shared):
    folder = shared / "models" / "stories260K"
    theirs = run_harness(harness_lm(folder, add_bos_token=True), tasks)
    ours = run_harness(
        "langchain-ensemble",
        tasks,
        model_args={"members": [str(folder)], "fusion": "average"},
        batch_size=2,
    )
    for task in ("ens_choice", "ens_answer"):
        for mine, other in zip(ours["samples"][task], theirs["samples"][task], strict=True):
            assert mine["doc_id"] == other["doc_id"]
            if task == "ens_choice":
                both = (mine["filtered_resps"], other["filtered_resps"])
                got, want = ([float(nats) for nats, _ in resps] for resps in both)
                assert got == pytest.approx(want, abs=1e-4)
            else:
                assert mine["filtered_resps"][0].strip() == other["filtered_resps"][0].strip()
    assert ours["results"]["ens_choice"] == theirs["results"]["ens_choice"]
    assert ours["config"]["model_name"] == "average(stories260K)"


def test_the_command_line(tasks, tmp_path, pico, monkeypatch, capsys):
    """The harness's own, as a user would write it; two members with different vocabularies."""
    config = tmp_path / "ensemble.yaml"
    EnsembleLLM(members=[str(pico("llama")), str(pico("gpt2"))], fusion="unite").to_config(config)
    command = [
        *("lm-eval", "run", "--model", "langchain-ensemble"),
        *("--model_args", f"config={config},open_boundaries=vote"),
        *("--tasks", "ens_choice,ens_answer", "--include_path", str(tasks)),
        *("--batch_size", "auto", "--output_path", str(tmp_path / "out"), "--log_samples"),
    ]
    monkeypatch.setattr(sys, "argv", command)
    runpy.run_module("langchain_ensemble.lm_eval", run_name="__main__")
    assert "ens_choice" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*command, "--gen_kwargs", "beams=3"])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_module("langchain_ensemble.lm_eval", run_name="__main__")
    assert "error: generation settings ['beams'] have no meaning" in capsys.readouterr().err
    (written,) = (tmp_path / "out").rglob("results_*.json")
    result = json.loads(written.read_text(encoding="utf-8"))
    assert result["config"]["model_settings"]["open_boundaries"] == "vote"
    assert set(result["results"]) == {"ens_choice", "ens_answer"}
