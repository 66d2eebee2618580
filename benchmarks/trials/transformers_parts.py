"""What transformers' own caches, loops and generators give a token-level ensemble: tried, not read.

Each trial answers one question of docs/build_or_buy.md on tiny random Llamas (and, for drafts
across tokenizers, on two shared models) and prints one line. Run from the repository's root:
``python benchmarks/trials/transformers_parts.py`` (about a minute on one CPU thread).
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from common import SHARED, interleaved, one_thread
from toys import llama
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, StaticCache
from transformers.generation.configuration_utils import ContinuousBatchingConfig

IDS = torch.arange(10, 42)[None]


def outcome(work: Callable[[], Any]) -> str:
    """What came of a call: its value, or how it was refused."""
    try:
        return str(work())
    except Exception as error:
        return f"refused: {type(error).__name__}: {str(error).splitlines()[0][:90]}"


def static_rollback(model: Any) -> str:
    """Whether a static cache can be cropped; what writing its private length does."""
    cache = StaticCache(config=model.config, max_cache_len=64)
    model(IDS, past_key_values=cache)
    cropped = outcome(lambda: cache.crop(-2))
    once = model(IDS[:, :4], past_key_values=cache).logits
    for layer in cache.layers:
        layer.cumulative_length.sub_(4)
    twice = model(IDS[:, :4], past_key_values=cache).logits
    same = torch.allclose(once, twice, atol=1e-6)
    shape = tuple(cache.layers[0].cumulative_length.shape)
    return f"crop(-2) {cropped}; length is one number (shape {shape}); writing it repeats: {same}"


def dynamic_rollback(model: Any) -> str:
    """Whether a dynamic cache can be cropped, for one row of two."""
    cache = DynamicCache(config=model.config)
    model(IDS.repeat(2, 1), past_key_values=cache)
    cache.crop(-2)
    length = cache.get_seq_length()
    return f"crop(-2) leaves {length} in both rows; {outcome(lambda: cache.crop([-2, 0]))}"


def compiled(model: Any) -> str:
    """Whether a static decode step compiles whole, and what it gains on this CPU."""
    cache = StaticCache(config=model.config, max_cache_len=256)
    model(IDS, past_key_values=cache)
    start = time.perf_counter()
    fast = torch.compile(model, fullgraph=True)

    def step(run: Any) -> None:
        run(IDS[:, :1], past_key_values=cache)
        for layer in cache.layers:
            layer.cumulative_length.sub_(1)

    step(fast)
    took = time.perf_counter() - start
    times = interleaved({"eager": lambda: step(model), "compiled": lambda: step(fast)}, 15, inner=5)
    return f"whole graph in {took:.0f} s; compiled / eager {times.ratio('compiled', 'eager'):.2f}"


def plain_loop(model: Any, steps: int) -> None:
    """A cached greedy loop."""
    cache, ids = DynamicCache(config=model.config), IDS
    for _ in range(steps):
        ids = model(ids, past_key_values=cache).logits[:, -1:].argmax(-1)


def continuous(model: Any, steps: int = 48) -> str:
    """What ``generate_batch`` gives back, and its time over a plain loop's."""
    config = ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=64, return_logprobs=True)

    def run() -> Any:
        return model.generate_batch(
            [IDS[0].tolist()], continuous_batching_config=config, max_new_tokens=steps
        )

    (made,) = run().values()
    fields = sorted(k for k, v in vars(made).items() if v is not None and k != "error")
    times = interleaved(
        {"batch": run, "loop": lambda: plain_loop(model, steps)}, 3, clock=time.perf_counter
    )
    ratio = times.ratio("batch", "loop")
    return f"{len(made.generated_tokens)} tokens; time / loop {ratio:.1f}; gives {fields}"


def assisted_limits(model: Any, other: Any) -> str:
    """What assisted generation with an ensemble weight refuses."""
    common = {"assistant_ensemble_weight": 0.5, "do_sample": False, "max_new_tokens": 4}
    two = outcome(lambda: model.generate(IDS.repeat(2, 1), assistant_model=other, **common).shape)
    static = {"cache_implementation": "static", **common}
    fixed = outcome(lambda: model.generate(IDS, assistant_model=other, **static).shape)
    three = outcome(lambda: model.generate(IDS, assistant_model=[other, other], **common).shape)
    return f"two rows {two}; static cache {fixed}; two assistants {three}"


def across_tokenizers(shared: Path) -> str:
    """Whether the ensemble weight does anything across tokenizers; what a draft costs there."""
    folders = [shared / "models" / name for name in ("babyllama-361", "stories260K")]
    if not folders[0].is_dir():
        return "not tried: no shared models here"
    target, other = (AutoModelForCausalLM.from_pretrained(f).eval() for f in folders)
    names = [AutoTokenizer.from_pretrained(f) for f in folders]
    ids = names[0]("Once upon a time there was a little girl", return_tensors="pt").input_ids
    settings = {"do_sample": False, "max_new_tokens": 80}
    with_other = {
        "assistant_model": other,
        "tokenizer": names[0],
        "assistant_tokenizer": names[1],
        "assistant_ensemble_weight": 0.5,
    }
    alone = target.generate(ids, **settings)
    helped = target.generate(ids, **settings, **with_other)
    times = interleaved(
        {
            "alone": lambda: target.generate(ids, **settings),
            "helped": lambda: target.generate(ids, **settings, **with_other),
        },
        3,
    )
    end = min(alone.shape[1], helped.shape[1])
    same = torch.equal(alone[:, :end], helped[:, :end])
    slower = times.ratio("helped", "alone")
    return f"answer with weight 0.5 = target alone: {same}; time / target alone {slower:.1f}"


def main() -> None:
    """Run every trial."""
    one_thread()
    logging.disable(logging.WARNING)
    model, other = llama(512, layers=4), llama(512, layers=2, seed=1)
    with torch.inference_mode():
        print("static cache:", outcome(lambda: static_rollback(model)), flush=True)
        print("dynamic cache:", outcome(lambda: dynamic_rollback(model)), flush=True)
        print("assisted:", outcome(lambda: assisted_limits(model, other)), flush=True)
        print("across tokenizers:", outcome(lambda: across_tokenizers(SHARED)), flush=True)
    with torch.no_grad():
        print("compiled static step:", outcome(lambda: compiled(model)), flush=True)
        print("generate_batch:", outcome(lambda: continuous(model)), flush=True)


if __name__ == "__main__":
    main()
