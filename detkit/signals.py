"""The order to end, of which engine and command line both know."""

from __future__ import annotations


class Terminated(BaseException):
    """The process was asked to end (SIGTERM); like KeyboardInterrupt no fault to be handled."""
