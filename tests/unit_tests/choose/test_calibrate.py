"""Weights learned on a dev set: the objective is the score, the file is obeyed, others refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from langchain_ensemble import ChatEnsemble, EnsembleLLM
from langchain_ensemble.choose.calibrate import halves
from langchain_ensemble.choose.calibration_report import CalibrationReport, Fit
from langchain_ensemble.choose.learn import Texts, kind_of
from langchain_ensemble.choose.listening import listen, read_samples
from langchain_ensemble.choose.stats import Interval
from langchain_ensemble.demo import members
from langchain_ensemble.errors import AbstainedError, ConfigError, EnsembleWarning

TEXTS = [
    "It is Paris.",
    "A little fox.",
    "Rome, I think.",
    "Hello there!",
    "The café.",
    "She said no.",
    "Madrid",
    "The cat sat.",
]
ARITHMETIC = {"name": "average", "mean": "arithmetic"}
HARMONIC = {"name": "bytes", "mean": "harmonic"}
GEOMETRIC = {"name": "bytes", "mean": "geometric"}
FUSIONS = ["average", ARITHMETIC, "gac", "unite", "deepen", "bytes", GEOMETRIC, HARMONIC]


@pytest.fixture(scope="module")
def llms():
    """An ensemble a fusion; all share the members' weights."""
    made = {str(fusion): EnsembleLLM.demo(fusion=fusion).load() for fusion in FUSIONS}
    yield made
    for llm in made.values():
        llm.unload()


def texts_of(llm, count=2, **kept):
    samples = read_samples(TEXTS[:count], None, 1)
    engine = llm.engine
    return Texts(
        lambda number: listen(engine, samples[number], kind_of(engine.fusion)),
        [sample.size for sample in samples],
        kind_of(engine.fusion),
        **kept,
    )


@pytest.mark.parametrize("fusion", FUSIONS, ids=str)
def test_the_objective_is_the_score(llms, fusion):
    llm = llms[str(fusion)]
    made = texts_of(llm)
    for weights in [(0.5, 0.5), (0.2, 0.8), (0.0, 1.0)]:
        nats = made.nats(weights, [0, 1])
        for text, found in zip(TEXTS, nats, strict=False):
            assert found == pytest.approx(-llm.score(text, weights=weights).logprob, rel=2e-5)
    value, slopes = made.objective([0, 1])([0.3, 0.7])
    unit = math.log(2) * sum(made.sizes)
    assert value == pytest.approx(sum(made.nats((0.3, 0.7), [0, 1])) / unit)
    h = 0.02
    for corner, slope in enumerate(slopes):
        ahead, behind = (
            [w + s * (float(i == corner) - w) for i, w in enumerate((0.3, 0.7))] for s in (h, -h)
        )
        step = sum(made.nats(ahead, [0, 1])) - sum(made.nats(behind, [0, 1]))
        assert slope == pytest.approx(step / unit / (2 * h), rel=0.1, abs=5e-3)


def test_three_members_where_some_abstain(llms):
    named = members()
    llm = EnsembleLLM(
        members={**named, "third": named["stories"]}, fusion="average", main="stories"
    )
    samples = read_samples(["The café."], None, 1)
    made = Texts(
        lambda number: listen(llm.engine, samples[number], "log-linear"), [10], "log-linear"
    )
    given = {"facts": 0.2, "stories": 0.5, "third": 0.3}
    nats = made.nats([given[member.name] for member in llm.params.ordered], [0])
    assert nats[0] == pytest.approx(-llm.score("The café.", weights=given).logprob, rel=2e-5)


def test_texts_that_do_not_fit_are_read_again_and_say_the_same(llms):
    llm = llms["average"]
    kept, again = texts_of(llm), texts_of(llm, keep_bytes=0)
    assert (kept.again, again.again) == (0, 2)
    assert again.nats((0.4, 0.6), [0, 1]) == kept.nats((0.4, 0.6), [0, 1])
    assert again.objective([0, 1])([0.4, 0.6]) == kept.objective([0, 1])([0.4, 0.6])


@pytest.mark.parametrize("fusion", ["average", "gac"])
def test_learned_weights_are_at_least_as_good_as_any_on_a_grid(llms, fusion, tmp_path):
    llm = llms[fusion]
    report = llm.calibrate(TEXTS, file=tmp_path / "made.json")
    taught = [TEXTS[n] for n in halves(len(TEXTS))[0]]
    size = math.log(2) * sum(len(text.encode()) for text in taught)

    def bits(weights):
        return -sum(llm.score(text, weights=weights).logprob for text in taught) / size

    learned = bits(report.weights)
    grid = [bits({"facts": w / 10, "stories": 1 - w / 10}) for w in (1, 3, 5, 7, 9)]
    assert report.fit.converged
    assert learned <= min(grid) + 1e-5
    assert learned >= min(grid) - 0.02
    assert report.texts == (4, 4)
    held = [TEXTS[n] for n in halves(len(TEXTS))[1]]
    size = math.log(2) * sum(len(text.encode()) for text in held)
    told = -sum(llm.score(text, weights="uniform").logprob for text in held) / size
    assert report.uniform == pytest.approx(told, rel=1e-5)
    assert len(report.curve) == 41


