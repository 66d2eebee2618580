"""What is known of an ensemble before its weights are read: ids, lengths, limits."""

from __future__ import annotations

import threading

from langchain_ensemble.chat.conversation import ChatRequest, Conversation
from langchain_ensemble.chat.view import ChatView
from langchain_ensemble.members.fit import context_of
from langchain_ensemble.members.loading import load_config, load_tokenizer
from langchain_ensemble.members.sources import locate
from langchain_ensemble.params import EnsembleParams
from langchain_ensemble.vocab.vocabulary import Vocabulary


class Unloaded:
    """Reads tokenizers and configs of an ensemble's members at first use, never weights."""

    def __init__(self, params: EnsembleParams) -> None:
        """Keep the settings; nothing is read yet."""
        self._params = params
        self._lock = threading.Lock()
        self._main: tuple[Vocabulary, ChatView] | None = None

    def token_ids(self, text: str) -> list[int]:
        """Main's ids of a text, without control ids."""
        return self._reader()[0].encode(text).ids

    def count_chat(self, conversation: Conversation, chat: ChatRequest, document: str) -> int:
        """How many ids main, with a text of its own, reads before it answers a conversation."""
        return len(self._reader()[1].reading(document).prompt(conversation, chat).ids)

    def limits(self) -> dict[str, int | None]:
        """Positions of each member by its config, by name."""
        members = self._params.members
        return {m.name or "": context_of(load_config(m, locate(m))) for m in members}

    def _reader(self) -> tuple[Vocabulary, ChatView]:
        with self._lock:
            if self._main is None:
                main = self._params.ordered[0]
                tokenizer = load_tokenizer(main, locate(main))
                vocabulary = Vocabulary(tokenizer, chat_template=main.chat_template)
                view = ChatView(
                    main.name or "",
                    tokenizer,
                    vocabulary,
                    chat_template=tokenizer.chat_template,
                    system=main.system,
                    context=None,  # nothing is too long to be counted
                    warn=lambda _: None,  # said when the conversation is answered
                )
                self._main = (vocabulary, view)
            return self._main
