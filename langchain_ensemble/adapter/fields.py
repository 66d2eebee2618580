"""The fields and the life of an ensemble, for every LangChain class that is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import PrivateAttr, ValidationError

from langchain_ensemble.adapter.config import read_config, write_config
from langchain_ensemble.adapter.declared import DeclaredFields
from langchain_ensemble.adapter.engines import Lease
from langchain_ensemble.adapter.settings import (
    CONFIG_FIELDS,
    MEMBER_DEFAULTS,
    PER_CALL,
    SERVING,
    ensemble_params,
    fusion_identity,
    fusion_name,
    joined_stop,
    member_config,
    plain,
    read_overrides,
    read_settings,
)
from langchain_ensemble.adapter.tracing import TracedCalls
from langchain_ensemble.choose.calibration_file import (
    Calibration,
    early_facts,
    read_calibration,
)
from langchain_ensemble.contexts import check_contexts
from langchain_ensemble.demo import members as demo_members
from langchain_ensemble.errors import ConfigError, one_line, unknown_name
from langchain_ensemble.params import EnsembleParams, RequestParams, name_members
from langchain_ensemble.roles import refuse_weights
from langchain_ensemble.shares import resolve_weights
from langchain_ensemble.trace import is_tracing

if TYPE_CHECKING:
    from langchain_ensemble.ensemble import Ensemble


class EnsembleFields(TracedCalls, DeclaredFields):
    """Settings of an ensemble, and its weights' life: ``load``, ``unload``, ``with``."""

    _lease: Lease = PrivateAttr(default_factory=Lease)
    _config_fields: ClassVar[tuple[str, ...]] = CONFIG_FIELDS

    def __init__(self, **data: Any) -> None:
        """Check everything that can be known without a model's files.

        Raises:
            ConfigError: Something is unknown, contradictory or out of range.
        """
        owner = type(self).__name__
        settings = read_settings(owner, data, type(self).model_fields)
        if "members" not in settings:
            raise ConfigError(
                f"{owner} needs members=, a list of Hub ids or folders, or name -> id"
            )
        wrong = None
        try:
            super().__init__(**settings)
        except ValidationError as error:
            wrong = one_line(owner, error.errors())
        if wrong is not None:  # not chained: the collector cannot free what a ValidationError holds
            raise ConfigError(wrong)
        if self.device is not None and self.device_map is not None:
            raise ConfigError(
                f"{owner} has device={self.device!r} and device_map={self.device_map!r}; "
                "give one of them"
            )
        self.request()
        self._lease.attach(self.params, self._fusion_object)

    # --- what the engine gets -----------------------------------------------------------------

    @property
    def params(self) -> EnsembleParams:
        """What is fixed for the ensemble, from the fields as they are now."""
        defaults = {name: getattr(self, name) for name in MEMBER_DEFAULTS}
        defaults["token"] = self.hf_token
        rest = ("main", "open_boundaries", "calibration", *SERVING)
        given = {name: getattr(self, name) for name in rest}
        return ensemble_params(self.members, self.fusion, defaults, given)

    @property
    def _fusion_object(self) -> Any | None:
        return None if isinstance(self.fusion, str | dict) else self.fusion

    def request(self, stop: Sequence[str] | None = None, **overrides: Any) -> RequestParams:
        """Give what one call asks for.

        Args:
            stop: Stop strings of the call; those of the field come first.
            **overrides: Any other per-call field.

        Returns:
            The call's settings.

        Raises:
            ConfigError: A name that is unknown or fixed for an ensemble, or a value out of range.
        """
        values = {name: getattr(self, name) for name in PER_CALL}
        values |= read_overrides(type(self).__name__, overrides)
        values["stop"] = joined_stop(self.stop, stop)
        values["trace"] = values["trace"] or is_tracing()
        request = RequestParams(**values)
        self._check_weights(request.weights)
        check_contexts(request.contexts, self.params.names)
        return request

    def _check_weights(self, weights: Any) -> None:
        """Refuse weights, or a calibration, that are not for these members."""
        params = self.params
        refuse_weights(self.fusion, weights)
        found = self._calibration(params)
        resolve_weights(weights, params.names, None if found is None else found.weights)

    def _calibration(self, params: EnsembleParams) -> Calibration | None:
        """The calibration, checked as far as nothing is loaded for it."""
        if self.calibration is None:
            return None
        found = read_calibration(self.calibration)
        fusion = fusion_name(self.fusion)
        found.check(early_facts(params.names, params.main_name, fusion, params.open_boundaries))
        return found

    @property
    def engine(self) -> Ensemble:
        """The engine, shared by all LLM objects of equal fixed settings; torch is imported now."""
        return self._lease.engine(self.params, self._fusion_object)

    @property
    def model_name(self) -> str:
        """The ensemble's name in results and traces: ``fusion(member+member)``."""
        return f"{fusion_name(self.fusion)}({'+'.join(self.params.names)})"

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that decides what is said, as JSON, without secrets."""
        params = self.params
        request = self.request().model_dump(mode="json")
        request["stop_strings"] = request.pop("stop")  # LangChain writes the call's into "stop"
        del request["speculation"], request["cache_salt"]  # they decide nothing of what is said
        handle = self._lease.attach(params, self._fusion_object)
        found = self._calibration(params)
        learned = {} if found is None else {"calibration": found.digest}
        return {
            "model_name": self.model_name,
            "members": {m.name: member_config(m) for m in params.members},
            "fusion": fusion_identity(self.fusion, handle.token),
            "main": params.main_name,
            "open_boundaries": params.open_boundaries,
            **learned,
            **request,
        }

    # --- life -----------------------------------------------------------------------------------

    def load(self) -> Self:
        """Load the members' weights now, instead of at first use; again is free.

        Raises:
            MemberError: A member cannot be found or loaded.
            ConfigError: Members and fusion do not fit.
        """
        self._ready()
        return self

    def _ready(self) -> Ensemble:
        engine = self.engine
        engine.load()
        self._lease.settle()
        return engine

    def unload(self) -> None:
        """Free the weights, unless another LLM object uses them; the next call loads again."""
        self._lease.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.unload()

    def _scored_with(
        self,
        member: str | None,
        weights: Any,
        contexts: Mapping[str, str] | None,
        gate: str | Mapping[str, Any] | None,
    ) -> dict[str, Any]:
        """Check what ``score`` was asked for, and give what it means."""
        names = self.params.names
        if member is not None and member not in names:
            raise ConfigError(unknown_name("member", member, names))
        if member is not None and weights is not None:
            raise ConfigError(
                f"score got member={member!r} and weights={weights!r}; one member alone has no "
                "weights, give one of them"
            )
        chosen = self.weights if weights is None else weights
        self._check_weights(chosen)
        own = self.contexts if contexts is None else contexts
        check_contexts(own, names)
        asked = self.gate if gate is None else gate
        return {"weights": chosen, "member": member, "contexts": own, "gate": asked}

    @classmethod
    def demo(cls, **settings: Any) -> Self:
        """Two small members that ship with the package: a toy that runs offline in seconds.

        Args:
            **settings: Any other field.
        """
        return cls(**{"members": demo_members(), **settings})

    def solo(self, name: str) -> Self:
        """Give one member alone, over the same loaded weights, with all other settings kept.

        Args:
            name: The member's name.

        Raises:
            ConfigError: No member has this name.
        """
        names = self.params.names
        if name not in names:
            raise ConfigError(unknown_name("member", name, names))
        alone = tuple(m for m in self.params.members if m.name == name)
        update = {"members": alone, "fusion": "average", "main": name, "weights": "uniform"}
        own = {k: text for k, text in (self.contexts or {}).items() if k == name}
        return self.model_copy(update={**update, "calibration": None, "contexts": own or None})

    # --- copies and files ---------------------------------------------------------------------

    def _with_overrides(self, overrides: Mapping[str, Any]) -> Self:
        """Give a copy that has a call's settings as fields, so that cache keys hold them."""
        if not overrides:
            return self
        checked = read_overrides(type(self).__name__, overrides)
        self.request(**checked)
        called = self.model_copy(update=checked)
        called._lease = self._lease
        return called

    def __copy__(self) -> Self:
        copied = super().__copy__()
        copied._lease = self._lease.copy()
        return copied

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Copy, with some settings changed; weights are shared, never loaded again.

        Args:
            update: Settings to change; their names are checked, unlike pydantic's.
            deep: Whether fields are copied too.

        Raises:
            ConfigError: An unknown name.
        """
        fields = type(self).model_fields
        checked = read_settings(type(self).__name__, update or {}, fields)
        return super().model_copy(update=checked, deep=deep)

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Yes: ``dumps`` and ``loads`` go round, without secrets."""
        return True

    @property
    def lc_secrets(self) -> dict[str, str]:
        """Where a secret is found when an object is loaded."""
        return {"hf_token": "HF_TOKEN"}

    @property
    def lc_attributes(self) -> dict[str, Any]:
        """Members as plain JSON; their tokens stay out."""
        return {"members": {str(m.name): member_config(m) for m in name_members(self.members)}}

    @classmethod
    def from_config(cls, source: str | Path | Mapping[str, Any]) -> Self:
        """Make an ensemble from a YAML (or JSON) file, or from a mapping.

        Args:
            source: A path, or the settings themselves, named as the fields are.

        Raises:
            ConfigError: No such file, not a mapping, or settings that are wrong.
        """
        return cls(**read_config(source))

    def to_config(self, path: str | Path | None = None) -> dict[str, Any]:
        """Give the settings that differ from the defaults, without secrets.

        Args:
            path: Also write them there, as YAML.

        Returns:
            A mapping that ``from_config`` reads.

        Raises:
            ConfigError: ``fusion`` is an object of your own, which is no text.
        """
        if self._fusion_object is not None:
            raise ConfigError(
                f"fusion is an object of {type(self.fusion).__qualname__}, which a configuration "
                "cannot hold; keep the object in code and pass it as fusion="
            )
        values = {name: getattr(self, name) for name in self._config_fields}
        config = self.lc_attributes | {
            name: plain(value)
            for name, value in values.items()
            if value != type(self).model_fields[name].default
        }
        if path is not None:
            write_config(path, config)
        return config
