"""A member over ``AutoModelForCausalLM``: shared weights, and the view that this member adds."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, Literal, cast

import torch
from torch import Tensor

from langchain_ensemble.errors import EnsembleWarning, MemberError
from langchain_ensemble.members.adapters import BASE
from langchain_ensemble.members.base import MemberPrompt, MemberSession
from langchain_ensemble.members.devices import claim_cuda
from langchain_ensemble.members.fit import context_of, kv_bytes_of
from langchain_ensemble.members.forward import Engine
from langchain_ensemble.members.graphs import resolve_forward, shared_forward
from langchain_ensemble.members.prompts import raw_prompt
from langchain_ensemble.members.registry import Lease
from langchain_ensemble.members.replay import ReplaySession
from langchain_ensemble.members.session import HFSession
from langchain_ensemble.members.weights import Weights


class HFMember:
    """A loaded member; see :class:`~langchain_ensemble.members.base.LoadedMember`.

    Attributes:
        system: System prompt of this member's view, for chat.
        forward: How its forwards run: ``"eager"``, ``"graphs"`` or ``"compiled"``.
    """

    gives: Literal["dense", "top-k"] = "dense"

    def __init__(
        self,
        name: str,
        lease: Lease[Weights],
        tokenizer: Any,
        *,
        system: str | None = None,
        forward: str | None = None,
    ) -> None:
        """Join a share in weights with a tokenizer of the member's own."""
        self.name = name
        self.tokenizer = tokenizer
        self.system = system
        ragged = lease.value.rollback.masks is not None
        self.forward = resolve_forward(name, forward, lease.value.device, ragged)
        if lease.value.adapter != BASE and forward in ("graphs", "compiled"):
            warnings.warn(
                f"member {name!r}: forward={forward!r} holds for rows of the base only; a forward "
                "with rows of an adapter runs eagerly. Merge the adapter into the weights, or set "
                "forward='eager'",
                EnsembleWarning,
                stacklevel=2,
            )
        self._lease = lease
        module = lease.value.module
        self.device = lease.value.device
        self.dtype = cast(torch.dtype, module.dtype)
        self.context = context_of(module.config)
        self.logits_width = lease.value.rollback.width
        self.end_ids = end_ids(tokenizer, module)
        self.weights_hash = lease.value.identity
        self.kv_bytes = kv_bytes_of(module.config, self.dtype)

    @classmethod
    def wrap(
        cls, module: Any, tokenizer: Any, name: str = "member", identity: str = ""
    ) -> HFMember:
        """Make a member of a model and a tokenizer that are already in memory."""
        weights = Weights.of(module, identity or f"memory:{id(module)}", name)
        return cls(name, Lease.private(weights), tokenizer)

    @property
    def chat_template(self) -> str | None:
        """The chat template of this member's view, None for a base model."""
        template = self.tokenizer.chat_template
        return template if isinstance(template, str) else (template or {}).get("default")

    @property
    def module(self) -> Any:
        """The transformers model."""
        return self._lease.value.module

    def prompt(self, text: str) -> MemberPrompt:
        """Tokenise a raw prompt as Hugging Face does; see :func:`raw_prompt`.

        Raises:
            MemberError: The tokenizer gives an id that the model has no embedding for.
        """
        made = raw_prompt(self.name, self.tokenizer, text, self.context)
        rows = getattr(self.module.get_input_embeddings(), "num_embeddings", None)
        if rows is not None and max(made.ids) >= rows:
            raise MemberError(
                f"member {self.name!r}: its tokenizer gives id {max(made.ids)}, its model has "
                f"{rows} embeddings; tokenizer and weights are not of one model"
            )
        return made

    def session(self) -> MemberSession:
        """A fresh, empty session.

        Raises:
            MemberError: The member was closed, or this is a forked child of a CUDA process.
        """
        weights = self._lease.value
        claim_cuda(self.name, weights.device)
        how = weights.rollback
        engine = Engine(
            name=self.name,
            module=weights.module,
            device=weights.device,
            dtype=self.dtype,
            width=how.width,
            context=self.context,
            masks=how.masks,
            static=shared_forward(weights.statics, self.forward, weights.device),
        )
        if how.masks is not None:
            return cast(MemberSession, HFSession(engine, weights.pool, weights.adapter))
        return cast(MemberSession, ReplaySession(engine, how.single, how.switch))

    def embeddings(self) -> Tensor:
        """Input embeddings as stored, [rows, D].

        Raises:
            MemberError: The weights are offloaded to disk, or the model has no table.
        """
        table = self.module.get_input_embeddings()
        weight = getattr(table, "weight", None)
        if weight is None or weight.device.type == "meta":
            raise MemberError(
                f"member {self.name!r}: its input embeddings ({type(table).__name__}) are not in "
                "memory; use device=, or a device_map= that keeps them on a device"
            )
        return cast(Tensor, weight).detach()

    def close(self) -> None:
        """Give the weights back; the last member that holds them frees them."""
        self._lease.release()


def end_ids(tokenizer: Any, module: Any) -> tuple[int, ...]:
    """Ids that end a turn: the tokenizer's, then those of generation config and config."""
    found: list[int] = []
    sources = (tokenizer, getattr(module, "generation_config", None), module.config)
    for source in sources:
        value = getattr(source, "eos_token_id", None)
        listed: Iterable[Any] = value if isinstance(value, (list, tuple)) else [value]
        found += [int(i) for i in listed if i is not None and int(i) not in found]
    return tuple(found)
