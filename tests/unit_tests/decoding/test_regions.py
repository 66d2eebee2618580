"""A choice that is replayed gives the keys that are chosen operation by operation."""

from __future__ import annotations

import gc
import shutil
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from langchain_ensemble.decoding.records import Answer
from langchain_ensemble.decoding.region import ChoiceRegion, FusionRegion
from langchain_ensemble.decoding.regions import Regions
from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.errors import EnsembleWarning, MemberError
from langchain_ensemble.members.capture import CallAgain
from langchain_ensemble.members.compiled import Compiled
from langchain_ensemble.params import EnsembleParams, RequestParams
from tests.unit_tests.decoding.automata import admit

FUSIONS: list[Any] = ["unite", "gac", "average", {"name": "average", "mean": "arithmetic"}]
PROMPTS = ["The fox ran to", "Zoë said:", "def add(a, b):"]
SYNCS = ("_local_scalar_dense", "item", "nonzero", "unique", "masked_select", "is_nonzero", "equal")


def made(pico: Callable[..., Path], fusion: Any, *kinds: str) -> Ensemble:
    members = {f"m{i}": str(pico(kind, seed=i)) for i, kind in enumerate(kinds)}
    return Ensemble(EnsembleParams(members=members, fusion=fusion, prefix_cache_gb=0)).load()


@pytest.fixture(scope="module", params=FUSIONS, ids=str)
def owner(request: pytest.FixtureRequest, pico: Callable[..., Path]) -> Iterator[Ensemble]:
    with made(pico, request.param, "qwen2", "llama", "gpt2") as ensemble:
        yield ensemble


def replaying(owner: Ensemble, capture: Any = None) -> Regions:
    """Replay the choices of an ensemble from now on."""
    regions = Regions(CallAgain() if capture is None else capture)
    owner._built = replace(owner._ready(), regions=regions)
    return regions


def plainly(owner: Ensemble) -> None:
    owner._built = replace(owner._ready(), regions=None)


def answers(owner: Ensemble, prompts: Sequence[str], **settings: Any) -> list[list[Answer]]:
    with admit(owner, prompts, RequestParams(max_tokens=24, **settings)) as decoding:
        return decoding.answers()


def together(owner: Ensemble, prompts: Sequence[str]) -> list[tuple[str, list[Any]]]:
    """Text and ids of answers that are decoded in rounds."""
    runs = [admit(owner, [prompt], RequestParams(max_tokens=24)) for prompt in prompts]
    got: list[tuple[str, list[Any]]] = [("", []) for _ in runs]
    while not all(run.done for run in runs):
        for number, run in enumerate(runs):
            for piece in () if run.done else run.step():
                text, ids = got[number]
                got[number] = (text + piece.text, [*ids, *(one.id for one in piece.tokens)])
    return got


def apart(owner: Ensemble, prompts: Sequence[str]) -> list[tuple[str, list[Any]]]:
    found = [answers(owner, [prompt])[0][0] for prompt in prompts]
    return [(one.text, [token.id for token in one.tokens]) for one in found]


def same(got: list[list[Answer]], want: list[list[Answer]]) -> None:
    for ours, theirs in zip(got, want, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert (a.text, a.finish) == (b.text, b.finish)
            for one, other in zip(a.tokens, b.tokens, strict=True):
                assert (one.id, one.bytes, one.fused) == (other.id, other.bytes, other.fused)
                assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
                assert one.members == pytest.approx(other.members, abs=1e-4)


@pytest.mark.parametrize("speculation", ["off", "on"])
@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS], ids=["one", "three"])
def test_the_same_keys(owner: Ensemble, prompts: list[str], speculation: str) -> None:
    plainly(owner)
    want = answers(owner, prompts, speculation=speculation, stop=["zz"])
    regions = replaying(owner)
    same(answers(owner, prompts, speculation=speculation, stop=["zz"]), want)
    assert regions.off is None
    assert regions.replayed >= 20
    rows = {region.inputs.shape[0] for region, _ in regions._known.values()}
    assert rows <= {1, 2, 4}  # rounded up
    captured = regions.captured
    answers(owner, prompts, speculation=speculation, stop=["zz"])
    assert regions.captured == captured


