"""``info``: what a bug report needs: versions, devices, memory, the cache. No secrets."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil
import torch
from huggingface_hub import constants
from rich.table import Table

from langchain_ensemble._version import __version__
from langchain_ensemble.cli.console import say_json, size_text, stdout
from langchain_ensemble.store import Store

PACKAGES = (
    "torch", "transformers", "langchain-core", "tokenizers", "huggingface-hub", "safetensors",
    "accelerate", "pydantic", "peft", "bitsandbytes", "compressed-tensors", "torchao", "gguf",
)  # fmt: skip
"""Packages whose versions matter; absent ones are null."""


def facts() -> dict[str, Any]:
    """Collect everything as JSON; sizes in bytes."""
    memory = psutil.virtual_memory()
    store = Store()
    entries = store.list()
    return {
        "langchain-ensemble": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "devices": devices(),
        "memory": {"total": memory.total, "free": memory.available},
        "cpu": {"cores": os.cpu_count(), "torch_threads": torch.get_num_threads()},
        "cache": {
            "folder": str(store.folder),
            "entries": len(entries),
            "size": sum(entry.size for entry in entries),
        },
        "hub_cache": constants.HF_HUB_CACHE,
    }


def devices() -> list[dict[str, Any]]:
    """List accelerators, then the CPU."""
    found: list[dict[str, Any]] = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        found.append({"device": f"cuda:{index}", "name": name, "total": total, "free": free})
    if torch.backends.mps.is_available():
        total = int(torch.mps.recommended_max_memory())
        free = total - int(torch.mps.current_allocated_memory())
        found.append({"device": "mps", "name": platform.processor(), "total": total, "free": free})
    memory = psutil.virtual_memory()
    name = platform.processor() or platform.machine()
    found.append({"device": "cpu", "name": name, "total": memory.total, "free": memory.available})
    return found


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def info(*, as_json: bool) -> None:
    """Write the facts.

    Args:
        as_json: For programs.
    """
    found = facts()
    if as_json:
        say_json(found)
        return
    table = Table(show_header=False, box=None)
    for name in ("langchain-ensemble", "python", "platform"):
        table.add_row(name, found[name])
    for name, number in found["packages"].items():
        table.add_row(name, number or "not installed")
    for one in found["devices"]:
        room = f"{size_text(one['free'])} free of {size_text(one['total'])}"
        table.add_row(one["device"], f"{one['name']}, {room}")
    cpu, cache = found["cpu"], found["cache"]
    table.add_row("cores", f"{cpu['cores']}, torch uses {cpu['torch_threads']}")
    table.add_row(
        "cache", f"{cache['folder']}, {cache['entries']} entries, {size_text(cache['size'])}"
    )
    table.add_row("Hub cache", found["hub_cache"])
    stdout().print(table)
