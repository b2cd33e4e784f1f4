"""How every command ends: its exit code and the one line it says when something is wrong.

Exit codes: 0 done, 1 a computation failed (a loss that is not finite, memory), 2 a user's mistake,
130 interrupted, 143 terminated. Anything else is a fault of detkit and ends with its traceback;
with `DETKIT_DEBUG=1` in the environment so do the user's mistakes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NoReturn

from detkit.signals import Terminated

COMPUTATION_FAILED = 1
USER_MISTAKE = 2  # what argparse uses
INTERRUPTED = 130  # 128 + SIGINT, as the shell has it
BROKEN_PIPE = 141  # 128 + SIGPIPE
TERMINATED = 143  # 128 + SIGTERM


def run(main: Callable[[list[str]], None]) -> NoReturn:
    """Call a command's `main` with the command line and leave the process.

    Args:
        main: takes the arguments without the program's name. It reports a user's mistake as a
            ValueError or OSError, and numbers gone wrong as a FloatingPointError.

    Raises:
        SystemExit: always, with the exit code of the command.
    """
    debug = os.environ.get("DETKIT_DEBUG", "") not in ("", "0")
    try:
        main(sys.argv[1:])
        sys.stdout.flush()  # a closed pipe must show here, not in the interpreter's last breath
    except KeyboardInterrupt as interrupt:
        _leave(f"interrupted{f'; {interrupt}' if interrupt.args else ''}", INTERRUPTED)
    except Terminated as order:
        _leave(f"terminated{f'; {order}' if order.args else ''}", TERMINATED)
    except BrokenPipeError:  # the reader has gone (`| head`): nobody is left to tell
        _forget_output()
        sys.exit(BROKEN_PIPE)
    except (FloatingPointError, ValueError, OSError) as error:
        if debug:
            raise
        failed = isinstance(error, FloatingPointError)
        _leave(f"error: {one_line(error)}", COMPUTATION_FAILED if failed else USER_MISTAKE)
    except RuntimeError as error:  # torch's class, by its name: a command need not import torch
        message = None if debug else _explain(error)
        if message is None:
            raise
        _leave(f"error: {message}", COMPUTATION_FAILED)
    sys.exit(0)


def _explain(error: RuntimeError) -> str | None:
    """What happened to the machine, where that is what torch complains about."""
    if type(error).__name__ == "OutOfMemoryError":
        advice = "lower train.batch_size, test.batch_size or data.resize, or set train.amp=auto"
        return f"the GPU's memory is full; {advice}"
    if "DataLoader worker" in str(error):
        advice = "if memory was full, lower data.workers or train.batch_size"
        return f"a process that reads pictures has died ({one_line(error).rstrip(' .')}); {advice}"
    if "by peer" in str(error):  # gloo's and nccl's connections
        return "another process of this training has ended; what it said tells why"
    return None


def one_line(error: Exception) -> str:
    """The message of an error without line breaks; a file's name comes first."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    lines = (" ".join(line.split()) for line in str(error).splitlines())
    joined = "; ".join(line for line in lines if line)
    return joined.replace(":; ", ": ") or type(error).__name__


def _leave(message: str, code: int) -> NoReturn:
    try:
        sys.stdout.flush()  # what the command printed stands above its last line, also in a file
    except BrokenPipeError:
        _forget_output()
    sys.stderr.write(f"{message}\n")
    sys.exit(code)


def _forget_output() -> None:
    """Let what is still buffered for a closed pipe vanish: writing it would fail again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