def test_the_file_is_obeyed_unless_weights_are_given(llms, tmp_path):
    path = tmp_path / "made.json"
    report = llms["average"].calibrate(TEXTS, file=path)
    llm = EnsembleLLM.demo(fusion="average", calibration=str(path), max_tokens=6)
    text = TEXTS[1]
    learned = llms["average"].score(text, weights=report.weights)
    uniform = llms["average"].score(text, weights="uniform")
    assert learned.logprob != uniform.logprob
    assert llm.score(text) == learned == llm.score(text, weights="calibrated")
    assert llm.score(text, weights="uniform") == uniform
    explicit = EnsembleLLM.demo(fusion="average", calibration=str(path), weights="uniform")
    assert explicit.score(text) == uniform
    assert llm.invoke(text) == llm.invoke(text, weights=report.weights)
    again = EnsembleLLM.from_config(llm.to_config())
    assert again.score(text) == learned
    assert EnsembleLLM.from_config(explicit.to_config()).score(text) == uniform
    assert llm.solo("stories").calibration is None
    before = llm.identity["calibration"]
    llms["average"].calibrate(TEXTS[::-1], file=path)
    assert llm.identity["calibration"] != before
    chat = llm.as_chat()
    with pytest.raises(ConfigError, match=r"made on raw texts .* about conversations"):
        chat.invoke("Hi")
    with pytest.raises(ConfigError, match="fusion is 'unite' here, 'average' in the file"):
        EnsembleLLM.demo(fusion="unite", calibration=str(path))
    named = members()
    swapped = {"facts": named["stories"], "stories": named["facts"]}
    other = EnsembleLLM(members=swapped, fusion="average", calibration=str(path))
    with pytest.raises(ConfigError, match="weights of member 'facts' is"):
        other.load()
    told = llm.calibrate(TEXTS)  # what was learned before has no part in it
    assert told.weights == llms["average"].calibrate(TEXTS).weights


def test_conversations(tmp_path):
    pairs = [
        (f"What is the capital of {c}?", f"{a}.")
        for c, a in zip("abcdefgh", "ABCDEFGH", strict=True)
    ]
    with ChatEnsemble.demo(fusion="average") as chat:
        report = chat.calibrate(pairs, file=tmp_path / "made.json")
        weights = report.weights
        assert chat.score(*pairs[0], weights=weights).logprob == pytest.approx(
            ChatEnsemble.demo(fusion="average", calibration=str(tmp_path / "made.json"))
            .score(*pairs[0])
            .logprob
        )
    told = json.loads((tmp_path / "made.json").read_text("utf-8"))["belongs_to"]
    assert told["reads"] == "conversations"
    assert told["members"]["facts"]["chat_template"]


@pytest.mark.slow
def test_deepen_warns_that_it_has_no_certificate(llms):
    with pytest.warns(EnsembleWarning, match="not convex"):
        report = llms["deepen"].calibrate(TEXTS)
    assert report.fit.gap is None


def test_uniform_only_measures(llms, tmp_path):
    report = llms["average"].calibrate(TEXTS, method="uniform", file=tmp_path / "made.json")
    assert report.weights == {"facts": 0.5, "stories": 0.5}
    assert report.fit is None
    assert report.fitted == report.uniform


CAPITALS = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Germany": "Berlin"}


def asked(country, right):
    return (f"Question: What is the capital of {country}?\nAnswer:", f" {right}.")


def test_weights_by_scores(llms, tmp_path):
    llm = llms["average"].model_copy(update={"max_tokens": 9, "stop": ("\n",)})
    pairs = [asked(*pair) for pair in CAPITALS.items() for _ in range(2)]
    with pytest.warns(EnsembleWarning, match="no confidence map: 4 answers .* right and 0 wrong"):
        report = llm.calibrate(pairs, method="adapt", metric="contains", file=tmp_path / "a.json")
    assert report.right["facts"] == 1.0 > report.right["stories"]
    total = sum(report.right.values())
    assert report.weights == {name: share / total for name, share in report.right.items()}
    assert report.fit is None
    wrong = [(prompt, " Nowhere.") for prompt, _ in pairs]
    with pytest.raises(ConfigError, match="no member has any of 4 answers right"):
        llm.calibrate(wrong, method="adapt")
    with pytest.raises(ConfigError, match="item 0 of dev_set has no prompt"):
        llm.calibrate(TEXTS, metric="contains")
    with pytest.raises(ConfigError, match="unknown metric 'exact'"):
        llm.calibrate(pairs, metric="exact")
    assert llm.engine.loaded


