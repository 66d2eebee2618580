"""``calibrate`` of both LangChain classes; what it does is imported when it is called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from langchain_ensemble.adapter.fields import EnsembleFields

if TYPE_CHECKING:
    from langchain_ensemble.choose.calibration_report import CalibrationReport


class Calibrates(EnsembleFields):
    """Learns how much each member counts."""

    def calibrate(
        self,
        dev_set: Sequence[Any],
        *,
        method: Literal["learned", "adapt", "uniform"] = "learned",
        metric: str | Callable[[str, Sequence[str]], bool] | None = None,
        file: str | Path | None = None,
        on_progress: Callable[[str, int, int], None] | None = None,
    ) -> CalibrationReport:
        """Learn on a dev set how much each member counts, and measure what that is worth.

        A random half of the texts teaches, the same in every run; the rest test. The members read
        each text once.

        Args:
            dev_set: Texts, or pairs of a prompt and the text that answers it; of a chat model,
                pairs of a conversation (in any form that ``invoke`` takes) and the answer.
            method: ``"learned"``: the weights that say the texts in the fewest bits; ``"adapt"``:
                each member's share of right answers, normalised; ``"uniform"``: none are learned,
                only measured.
            metric: Whether an answer is right: ``"exact_match"``, ``"contains"``, ``"letter"``,
                ``"last_number"``, or a function of an answer and the right ones. With it the
                ensemble answers every prompt, and how sure is right is learned too; it is what
                ``"adapt"`` counts (default there: ``"exact_match"``).
            file: Where to write what ``calibration=`` reads; None: nothing is written.
            on_progress: Called with (stage, done, total).

        Returns:
            Weights, bits per byte of each member, of uniform and of these weights with paired
            intervals, and a verdict. This object's own weights do not change.

        Raises:
            ConfigError: One member, members with roles, too few texts, one that main cannot
                spell, or right answers to no question.
        """
        from langchain_ensemble.choose.calibrate import calibrate  # torch is read now

        llm = cast(Any, self)  # one of the two classes that this is a part of
        return calibrate(
            llm, dev_set, method=method, metric=metric, file=file, on_progress=on_progress
        )
