"""What ``gpu.py`` measures: one function a group of rows, each with its bar.

Every function takes a :class:`~gpu_stage.Stage` and gives rows; a bar holds for real sizes on one
H200-class GPU and is left out elsewhere.
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from common import Row, clock_of, peak_gib
from gpu_pairs import Ring, make, opened_on, script, scripted
from gpu_stage import (
    ACCEPTANCE,
    Stage,
    advance,
    allocated_gib,
    bare_ms,
    free,
    held_gib,
    token_ms,
)
from toys import ensemble_of

from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.fusion.base import member_distribution
from langchain_ensemble.params import RequestParams

FUSIONS = ("unite", "gac", "average", "deepen")


def eager(stage: Stage) -> list[Row]:
    """Bare forwards of both members, and our step over the same."""
    bare = [bare_ms(module, stage) for module, _ in stage.members.values()]
    ours = token_ms(stage.ensemble(), stage)
    stage.seen["bare"] = sum(bare)
    return [
        *(
            Row("bare eager forward", f"{name}, {stage.context}", ms, unit="ms")
            for name, ms in zip(stage.names, bare, strict=True)
        ),
        Row("eager step", stage.on, ours, unit="ms"),
        Row("eager step / bare forwards", stage.on, ours / sum(bare), stage.bar(1.15), "x"),
    ]


def graphs(stage: Stage) -> list[Row]:
    """A plain step with captured forwards."""
    ms = token_ms(stage.ensemble(forward=stage.fast), stage)
    stage.seen["plain"] = ms
    bar = stage.bar(13.7) if stage.names[0].startswith("Llama-3") else None
    return [Row(f"plain step, {stage.fast}", stage.on, ms, bar, "ms")]


def speculation(stage: Stage) -> list[Row]:
    """A token with drafts, accepted as scripted."""
    made = stage.ensemble(forward=stage.fast)
    seen: dict[str, float] = {}
    ms = token_ms(made, stage, seen=seen, speculation="on")
    name = f"token with drafts at {ACCEPTANCE}"
    bar = stage.bar(6.2) if stage.names[0].startswith("Llama-3") else None
    plain = stage.seen.get("plain") or token_ms(made, stage)
    return [
        Row(f"{name}, {stage.fast}", stage.on, ms, bar, "ms", more={"accepted": seen["accepted"]}),
        Row(f"{name} / plain, {stage.fast}", stage.on, ms / plain, unit="x"),
    ]


def compiled(stage: Stage) -> list[Row]:
    """A plain step and one with drafts, with compiled forwards; the compiler's time beside them."""
    start = time.perf_counter()
    made = stage.ensemble(forward="compiled")
    token_ms(made, stage)
    took = time.perf_counter() - start
    plain = token_ms(made, stage)
    drafts = token_ms(made, stage, speculation="on")
    return [
        Row("compiling, once", stage.on, took, unit="s"),
        Row("step with compiled forwards", stage.on, plain, stage.bar(9.2), "ms"),
        Row(f"token with drafts at {ACCEPTANCE}, compiled", stage.on, drafts, stage.bar(6.2), "ms"),
    ]


def batch(stage: Stage) -> list[Row]:
    """Tokens per second of many rows over those of one."""
    made = stage.ensemble(forward=stage.fast)
    one = stage.seen.get("plain") or token_ms(made, stage)
    bars = {8: 6.5, 64: 30.0}
    rows = []
    for count in stage.batches:
        ms = token_ms(made, stage, rows=count)
        stage.seen[f"batch {count}"] = ms
        speed = count * one / ms
        bar = stage.bar(bars.get(count, 0)) or None
        more = {"ms": ms, "tokens per second": count / ms * 1e3}
        name = f"tokens per second, batch {count} / 1"
        rows.append(Row(name, stage.on, speed, bar, "x", least=True, more=more))
    return rows


def fusion_ms(ensemble: Ensemble, rows: int, device: str) -> float:
    """Milliseconds of one fusion over random logits: from raw logits to the best key.

    Replayed where decoding replays it. The logits are drawn so that a member's best key has about a
    tenth of the mass: sure enough for a real model, not so sure that a certificate saves DeePEn its
    search.
    """
    built = ensemble._ready()
    fuse: Any = getattr(built.fuser, "best", built.fuser)
    generator = torch.Generator(device).manual_seed(0)
    keys = [voice.keys for voice in built.voices]
    logits = [4 * torch.randn(rows, k.width, generator=generator, device=device) for k in keys if k]
    weights = torch.full((rows, len(keys)), 1 / len(keys), device=device)
    clock = clock_of(device)

    def fused() -> Any:
        said = [member_distribution(x, k) for x, k in zip(logits, keys, strict=True)]
        return fuse(said, weights).logprobs

    with torch.no_grad():
        replayed = built.regions is not None and getattr(built.fuser, "fixed", False)
        run = built.regions._capture(fused) if replayed else fused
        for number in range(24):
            if number == 4:
                start = clock()
            run()
        return (clock() - start) * 1e3 / 20


def share(stage: Stage) -> list[Row]:
    """What part of a step each fusion is, where DeePEn has to search."""
    rows = []
    others: dict[int, float] = {}  # what a step costs without its fusion
    for fusion in FUSIONS:
        made = stage.ensemble(fusion, stage.fast)
        for count, bar in ((1, 0.05), (stage.batches[-1], 0.10)):
            took = fusion_ms(made[0], count, stage.device)
            if count not in others:
                others[count] = token_ms(made, stage, rows=count) - took
            name, on = f"share of fusion={fusion!r} in a step", f"{stage.on}, batch {count}"
            more = {"fusion ms": took, "others ms": others[count]}
            part = took / (others[count] + took)
            rows.append(Row(name, on, part, stage.bar(bar), more=more))
        if fusion != FUSIONS[0]:
            stage._made.pop((fusion, stage.fast))
            free()
    return rows