@pytest.mark.slow
def test_how_sure_is_right(llms, tmp_path):
    llm = llms["average"].model_copy(update={"max_tokens": 9, "stop": ("\n",)})
    pairs = [asked(*pair) for pair in CAPITALS.items()] * 10
    pairs += [(f"A story about {country} and", " Nowhere") for country in CAPITALS] * 10
    mixed = [pairs[(7 * n) % len(pairs)] for n in range(len(pairs))]
    report = llm.calibrate(mixed, method="uniform", metric="contains", file=tmp_path / "a.json")
    assert report.confidence_auroc > 0.6
    told = json.loads((tmp_path / "a.json").read_text("utf-8"))["confidence"]
    assert told == report.confidence
    same = EnsembleLLM.demo(fusion="average", calibration=str(tmp_path / "a.json"), max_tokens=9)
    assert same.invoke(pairs[0][0], abstain_below=0.0)
    with pytest.raises(AbstainedError):
        same.invoke(pairs[-1][0], abstain_below=0.999)


@pytest.mark.parametrize(
    ("dev_set", "told"),
    [
        (TEXTS[:3], "dev_set has 3 texts; at least 8 are needed"),
        ("text", "dev_set is a str"),
        ([*TEXTS, 7], "item 8 of dev_set is 7"),
        ([*TEXTS, ("p", "")], "item 8 of dev_set has an empty text"),
        ([*TEXTS, (1, "x")], "item 8 of dev_set"),
    ],
)
def test_what_is_no_dev_set(llms, dev_set, told):
    with pytest.raises(ConfigError, match=told):
        llms["average"].calibrate(dev_set)


def test_what_cannot_be_calibrated(llms):
    with pytest.raises(ConfigError, match="this ensemble has one"):
        llms["average"].solo("facts").calibrate(TEXTS)
    with pytest.raises(ConfigError, match="method of calibrate"):
        llms["average"].calibrate(TEXTS, method="grid")
    with pytest.raises(ConfigError, match="weights='calibrated' without a calibration"):
        EnsembleLLM.demo(weights="calibrated")
    gated = llms["average"].model_copy(update={"gate": "safe"})
    with pytest.warns(EnsembleWarning, match="gate='safe' is left open"):
        gated.calibrate(TEXTS, method="uniform")
    with pytest.raises(ConfigError, match="there is no such folder"):
        EnsembleLLM(members={"a": "/no", "b": "/where"}).calibrate(TEXTS, file="/no/where/w.json")
    chat = ChatEnsemble.demo(fusion="average")
    with pytest.raises(ConfigError, match="must be a pair"):
        chat.calibrate(TEXTS)
    for before in (5, [("wizard", "Hi")], []):
        with pytest.raises(ConfigError, match="item 1 of dev_set: "):
            chat.calibrate([("Hi", "Hello."), *[(before, "Hello.")] * 7])
    long = [*TEXTS, ("fox " * 4000, "x")]
    with pytest.raises(ConfigError, match=f"item {len(TEXTS)} of dev_set: prompt of .* tokens"):
        llms["average"].calibrate(long, method="uniform")


MADE = CalibrationReport(
    method="learned",
    weights={"a": 0.75, "<b>": 0.25},
    fusion="average",
    main="a",
    members={"a": 1.0, "<b>": 1.2},
    uniform=0.99,
    fitted=0.95,
    best="a",
    against_best=Interval(0.05, 0.03, 0.07),
    against_uniform=Interval(0.04, 0.01, 0.06),
    uniform_against_best=Interval(0.01, 0.002, 0.02),
    texts=(4, 4),
    num_bytes=(100, 100),
    fit=Fit(20, 1e-7, True, 0),
    curve=((0.0, 1.2), (0.5, 0.99), (1.0, 1.0)),
)


def test_verdicts():
    assert "save 5.00 % [3.00, 7.00] against 'a' alone" in MADE.verdict
    even = replace(MADE, against_uniform=Interval(0.0, -0.01, 0.01))
    assert even.verdict.startswith("Uniform weights are as good")
    alone = replace(MADE, against_best=Interval(0.0, -0.01, 0.01))
    assert alone.verdict.startswith("Use 'a' alone (1.000 bits per byte)")
    assert "no better than" in alone.verdict
    assert "worse than" in replace(MADE, against_best=Interval(-0.1, -0.2, -0.01)).verdict
    assert replace(MADE, method="uniform").verdict.startswith("Uniform weights save 5.00 %")


def test_a_report_can_be_kept_and_shown(tmp_path):
    assert json.loads(MADE.to_json())["verdict"] == MADE.verdict
    assert "&lt;b&gt; alone" in MADE._repr_html_()
    assert str(MADE).endswith(MADE.verdict)
    pytest.importorskip("matplotlib")
    assert MADE.plot(tmp_path / "curve.svg").startswith("<svg")
    assert (tmp_path / "curve.svg").read_text("utf-8") == MADE.plot()
    with pytest.raises(ConfigError, match="needs two members"):
        replace(MADE, curve=()).plot()


def test_halves_are_no_pattern_of_the_order():
    """A dev set put together by turns teaches both of its kinds."""
    for count in range(8, 400):
        taught, tested = halves(count)
        assert (taught, tested) == halves(count)
        assert sorted([*taught, *tested]) == list(range(count))
        assert len(taught) - len(tested) in (0, 1)
        assert 0.3 < sum(n % 2 for n in taught) / len(taught) < 0.7
