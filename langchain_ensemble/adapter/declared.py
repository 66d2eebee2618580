"""What can be set on an ensemble, for every LangChain class that is one."""

from __future__ import annotations

from typing import Any, Literal

from langchain_core.load.serializable import Serializable
from langchain_core.utils import secret_from_env
from pydantic import ConfigDict, Field, SecretStr

from langchain_ensemble.params import (
    DEFAULT_FUSION,
    DEFAULT_MAX_CONCURRENT,
    DEFAULT_MAX_TOKENS,
    DEFAULT_PREFIX_CACHE_GB,
    Member,
)


class DeclaredFields(Serializable):
    """The fields: who the members are, what is fixed, what a call may change."""

    model_config = ConfigDict(arbitrary_types_allowed=True, protected_namespaces=())

    members: tuple[Member, ...]
    """Name → Hub id, folder, settings or :class:`Member`; or a list of them (names derived)."""
    fusion: Any = DEFAULT_FUSION
    """``"deepen"``, ``"unite"``, ``"gac"``, ``"average"``, a dict with ``name``, an object."""
    main: str | None = None
    """The member whose vocabulary the answer is read in; default: the first."""
    open_boundaries: Literal["discount", "vote"] = "discount"
    """Whether an auxiliary that is inside a token of its own votes with less weight."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None
    """For members that do not say otherwise, as the seven settings below; see :class:`Member`."""
    device: str | None = None
    device_map: str | dict[str, str | int] | None = None
    quantization: str | None = None
    attn_implementation: str | None = None
    trust_remote_code: bool | None = None
    local_files_only: bool | None = None
    forward: Literal["eager", "graphs", "compiled"] | None = None
    hf_token: SecretStr | None = Field(default_factory=secret_from_env("HF_TOKEN", default=None))
    """Hub access token for members without one; default: ``HF_TOKEN``. Only pickle writes it."""

    draft: Member | None = None
    """A small model that proposes drafts and has no say in the answer."""
    max_concurrent: int = DEFAULT_MAX_CONCURRENT
    """Answers that are decoded together at most; further requests wait."""
    max_queue: int | None = None
    """Requests that wait at most; one more is refused. None: no limit."""
    kv_cache_gb: float | None = None
    """Bytes (in 1e9) of KV caches at most, kept prefixes included; None: what devices hold."""
    prefix_cache_gb: float = DEFAULT_PREFIX_CACHE_GB
    """Bytes (in 1e9) of KV caches kept for prompts that begin alike; 0 is off."""

    calibration: str | None = None
    """File that ``calibrate`` wrote for these members."""

    max_tokens: int | None = DEFAULT_MAX_TOKENS
    """Decode steps at most; None: what the context leaves. This and all below may be in a call."""
    temperature: float = 0.0  # 0 is greedy
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    n: int = 1
    """Answers per prompt (``generate``); ``invoke`` and ``stream`` give the first."""
    stop: tuple[str, ...] = ()
    """Texts before which an answer ends; those of a call come on top."""
    timeout: float | None = None
    """Seconds until ``DeadlineError``, which carries the partial text."""
    weights: (
        Literal["uniform", "calibrated", "prompt", "online"]
        | dict[str, float]
        | tuple[float, ...]
        | None
    ) = None
    """Name → weight, or one a member in order, sum 1; or a rule. None: calibrated, else online with
    ``fusion="average"``, else uniform."""
    logprobs: bool = False
    """Whether ``generation_info`` carries each token's logprobs, fused and by member."""
    speculation: Literal["auto", "off", "on"] = "auto"
    """Whether members draft for each other: the same answer, sooner."""
    cache_salt: str | None = None
    """Calls reuse each other's prefixes only under the same salt."""
    gate: str | dict[str, Any] = "always"
    """Where members are fused: ``"always"``, ``"threshold"``, ``"safe"``, or a dict."""
    contexts: dict[str, str] | None = None
    """Name → a text that this member alone reads before the prompt."""
    trace: bool = False
    """Whether what each member wanted is kept for every token."""
    abstain_below: float | None = None
    """Answers that the members are less sure of than this raise ``AbstainedError``."""
