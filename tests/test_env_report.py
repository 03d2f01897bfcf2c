"""`python -m kradagrad_ext.env_report`, and the record of the build that it reads."""

import json
import os
import platform
import subprocess
import sys

import pytest
import torch

from kradagrad_ext import backends, build_info, env_report


def test_report_names_versions_and_every_backend():
    text = env_report.report()
    facts = ("kradagrad_ext", platform.python_version(), torch.__version__, "triton", "torch threads", "cuda")
    for fact in facts:
        assert fact in text
    for name, reason in backends.available_backends(torch.device("cpu")).items():
        (line,) = (line for line in text.splitlines() if line.startswith(f"cpu backend {name} "))
        assert line.endswith("usable" if reason is None else reason)


def test_command_prints_the_report(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-m", "kradagrad_ext.env_report"]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == env_report.report()
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (
            {"requested": "auto", "native": "cpu", "reason": None, "compiler": "c++ 12", "torch": "2.10.0"},
            "cpu, KRADAGRAD_BUILD=auto, c++ 12, torch 2.10.0",
        ),
        ({"requested": "none", "native": "none", "reason": "left out"}, "none: left out"),
        (None, "none: the package was not installed"),
    ],
)
def test_report_states_how_the_library_was_built(monkeypatch, tmp_path, record, expected):
    path = tmp_path / "_build.json"
    if record is not None:
        path.write_text(json.dumps(record))
    monkeypatch.setattr(build_info, "RECORD", path)
    assert expected in env_report.report()


def test_the_record_is_read_once(monkeypatch, tmp_path):
    """Every step needs it."""
    path = tmp_path / "_build.json"
    path.write_text(json.dumps({"requested": "cpu", "native": "cpu", "reason": None}))
    monkeypatch.setattr(build_info, "RECORD", path)
    read = build_info.read_build_info()
    path.unlink()
    assert build_info.read_build_info() is read


def test_report_distinguishes_a_missing_device_from_a_build_without_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "13.0, no usable device" in env_report.report()
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built without CUDA" in env_report.report()
