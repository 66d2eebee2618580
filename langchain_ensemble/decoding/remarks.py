"""What a request tells its caller beside the answer: each thing once."""

from __future__ import annotations

from langchain_ensemble.decoding.state import Row
from langchain_ensemble.decoding.task import Task


class Remarks:
    """Warnings of one request."""

    def __init__(self, task: Task) -> None:
        """Start with nothing said."""
        self._task = task
        self._said_ignored: set[int] = set()  # rows whose ignored stop string was named
        self._said_prompts = False

    def prompts(self) -> None:
        """Say once a request what of the prompts reaches a voice as its unk id."""
        if self._said_prompts:
            return
        self._said_prompts = True
        for place, voice in enumerate(self._task.voices):
            unk = voice.vocabulary.unk_id
            count = sum(
                prompt[place].ids.count(unk) for prompt in self._task.prompts if unk is not None
            )
            if count:
                self._task.warn(
                    f"member {voice.member.name!r} cannot spell all of the prompt(s): {count} of "
                    "its ids are its unk id"
                )

    def spelling(self, row: Row) -> None:
        """Say once a row what reached a voice as its unk id."""
        for track, voice in zip(row.tracks, self._task.voices, strict=True):
            if unknown := track.unspelled:
                self._task.warn(
                    f"member {voice.member.name!r} cannot spell all of answer {row.number}: "
                    f"{unknown} of its {len(track.spelled)} ids are its unk id"
                )

    def ignored_stop(self, row: Row) -> None:
        """Say once a row that a stop string stood inside an unfinished grammar."""
        if row.ignored_stop is None or row.number in self._said_ignored:
            return
        self._said_ignored.add(row.number)
        self._task.warn(
            f"answer {row.number}: stop string {row.ignored_stop!r} came inside an unfinished "
            "grammar and is ignored there; leave it out, or end the grammar before it"
        )
