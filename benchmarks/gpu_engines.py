"""One model alone in vLLM or SGLang, where they are installed: the same shape as main, no weights.

Both engines read a folder with a config and make random weights themselves (``load_format``). A
token's milliseconds are the difference of two answers' times over the difference of their lengths.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common import Row
from gpu_pairs import CONFIGS
from gpu_stage import Stage, free

SHORT, LONG = 32, 160
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}


def vllm_alone(stage: Stage) -> list[Row]:
    """Main alone in vLLM, beside our plain step."""
    if find_spec("vllm") is None:
        return []

    def start(folder: Path) -> Callable[[int, int], Any]:
        from vllm import LLM, SamplingParams

        engine = LLM(
            model=str(folder), load_format="dummy", skip_tokenizer_init=True, dtype="bfloat16",
            gpu_memory_utilization=0.3, max_model_len=2048, enable_prefix_caching=False,
        )  # fmt: skip

        def answer(rows: int, tokens: int) -> Any:
            how = SamplingParams(
                temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False
            )
            prompts = [{"prompt_token_ids": [300 + row] * stage.context} for row in range(rows)]
            return engine.generate(prompts, how, use_tqdm=False)

        return answer

    return _beside("vLLM", start, stage)


def sglang_alone(stage: Stage) -> list[Row]:
    """Main alone in SGLang, beside our plain step."""
    if find_spec("sglang") is None:
        return []

    def start(folder: Path) -> Callable[[int, int], Any]:
        import sglang

        engine = sglang.Engine(
            model_path=str(folder), load_format="dummy", skip_tokenizer_init=True,
            dtype="bfloat16", mem_fraction_static=0.3, context_length=2048,
            disable_radix_cache=True,
        )  # fmt: skip

        def answer(rows: int, tokens: int) -> Any:
            how = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}
            ids = [[300 + row] * stage.context for row in range(rows)]
            return engine.generate(input_ids=ids, sampling_params=how)

        return answer

    return _beside("SGLang", start, stage)


def _beside(
    name: str, start: Callable[[Path], Callable[[int, int], Any]], stage: Stage
) -> list[Row]:
    """Time an engine's tokens and put our step over them."""
    config = {**CONFIGS[stage.names[0]], "torch_dtype": "bfloat16"}
    config["architectures"] = [ARCHITECTURES[config["model_type"]]]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config), "utf-8")
        free()
        answer = start(Path(folder))
        for count, bar in ((1, 2.3), (64, 2.6)):
            times = {}
            for tokens in (SHORT, SHORT, LONG):  # the first warms up
                begun = time.perf_counter()
                answer(count, tokens)
                times[tokens] = time.perf_counter() - begun
            alone = (times[LONG] - times[SHORT]) * 1e3 / (LONG - SHORT)
            ours = stage.seen["plain" if count == 1 else f"batch {count}"]
            on = f"{stage.on} / {stage.names[0]}, batch {count}"
            more = {"alone ms": alone, "ours ms": ours}
            rows.append(
                Row(f"plain step / {name} alone", on, ours / alone, stage.bar(bar), "x", more=more)
            )
    return rows
