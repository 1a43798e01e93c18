"""What a result says it was measured on."""

import re
from pathlib import Path

import pytest

from puma_plugin.experiments.reporting.machine import cpu_model, cpu_name, machine_facts

CORE = "processor\t: {}\ncpu family\t: 26\nmodel\t\t: 2\nmodel name\t: AMD EPYC\nflags\t: fpu\n\n"


def test_of_this_machine() -> None:
    facts = machine_facts()
    assert facts["cpu"] == cpu_name() != ""
    assert facts["cpu_model"] is None or re.fullmatch(r"family \d+, model \d+", facts["cpu_model"])
    assert facts["cores"] >= 1
    assert facts["memory_gib"] > 0.1


def test_a_name_that_says_little_has_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: CORE.format(0) + CORE.format(1))
    assert (cpu_name(), cpu_model()) == ("AMD EPYC", "family 26, model 2")


def test_systems_that_do_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "processor\t: 0\nFeatures\t: fp asimd\n")
    assert cpu_model() is None
    assert cpu_name() != ""

    def missing(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert cpu_model() is None
    assert cpu_name() != ""