def test_weights_of_a_request_and_members_left_out(owner: Ensemble) -> None:
    for weights in ([0.5, 0.3, 0.2], [0.7, 0.0, 0.3], "uniform"):
        plainly(owner)
        want = answers(owner, PROMPTS[:2], weights=weights)
        regions = replaying(owner)
        same(answers(owner, PROMPTS[:2], weights=weights), want)
        assert regions.replayed


def test_requests_that_run_together(owner: Ensemble) -> None:
    plainly(owner)
    want = apart(owner, PROMPTS)
    regions = replaying(owner)
    assert together(owner, PROMPTS) == want
    assert 4 in {region.inputs.shape[0] for region, _ in regions._known.values()}


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.8, "seed": 3, "n": 2},
        {"temperature": 1.0, "top_p": 0.9, "top_k": 20, "seed": 1, "speculation": "on"},
        {"repetition_penalty": 1.3},
        {"logprobs": True},
        {"trace": True},
        {"abstain_below": 0.0},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_of_what_asks_for_more_the_fusion_is_replayed(
    owner: Ensemble, settings: dict[str, Any]
) -> None:
    plainly(owner)
    want = answers(owner, PROMPTS[:2], **settings)
    regions = replaying(owner)
    same(answers(owner, PROMPTS[:2], **settings), want)
    assert regions.replayed >= 8
    assert {type(region) for region, _ in regions._known.values()} == {FusionRegion}


def test_what_gates_and_grammars_ask_is_never_replayed(owner: Ensemble) -> None:
    plainly(owner)
    want = answers(owner, PROMPTS[:1], gate="threshold")
    regions = replaying(owner)
    same(answers(owner, PROMPTS[:1], gate="threshold"), want)
    assert regions.replayed == 0


def test_a_search_is_not_of_fixed_shape(pico: Callable[..., Path]) -> None:
    with made(pico, "deepen", "qwen2", "llama") as owner:
        regions = replaying(owner)
        assert answers(owner, PROMPTS[:1])
        assert regions.replayed == 0


def test_what_cannot_be_captured_is_said_once(pico: Callable[..., Path]) -> None:
    def refuses(region: Any) -> Any:
        raise RuntimeError("no compiler")

    with made(pico, "unite", "qwen2", "llama") as owner:
        want = answers(owner, PROMPTS[:1])
        regions = replaying(owner, refuses)
        with pytest.warns(EnsembleWarning, match=r"operation by operation.*no compiler") as told:
            same(answers(owner, PROMPTS[:1]), want)
        assert len(told) == 1
        assert regions.off == "RuntimeError: no compiler"


def test_a_replay_that_differs_is_not_used(pico: Callable[..., Path]) -> None:
    def wrong(region: Any) -> Any:
        return lambda: region() - 0.5

    with made(pico, "unite", "qwen2", "llama") as owner:
        want = answers(owner, PROMPTS[:1])
        regions = replaying(owner, wrong)
        with pytest.warns(EnsembleWarning, match="its probabilities differ by"):
            same(answers(owner, PROMPTS[:1]), want)
        assert regions.replayed == 0


def test_a_replay_that_fails_late_leaves_the_others_alone(pico: Callable[..., Path]) -> None:
    class Breaks:
        """Fails once, with two requests in it."""

        calls = 0

        def __call__(self, region: ChoiceRegion) -> Any:
            def replay() -> Tensor:
                self.calls += len(region.inputs) == 2
                if self.calls == 7:
                    self.calls += 1
                    raise RuntimeError("the device is gone")
                return region()

            return replay

    with made(pico, "unite", "qwen2", "llama") as owner:
        want = apart(owner, PROMPTS[:2])
        breaks = Breaks()
        regions = replaying(owner, breaks)
        assert together(owner, PROMPTS[:2]) == want  # that step was chosen one by one
        assert breaks.calls > 10
        assert regions.off is None


