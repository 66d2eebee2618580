"""The names of quantisations, and the transformers config that each stands for."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from transformers import BitsAndBytesConfig, TorchAoConfig

from langchain_ensemble.errors import ConfigError, unknown_name

PACKAGES = {
    "bnb-4bit": "bitsandbytes",
    "bnb-8bit": "bitsandbytes",
    "torchao-int8": "torchao",
    "torchao-int4": "torchao",
    "gguf": "gguf",
}
"""Name → package it needs."""


def quantization_config(name: str, quantization: str | None) -> Any:
    """Make the config object for ``from_pretrained``.

    Args:
        name: Member's name, for messages.
        quantization: A name of :data:`PACKAGES`, ``"gguf:<file>"``, or None.

    Returns:
        A transformers config, or None where loading needs none (None, GGUF).

    Raises:
        ConfigError: Unknown name, or its package is not installed (with the pip line).
    """
    if quantization is None:
        return None
    kind = quantization.split(":", 1)[0]
    if kind not in PACKAGES or (kind == "gguf") != (":" in quantization):
        known = [k if k != "gguf" else "gguf:<file>" for k in PACKAGES]
        raise ConfigError(f"member {name!r}: {unknown_name('quantization', quantization, known)}")
    package = PACKAGES[kind]
    if find_spec(package) is None:
        raise ConfigError(
            f"member {name!r}: quantization={quantization!r} needs the package {package!r}; "
            f"run: pip install {package}"
        )
    if kind == "bnb-4bit":
        return BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
    if kind == "bnb-8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return _torchao(kind) if package == "torchao" else None


def _torchao(kind: str) -> Any:
    """Weight-only quantisation by torchao."""
    torchao = import_module("torchao.quantization")
    name = "Int8WeightOnlyConfig" if kind == "torchao-int8" else "Int4WeightOnlyConfig"
    return TorchAoConfig(getattr(torchao, name)())
