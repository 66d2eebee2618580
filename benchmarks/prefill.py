"""Reading long prompts: ours, in pieces, beside one bare forward over the whole prompt.

One member and one thread; the bare forward keeps no cache and gives the last position's logits
only, so it is the least that reading a prompt can cost. Both read the same number of random ids.

Run from the repository's root: ``python benchmarks/prefill.py`` (about a minute on one CPU
thread). Results go to ``benchmarks/results/prefill.json``.
"""

from __future__ import annotations

import argparse

import torch
from common import Row, interleaved, one_thread, save
from toys import ensemble_of, llama, opened, vocabulary

SIZES = ((512, 1), (2048, 1), (4096, 1), (512, 4))


def main() -> None:
    """Time all sizes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    one_thread()
    model, words = llama(32_000, 256, 4), vocabulary(32_000)
    ensemble = ensemble_of({"a": (model, words)}, "unite", prefix_cache_gb=0)
    rows, line = [], []
    for tokens, count in SIZES:
        ids = torch.randint(300, 32_000, (count, tokens))

        @torch.inference_mode()
        def bare(ids: torch.Tensor = ids) -> None:
            model(input_ids=ids, use_cache=False, logits_to_keep=1)

        def ours(tokens: int = tokens, count: int = count) -> None:
            with opened(ensemble, tokens, count, max_tokens=1) as decoding:
                while not decoding.done:
                    decoding.step()

        times = interleaved({"ours": ours, "bare": bare}, given.rounds)
        speed = count * tokens / times.ms("ours") * 1e3
        on = f"256 x 4, 32k vocabulary, {count} x {tokens} tokens"
        more = {"tokens per second": round(speed), "ms": times.ms("ours")}
        ratio = times.ratio("ours", "bare")
        rows.append(Row("prefill in pieces / one bare forward", on, ratio, unit="x", more=more))
        if count == 1:
            line.append([tokens, round(speed)])
    series = {
        "prefill": {"x": "prompt tokens", "y": "tokens per second", "lines": {"256 x 4": line}}
    }
    save("prefill", rows, series=series)


if __name__ == "__main__":
    main()