def twins(stage: Stage) -> list[Row]:
    """Two equal members over main alone, in time; two views of one model, in time and memory."""
    name = stage.names[0]
    main, tokenizer = stage.members[name]
    twin, _ = make(name, stage.device, small=stage.small, seed=7)
    how = {"prefix_cache_gb": 0, "forward": stage.fast}
    _, whole = scripted({"a": (main, tokenizer), "b": (twin, tokenizer)}, "unite")
    one = Ring(whole.ids[:1])
    script([main], one, 1.0)
    weights, before, seen = held_gib([main]), allocated_gib(), {}
    alone = token_ms((ensemble_of({"a": (main, tokenizer)}, "unite", **how), one), stage, seen=seen)
    alone_gib = weights + seen.get("GiB", 0.0) - before
    views = ensemble_of({"a": (main, tokenizer), "b": (main, tokenizer)}, "unite", **how)
    free()
    before = allocated_gib()
    both = token_ms((views, whole), stage, seen=seen)
    memory = (weights + seen["GiB"] - before) / alone_gib
    script([main, twin], whole, ACCEPTANCE)
    pair = ensemble_of({"a": (main, tokenizer), "b": (twin, tokenizer)}, "unite", **how)
    plain = token_ms((pair, whole), stage)
    drafts = token_ms((pair, whole), stage, speculation="on")
    script(list(stage.members[n][0] for n in stage.names), stage.ensemble()[1], ACCEPTANCE)
    on = f"2 x {name}, {stage.context}"
    return [
        Row("main alone", f"{name}, {stage.context}", alone, unit="ms"),
        Row("two equal members / main alone, plain", on, plain / alone, stage.bar(2.1), "x"),
        Row(f"the same, drafts at {ACCEPTANCE}", on, drafts / alone, stage.bar(1.45), "x"),
        Row("two views of one model / main alone, time", on, both / alone, stage.bar(1.15), "x"),
        Row("two views of one model / main alone, memory", on, memory, stage.bar(1.1), "x"),
    ]


def growth(stage: Stage) -> list[Row]:
    """A step at longer and longer contexts."""
    made = stage.ensemble(forward=stage.fast)
    times = {n: token_ms(made, stage, context=n) for n in stage.growth}
    first = next(iter(times.values()))
    on = " + ".join(stage.names)
    return [
        Row("step", f"{on}, context {n}", ms, unit="ms", more={"over the first": ms / first})
        for n, ms in times.items()
    ]


def prefill(stage: Stage) -> list[Row]:
    """Reading a prompt and choosing a token, over one bare forward of each member."""
    ensemble, ring = stage.ensemble(forward=stage.fast)
    clock, tokens = clock_of(stage.device), stage.growth[-1] // 2

    def ours() -> float:
        with opened_on(ensemble, ring, tokens, 1, max_tokens=1) as decoding:
            start = clock()
            advance(decoding, 1)
            return (clock() - start) * 1e3

    def bare() -> float:
        start = clock()
        for module, _ in stage.members.values():
            ids = torch.full((1, tokens), 300, device=stage.device)
            with torch.inference_mode():
                module(input_ids=ids, logits_to_keep=1)
        return (clock() - start) * 1e3

    times = [(ours(), bare()) for _ in range(3)][1:]
    ratio = min(a / b for a, b in times)
    more = {"tokens per second": tokens / min(a for a, _ in times) * 1e3}
    return [
        Row("prefill / bare forwards", f"{stage.on}, {tokens} tokens", ratio, unit="x", more=more)
    ]


def prefix(stage: Stage) -> list[Row]:
    """The first token where all but the end of a prompt was read by an earlier call."""
    members = stage.members
    ensemble = ensemble_of(members, "unite", forward=stage.fast, prefix_cache_gb=8.0)
    tokenizer, ring = next(iter(members.values()))[1], stage.ensemble()[1]
    clock = clock_of(stage.device)
    long, short = stage.growth[-1], min(200, stage.growth[-1] // 4)
    text = tokenizer.decode(ring.prompt(0, 0, long).ids)
    tails = [tokenizer.decode(ring.prompt(0, 30 * n, short).ids) for n in range(1, 5)]

    def first(prompt: str) -> float:
        start = clock()
        ensemble.generate([prompt], RequestParams(max_tokens=1, speculation="off"))
        return (clock() - start) * 1e3

    cold = first(text)
    kept_ms = [first(text + tail) for tail in tails][-1]
    suffix = min(first(tail) for tail in (*tails, *tails))
    bar = suffix + 2 * stage.seen.get("plain", math.nan)
    ratio = kept_ms / (bar if bar == bar else suffix)
    on = f"{' + '.join(stage.names)}, {long} + {short} tokens"
    more = {"cold ms": cold, "kept ms": kept_ms, "suffix ms": suffix}
    name = "first token with a kept prefix / (suffix + 2 steps)"
    return [Row(name, on, ratio, stage.bar(1.3), "x", more=more)]


def memory(stage: Stage) -> list[Row]:
    """The most that was held so far on this pair."""
    cuda = stage.device != "cpu"
    most = torch.cuda.max_memory_allocated() / 2**30 if cuda else peak_gib()
    weights = held_gib([module for module, _ in stage.members.values()])
    where = "device" if cuda else "process"
    return [
        Row("weights", " + ".join(stage.names), weights, unit="GiB"),
        Row(f"peak of the {where} so far", stage.on, most, unit="GiB"),
    ]
