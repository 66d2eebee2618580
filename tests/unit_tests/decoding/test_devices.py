"""Devices work side by side; one device works in order."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from langchain_ensemble.decoding.devices import Devices
from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.members.session import HFSession
from langchain_ensemble.params import EnsembleParams, RequestParams

ONE, TWO = torch.device("meta", 0), torch.device("meta", 1)


def test_two_devices_work_at_the_same_time() -> None:
    meet = threading.Barrier(2, timeout=20)

    def work() -> tuple[int, bool]:
        return meet.wait() * 0, torch.is_inference_mode_enabled()  # alone it would wait for ever

    devices = Devices()
    assert devices.run([(ONE, work), (TWO, work)]) == [(0, True), (0, True)]
    devices.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("member-")]


def test_one_device_works_in_order_in_the_callers_thread() -> None:
    seen: list[tuple[int, str]] = []
    here = threading.current_thread().name

    def note(number: int) -> int:
        seen.append((number, threading.current_thread().name))
        return number

    devices = Devices()
    assert devices.run([(ONE, lambda: note(0)), (ONE, lambda: note(1))]) == [0, 1]
    assert seen == [(0, here), (1, here)]
    assert devices.run([(ONE, lambda: note(2)), (TWO, lambda: 9), (ONE, lambda: note(3))]) == [
        2,
        9,
        3,
    ]
    assert [number for number, _ in seen] == [0, 1, 2, 3]
    devices.close()


def test_an_error_comes_when_all_have_ended() -> None:
    ended = threading.Event()

    def slow() -> None:
        assert started.wait(20)
        ended.set()

    started = threading.Event()

    def fails() -> None:
        started.set()
        raise ValueError("full")

    devices = Devices()
    with pytest.raises(ValueError, match="full"):
        devices.run([(ONE, fails), (TWO, slow)])
    assert ended.is_set()
    devices.close()


def test_members_of_two_devices_step_side_by_side(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, seen = ("stories260K", "babyllama-361"), set()
    collect = HFSession.collect

    def noted(self: HFSession, pending: Any) -> torch.Tensor:
        seen.add(threading.current_thread().name)
        return collect(self, pending)

    request = RequestParams(max_tokens=12, speculation="off")
    with Ensemble(
        EnsembleParams(members=[str(shared / "models" / name) for name in names], fusion="unite")
    ) as owner:
        (alone,) = owner.generate(["Once upon a time"], request)
        owner._ready().members[1].device = torch.device("cpu", 0)  # another name of the same place
        monkeypatch.setattr(HFSession, "collect", noted)
        (apart,) = owner.generate(["Once upon a time"], request)
    assert [t.id for t in apart[0].tokens] == [t.id for t in alone[0].tokens]
    assert {"member-cpu_0", "member-cpu:0_0"} <= seen  # workers' own numbers follow
