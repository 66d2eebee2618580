"""What a grammar costs per decode step: the mask, beside the model's forward.

For real vocabularies and several grammars, over random walks of legal tokens: compiling once,
then per step filling the mask, spreading its bits, moving it to the device, reading the chosen
token. Beside it the time of one decode step of a model of Qwen2.5-0.5B's shape with that
vocabulary (random weights, cached, one row): the smallest that anybody would fuse, so the share
of larger ones is smaller. All on one thread. Without a GPU the CPU time of the process is taken, so
that other work on the machine does not count; what xgrammar compiles on several threads is added
up.

Run from the repository's root: ``python benchmarks/grammar_mask.py --shared ../shared``. Results
go to ``benchmarks/results/grammar_mask.json``.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from langchain_ensemble.constraints.compile import Engine, compile_grammar
from langchain_ensemble.constraints.grammar import (
    Grammar,
    GrammarVocabulary,
    Joined,
    JsonSchema,
    Literal,
    Triggered,
)
from langchain_ensemble.vocab.vocabulary import Vocabulary

RESULTS = Path(__file__).parent / "results" / "grammar_mask.json"
VOCABULARIES = ("qwen2.5", "llama-3", "llama-2")
ENGINES: tuple[Engine, ...] = ("llguidance", "xgrammar")
WALKS, STEPS = 8, 64
CLOCK = time.perf_counter if torch.cuda.is_available() else time.process_time

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "likes": {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 5},
        "kind": {"enum": ["person", "robot", None]},
    },
    "required": ["name", "age"],
}
CALL = Joined((Literal('{"name": "add", "arguments": '), JsonSchema(json.dumps(PERSON))))
GRAMMARS: dict[str, Grammar] = {
    "object of five fields": JsonSchema(json.dumps(PERSON)),
    "any JSON object": JsonSchema('{"type": "object"}'),
    "string of 400 characters": JsonSchema('{"type": "string", "maxLength": 400}'),
    "pattern and length": JsonSchema('{"type": "string", "pattern": "b.*c", "maxLength": 100}'),
    "free text until a call": Triggered("<tool_call>", CALL),
}


def read_vocabulary(folder: Path) -> GrammarVocabulary:
    """One tokenizer's table, control ids left out."""
    vocabulary = Vocabulary(AutoTokenizer.from_pretrained(folder))
    named = zip(vocabulary.token_bytes, vocabulary.token_roles, strict=True)
    table = tuple(token if role is None else None for token, role in named)
    return GrammarVocabulary(table, vocabulary.content_hash)


def timed(work: Callable[[], Any], into: list[float]) -> Any:
    """Run something and keep its milliseconds."""
    start = CLOCK()
    result = work()
    into.append((CLOCK() - start) * 1e3)
    return result


def walk_times(
    grammar: Grammar, table: GrammarVocabulary, engine: Engine, device: torch.device
) -> dict[str, Any]:
    """Milliseconds of every part, over random walks."""
    compiling: list[float] = []
    compiled = timed(lambda: compile_grammar(grammar, table, engine), compiling)
    masking: list[float] = []
    moving: list[float] = []
    reading: list[float] = []
    for walk in range(WALKS):
        rng = random.Random(walk)
        matcher = compiled.matcher()
        for _ in range(STEPS):
            row = timed(matcher.allowed, masking)
            timed(lambda row=row: _moved(row, device), moving)
            ids = row.nonzero().flatten()
            if not len(ids):
                break
            token = table.token_bytes[int(ids[rng.randrange(len(ids))])]
            timed(lambda token=token, matcher=matcher: matcher.advance(token), reading)
    return {
        "compile_ms": round(compiling[0], 2),
        "mask_ms": _summary(masking),
        "to_device_ms": _summary(moving),
        "advance_ms": _summary(reading),
    }


def _moved(row: torch.Tensor, device: torch.device) -> torch.Tensor:
    moved = row.to(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return moved


def _summary(times: list[float]) -> dict[str, float]:
    ordered = sorted(times)
    return {
        "median": round(statistics.median(ordered), 4),
        "p99": round(ordered[int(len(ordered) * 0.99)], 4),
        "max": round(ordered[-1], 4),
    }


@torch.inference_mode()
def step_ms(width: int, device: torch.device) -> float:
    """Median milliseconds of one decode step, one row, 256 tokens in the cache."""
    config = Qwen2Config(
        vocab_size=width,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with torch.device(device):
        model = Qwen2ForCausalLM(config).to(dtype).eval()
    cache = model(torch.zeros(1, 256, dtype=torch.long, device=device)).past_key_values
    times: list[float] = []
    one = torch.zeros(1, 1, dtype=torch.long, device=device)
    for _ in range(12):
        timed(lambda: _moved(model(one, past_key_values=cache).logits, device), times)
    return statistics.median(times[2:])


def main() -> None:
    """Measure, print a table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    rows: list[dict[str, Any]] = []
    steps: dict[str, float] = {}
    prepared: dict[str, float] = {}
    torch.set_num_threads(1)
    for name in VOCABULARIES:
        table = read_vocabulary(args.shared / "tokenizers" / name)
        width = len(table.token_bytes)
        steps[name] = round(step_ms(width, device), 2)
        for engine in ENGINES:
            reading: list[float] = []
            timed(
                lambda table=table, engine=engine: compile_grammar(Literal("x"), table, engine),
                reading,
            )
            prepared[f"{name} {engine}"] = round(reading[0], 1)
        print(f"\n{name}: {width:,} ids, a decode step takes {steps[name]} ms on {device}")
        for engine in ENGINES:
            for label, grammar in GRAMMARS.items():
                if engine == "xgrammar" and label == "pattern and length":
                    continue  # it takes an intersection
                found = walk_times(grammar, table, engine, device)
                parts = ("mask_ms", "to_device_ms", "advance_ms")
                total = sum(found[part]["median"] for part in parts)
                share = round(total / steps[name], 5)
                rows.append(
                    {"vocabulary": name, "engine": engine, "grammar": label}
                    | found
                    | {"share_of_step": share}
                )
                print(
                    f"  {engine:10s} {label:26s} compile {found['compile_ms']:9.1f} ms, "
                    f"mask {found['mask_ms']['median']:.3f} ms "
                    f"(p99 {found['mask_ms']['p99']:.3f}), share {100 * share:.2f} %"
                )
    report = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {device}",
        "versions": {"torch": torch.__version__},
        "decode_step_ms": steps,
        "vocabulary_once_ms": prepared,
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
