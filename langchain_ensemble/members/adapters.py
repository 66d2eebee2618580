"""Adapters on shared weights: one module, and rows that run with a LoRA adapter of their own.

PEFT's LoRA layers take the place of the module's own; no adapter is ever active, so that the module
by itself is the base. Which rows of a forward run with which adapter is said around it, by
:func:`adapter_rows`, and handed to every LoRA layer as PEFT's ``adapter_names``. Base rows take no
part in what is added for the others.

Whether a module can do this is asked once an adapter: rows beside an adapted one must stay as they
were. What PEFT cannot mix (other methods than plain LoRA, DoRA, saved modules …) is
:class:`NotMixed`; such an adapter gets weights of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor

BASE = "__base__"
"""What PEFT calls a row without an adapter."""

EXTRAS = (
    "use_dora", "modules_to_save", "trainable_token_indices", "target_parameters",
    "alora_invocation_tokens", "layer_replication", "use_qalora", "use_bdlora", "arrow_config",
    "kasa_config", "monteclora_config", "velora_config", "megatron_config",
)  # fmt: skip
"""Settings of a LoRA config that make it more than two matrices a layer."""

_rows: ContextVar[Sequence[str] | None] = ContextVar("adapter_rows", default=None)
"""Adapter of each row of the forward that this thread runs now; None: all run the base."""


class NotMixed(Exception):  # noqa: N818: no error of the caller's, and never seen by one
    """An adapter cannot share a module; says why."""


@contextmanager
def adapter_rows(adapters: Sequence[str] | None) -> Iterator[None]:
    """Say which adapter each row of the forwards inside runs with.

    Args:
        adapters: One name a row, :data:`BASE` for none; None where all rows run the base.
    """
    token = _rows.set(adapters)
    try:
        yield
    finally:
        _rows.reset(token)


class Adapters:
    """The adapters of one module.

    Attributes:
        names: Those that are on it now.
    """

    def __init__(self) -> None:
        """Start with none."""
        self.names: set[str] = set()
        self._numbers = itertools.count()

    def add(self, module: Any, folder: Path, device: torch.device) -> str:
        """Put a LoRA adapter on a module.

        Args:
            module: The module; its own rows give what they gave.
            folder: Where PEFT saved the adapter.
            device: Where input ids go.

        Returns:
            The name of its rows.

        Raises:
            NotMixed: It cannot share the module, which is as it was.
            ValueError: It does not fit the module, which is as it was.
        """
        peft = import_module("peft")
        config = peft.PeftConfig.from_pretrained(folder)
        tensors = load_file(folder / "adapter_model.safetensors")
        check_plain(config)
        others = [key for key in tensors if "lora_" not in key]
        if others:
            raise NotMixed(f"it holds weights of the model itself ({others[0]})")
        name = f"adapter{next(self._numbers)}"
        ids = torch.arange(3, 15, device=device).view(2, 6)
        before = _base_row(module, ids, None)
        try:
            _inject(peft, module, config, name)
            _fill(peft, module, tensors, name)
            try:
                after = _base_row(module, ids, [BASE, name])
            except (RuntimeError, TypeError, ValueError) as error:
                raise NotMixed(f"PEFT cannot mix its rows with others: {error}") from error
            if not torch.allclose(before, after, atol=0.01 * float(before.abs().max())):
                raise NotMixed("rows beside it change")
        except BaseException:
            self.remove(module, name)
            raise
        finally:
            vars(module).pop("peft_config", None)  # PEFT would take the next for a mistake
        self.names.add(name)
        return name

    def remove(self, module: Any, name: str) -> None:
        """Take an adapter off; with the last one the module gets its own layers back."""
        self.names.discard(name)
        for path, layer in _layers(module):
            layer.delete_adapter(name)
            if not self.names:
                parent, _, last = path.rpartition(".")
                setattr(module.get_submodule(parent), last, layer.base_layer)


def _layers(module: Any) -> list[tuple[str, Any]]:
    """PEFT's LoRA layers with their paths."""
    found = module.named_modules()
    return [(path, layer) for path, layer in found if hasattr(layer, "lora_embedding_A")]


def _inject(peft: Any, module: Any, config: Any, name: str) -> None:
    """Make the adapter's layers, none of them active."""
    config.inference_mode = True
    peft.inject_adapter_in_model(config, module, name)
    for _, layer in _layers(module):
        layer.set_adapter([])
        if name in layer.lora_variant:
            raise NotMixed("it is a variant of LoRA")
        if not getattr(layer, "rows_are_named", False):
            layer.register_forward_pre_hook(_name_rows, with_kwargs=True)
            layer.rows_are_named = True
    module.eval()


def check_plain(config: Any) -> None:
    """Refuse what is more than plain LoRA.

    Args:
        config: PEFT's config of the adapter.

    Raises:
        NotMixed: It is something else; says what.
    """
    kind = getattr(config.peft_type, "value", config.peft_type)
    if kind != "LORA":
        raise NotMixed(f"it is {kind}, not LORA")
    extras = [key for key in EXTRAS if getattr(config, key, None)]
    if config.bias != "none":
        extras.append("bias")
    if not isinstance(config.init_lora_weights, bool):  # some of these change the base itself
        extras.append("init_lora_weights")
    if extras:
        raise NotMixed(f"it is LoRA with {', '.join(extras)}")


def _fill(peft: Any, module: Any, tensors: dict[str, Tensor], name: str) -> None:
    """Read an adapter's tensors into its layers; all of them, and nothing else."""
    import_module("peft.tuners.tuners_utils").cast_adapter_dtype(module, name)
    result = peft.set_peft_model_state_dict(module, tensors, adapter_name=name)
    lost = [key for key in result.missing_keys if f".{name}" in key]
    if lost or result.unexpected_keys:
        raise ValueError(
            f"it lacks {len(lost)} tensors and has {len(result.unexpected_keys)} too many "
            f"({(lost + result.unexpected_keys)[0]})"
        )


def _base_row(module: Any, ids: Tensor, names: Sequence[str] | None) -> Tensor:
    """Logits of the first of two rows, float32."""
    with torch.no_grad(), adapter_rows(names):
        return cast(Tensor, module(input_ids=ids, use_cache=False).logits)[0].float()


def _name_rows(layer: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Hand the present rows to a LoRA layer."""
    names = _rows.get()
    return None if names is None else (args, {**kwargs, "adapter_names": list(names)})
