"""Sides of a comparison, each a process of its own that answers orders: one JSON line in, one out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

__all__ = ["Side", "sides"]


class Side:
    """A process that computes one side."""

    def __init__(self, command: list[str], environment: Mapping[str, str]) -> None:
        self._command = command
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **environment},
        )

    def ask(self, **order: object) -> Any:
        """Give an order and wait for the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(order), file=self._process.stdin, flush=True)
        if not (answer := self._process.stdout.readline()):
            sys.exit(f"{' '.join(self._command)} has stopped: start it and give it {json.dumps(order)} to see why")
        return json.loads(answer)

    def close(self) -> None:
        """Let the process end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@contextmanager
def sides(
    script: str, pythons: Mapping[str, str], environment: Mapping[str, str], *arguments: str
) -> Iterator[dict[str, Side]]:
    """One process for each side: a script beside this one, called with the name of the side and ``arguments``."""
    path = str(Path(__file__).with_name(script))
    with ExitStack() as stack:
        running = {name: Side([python, path, name, *arguments], environment) for name, python in pythons.items()}
        for side in running.values():
            stack.callback(side.close)
        yield running