def test_a_member_that_says_nothing_is_named(owner: Ensemble) -> None:
    """In a region too: -inf everywhere is no abstention where text may come."""
    for place in (0, 1):
        for value in (-torch.inf, torch.nan):
            model = owner._ready().members[place].session().engine.module
            hook = model.lm_head.register_forward_hook(
                lambda *given, value=value: torch.full_like(given[-1], value)
            )
            try:
                for make in (plainly, replaying):
                    make(owner)
                    for settings in ({}, {"repetition_penalty": 1.1}):
                        with pytest.raises(MemberError, match=rf"'m{place}' gave NaN logits"):
                            answers(owner, PROMPTS[:1], **settings)
                assert owner._ready().regions.off is None
            finally:
                hook.remove()
    plainly(owner)


def test_paths_through_answers_are_never_replayed(
    pico: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with made(pico, "bytes", "qwen2", "llama") as owner:
        monkeypatch.setattr(type(owner._ready().fuser), "fixed", True, raising=False)
        want = answers(owner, PROMPTS[:1])
        regions = replaying(owner)
        same(answers(owner, PROMPTS[:1]), want)
        assert regions.replayed == 0


def test_regions_go_with_their_ensemble(pico: Callable[..., Path]) -> None:
    owner = made(pico, "unite", "qwen2", "llama")
    regions = replaying(owner)
    for settings in ({}, {"repetition_penalty": 1.1}):
        answers(owner, PROMPTS[:1], **settings)
    seen = [weakref.ref(region) for region, _ in regions._known.values()]
    gc.collect()
    gc.disable()
    try:
        del regions
        owner.unload()
        assert [one() for one in seen] == [None, None]
    finally:
        gc.enable()


class Watch(TorchDispatchMode):
    """Operations and their shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        shape = tuple(result.shape) if isinstance(result, Tensor) else ()
        self.seen.append(f"{func}{shape}")
        return result


@pytest.mark.parametrize("settings", [{}, {"repetition_penalty": 1.1}], ids=["choice", "fusion"])
def test_a_region_reads_nothing_back_and_never_changes_shape(
    owner: Ensemble, settings: dict[str, Any]
) -> None:
    """What a CUDA graph asks of it."""
    seen: list[list[str]] = []

    class Watched:
        def __call__(self, region: ChoiceRegion) -> Any:
            def replay() -> Any:
                with Watch() as watch:
                    given = region()
                seen.append(watch.seen)
                return given

            return replay

    regions = replaying(owner, Watched())
    answers(owner, PROMPTS[:1], **settings)
    assert regions.replayed >= 20
    assert all(one == seen[0] for one in seen)
    names = {name.split("(")[0].split(".")[1] for name in seen[0]}
    assert not names & set(SYNCS)
    kept = [one for region, _ in regions._known.values() for one in region.kept]
    assert any(one is not None for one in kept)  # open boundaries were weighed


@pytest.mark.filterwarnings("default")  # those of torch's compiler are torch's own
@pytest.mark.parametrize("settings", [{}, {"repetition_penalty": 1.1}], ids=["choice", "fusion"])
def test_a_region_is_one_graph(owner: Ensemble, settings: dict[str, Any]) -> None:
    """Traced whole; what Inductor makes of it is looked at below."""
    plainly(owner)
    want = answers(owner, PROMPTS[:1], **settings)
    regions = replaying(
        owner, lambda region: torch.compile(lambda: region(), backend="eager", fullgraph=True)
    )
    same(answers(owner, PROMPTS[:1], **settings), want)
    assert (regions.captured, regions.off) == (1, None)
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")
@pytest.mark.filterwarnings("default")  # those of torch's compiler are torch's own
def test_a_compiled_choice(
    pico: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LANGCHAIN_ENSEMBLE_CACHE", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    with made(pico, FUSIONS[-1], "qwen2", "llama") as owner:
        want = answers(owner, PROMPTS[:1])
        regions = replaying(owner, Compiled(torch.device("cpu")))
        same(answers(owner, PROMPTS[:1]), want)
        assert (regions.captured, regions.off) == (1, None)
    torch._dynamo.reset()
