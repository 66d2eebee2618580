"""One engine for equal settings, and the one place that imports it.

``configurable_fields`` builds the class anew on every call, ``model_copy``, pickle and deepcopy
make more of them. So an LLM object never owns an engine: it holds a :class:`Lease` of an
:class:`_Handle` that all LLM objects of the same fixed settings share, and that lives as long as
one of them does. The import of ``ensemble`` (seconds: torch, transformers) happens at first use.
"""

from __future__ import annotations

import sys
import threading
import uuid
import warnings
import weakref
from typing import TYPE_CHECKING, Any

from langchain_ensemble.demo import members as demo_members
from langchain_ensemble.errors import EnsembleWarning
from langchain_ensemble.params import EnsembleParams

if TYPE_CHECKING:
    from langchain_ensemble.ensemble import Ensemble

_handles: weakref.WeakValueDictionary[tuple[Any, ...], _Handle] = weakref.WeakValueDictionary()
_handles_lock = threading.Lock()


def build_engine(params: EnsembleParams, fusion: Any | None) -> Ensemble:
    """Make an engine; nothing is loaded yet.

    Args:
        params: The fixed settings.
        fusion: A fusion object of the user's, or None for the one that ``params`` names.

    Returns:
        The engine.

    Raises:
        ConfigError: The settings contradict each other.
    """
    from langchain_ensemble.ensemble import Ensemble  # the lazy import of torch and transformers

    return Ensemble(params, fusion=fusion)


def _free(engine: Ensemble) -> None:
    # The garbage collector may call this while its thread holds any lock: another thread unloads.
    # Not a daemon: one that is inside torch while the interpreter shuts down aborts the process.
    if not sys.is_finalizing():
        threading.Thread(target=engine.unload, name="ensemble-unload").start()


class _User:
    """Somebody who may be counted; as long-lived as the lease it stands for."""


class _Handle:
    """One engine, made when first asked for; freed with the last LLM object that may use it."""

    def __init__(self, params: EnsembleParams, fusion: Any | None) -> None:
        self.params = params
        self.fusion = fusion  # held, so that its id stays its own
        self.token = uuid.uuid4().hex  # identifies a fusion object in cache keys
        self._users: weakref.WeakSet[_User] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._engine: Ensemble | None = None
        self._warned = False

    def engine(self, user: _User | None = None) -> Ensemble:
        with self._lock:
            if user is not None:
                self._users.add(user)
            if self._engine is None:
                self._engine = build_engine(self.params, self.fusion)
                weakref.finalize(self, _free, self._engine).atexit = False
            return self._engine

    def warn_of_chat_templates(self) -> None:
        with self._lock:
            engine, warned, self._warned = self._engine, self._warned, True
        systems = [] if warned else [m.name for m in self.params.members if m.system]
        if systems:
            warnings.warn(
                f"system= of members {', '.join(map(repr, systems))} has no effect on raw text; "
                "write it into the prompt",
                EnsembleWarning,
                stacklevel=2,
            )
        templates = [] if warned or engine is None else engine.chat_templates()
        both = [m.name for m in self.params.members if m.model in demo_members().values()]
        names = [name for name in templates if name not in both]  # those learned raw text too
        if names:
            warnings.warn(
                f"members {', '.join(map(repr, names))} have a chat template, and raw text goes "
                "past it: an instruct model may ramble or never end. as_chat() gives the same "
                "ensemble as a chat model, in which each member reads its own template",
                EnsembleWarning,
                stacklevel=2,
            )

    @property
    def loaded(self) -> bool:
        return self._engine is not None and self._engine.loaded

    def forget(self, user: _User) -> int:
        """Stop counting somebody; give how many others use the engine."""
        with self._lock:
            self._users.discard(user)
            return len(self._users)

    def unload(self) -> None:
        if self._engine is not None:
            self._engine.unload()


def _handle_for(params: EnsembleParams, fusion: Any | None) -> _Handle:
    tokens = tuple(member.token for member in params.members)
    key = (params.model_dump_json(), tokens, None if fusion is None else id(fusion))
    with _handles_lock:
        handle = _handles.get(key)
        if handle is None:
            handle = _handles[key] = _Handle(params, fusion)
        return handle


class Lease:
    """One LLM object's share of an engine. Copies share the engine, pickles find it again."""

    def __init__(self) -> None:
        self._handle: _Handle | None = None
        self._earlier: _Handle | None = None
        self._user = _User()

    def attach(self, params: EnsembleParams, fusion: Any | None) -> _Handle:
        """Hold the handle for these settings; nothing is built or loaded.

        Args:
            params: The LLM object's fixed settings as they are now.
            fusion: Its fusion object, if it has one.

        Returns:
            The handle. Where the settings changed, the earlier one is held until :meth:`settle`.
        """
        old, new = self._handle, _handle_for(params, fusion)
        if old is not None and old is not new and old.loaded:
            self._earlier = old
        self._handle = new
        return new

    def engine(self, params: EnsembleParams, fusion: Any | None) -> Ensemble:
        """Give the engine, and note that this LLM object uses it."""
        return self.attach(params, fusion).engine(self._user)

    def settle(self) -> None:
        """Let go of the engine of earlier settings: the present one is loaded.

        Not before, so that weights which both use are not read again.
        """
        earlier, self._earlier = self._earlier, None
        if earlier is not None:
            earlier.forget(self._user)

    def warn_of_chat_templates(self) -> None:
        """Warn once for an engine whose members have chat templates that raw prompts go past."""
        if self._handle is not None:
            self._handle.warn_of_chat_templates()

    def release(self) -> None:
        """Free the weights, unless another LLM object of the same settings uses them."""
        for handle in (self._handle, self._earlier):
            if handle is not None and handle.forget(self._user) == 0:
                handle.unload()
        self._earlier = None

    def copy(self) -> Lease:
        """Share the engine without using it yet."""
        lease = Lease()
        lease._handle = self._handle
        return lease

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Lease)  # settings make two LLM objects equal, not who holds what

    __hash__ = None  # type: ignore[assignment]

    def __deepcopy__(self, memo: dict[int, Any]) -> Lease:
        return self.copy()

    def __reduce__(self) -> tuple[type[Lease], tuple[()]]:
        return (Lease, ())
