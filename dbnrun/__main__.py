"""The command, as `dbnrun` and as `python -m dbnrun`: signals are taken note of before anything is imported."""

from __future__ import annotations

import sys

from dbnrun import interrupt


def main() -> int:
    """Run the command that was typed; returns its exit code."""
    interrupt.note_signals()
    from dbnrun import cli  # noqa: PLC0415 - the signals first

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
