"""What users of other local chat models complain about (P1-P20), where a chat model can have it.

Members are told what to say where that is the point. P2, P17 and P20 of members that say what they
want: ``tests/unit_tests/test_chat_pitfalls.py``; P19 concerns the package as a whole.
"""

from __future__ import annotations

import pytest

from langchain_ensemble import ChatEnsemble, ConfigError, MemberError

ASK = "What is the capital of France?"


def test_p18_no_two_settings_of_devices_fight(members: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="give one of them"):
        ChatEnsemble(members=members, device="cpu", device_map="auto")
    with pytest.raises((ConfigError, MemberError), match="cuda:7"):
        ChatEnsemble(members=members, device="cuda:7").invoke(ASK)
