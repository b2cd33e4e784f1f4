"""A command's exit codes and last words, seen from outside the process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def command(body: str, *arguments: str, debug: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command whose `main(argv)` has this body."""
    return subprocess.run(
        [sys.executable, "-c", script(body), *arguments],
        cwd=ROOT,
        env={**os.environ, "DETKIT_DEBUG": debug},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def script(body: str) -> str:
    return f"from detkit import cli\ndef main(argv):\n    {body}\ncli.run(main)"


def test_success_passes_the_arguments_and_exits_0() -> None:
    done = command("print(argv)", "a.yaml", "--device=cpu")
    assert (done.returncode, done.stdout, done.stderr) == (0, "['a.yaml', '--device=cpu']\n", "")


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ("raise ValueError('lr -1 is negative')", 2, "error: lr -1 is negative"),
        ("raise ValueError('faults:\\n  lr\\n\\n  eps')", 2, "error: faults: lr; eps"),
        ("raise ValueError", 2, "error: ValueError"),
        ("open('no/such file')", 2, "error: no/such file: No such file or directory"),
        ("raise FileNotFoundError('no images in data')", 2, "error: no images in data"),
        ("raise OSError(28, 'No space')", 2, "error: [Errno 28] No space"),
        ("raise FloatingPointError('loss rpn/box is nan')", 1, "error: loss rpn/box is nan"),
        ("raise KeyboardInterrupt", 130, "interrupted"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGINT)", 130, "interrupted"),
    ],
)
def test_failure_is_one_line_and_a_code(body: str, code: int, message: str) -> None:
    done = command(body)
    assert (done.returncode, done.stderr) == (code, f"{message}\n")


def test_usage_error_is_argparse_own() -> None:
    done = command("import argparse; argparse.ArgumentParser().parse_args(argv)", "--no-such-flag")
    assert done.returncode == 2
    assert done.stderr.startswith("usage:")


@pytest.mark.parametrize("error", ["KeyError('boxes')", "TypeError('None')", "AssertionError()"])
def test_our_own_fault_shows_its_traceback(error: str) -> None:
    done = command(f"raise {error}")
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")


def test_debug_shows_the_traceback_of_a_mistake() -> None:
    assert "Traceback" in command("raise ValueError('x')", debug="1").stderr
    assert "Traceback" not in command("raise ValueError('x')", debug="0").stderr


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ("[print('x' * 1000) for _ in range(1000)]", 141, ""),  # breaks while main runs
        ("print('x')", 141, ""),  # breaks when the buffer is written, at the end
        ("print('x'); raise ValueError('y')", 2, "error: y\n"),
    ],
)
def test_closed_pipe_is_quiet(body: str, code: int, message: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", script(body)],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (code, message)


def test_printed_text_stands_above_the_error() -> None:
    done = subprocess.run(
        [sys.executable, "-c", script("print('epoch 1'); raise ValueError('y')")],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "epoch 1\nerror: y\n"
