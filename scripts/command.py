"""The parts that commands share: `--help`, options, mistakes in one line, exit codes, JSON files."""

import json
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fed.config import usage
from fed.config.explain import in_one_line
from fed.errors import CannotContinue
from fed.files import write_whole, writing
from fed.tracking.line_files import plain
from scripts.options import described, read


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole; numbers that are not finite become null.

    Raises:
        CannotWrite: If the disk refuses it.
    """
    with writing(path):
        write_whole(path, (json.dumps(plain(content), ensure_ascii=False, indent=1) + "\n").encode())


@dataclass(frozen=True)
class Command:
    """A command, as its help page describes it.

    Attributes:
        call: How it is typed, without its options: "python -m scripts.generate POLICY [FILE...]".
        about: What it does, in one sentence.
        options: The dataclass of its options.
        uses: Examples, each with its meaning.
        results: What it writes, each with its meaning.
        page: The page of docs/ about it.
        names: The names of values that stand without a "=", of which the first `needed` must be there.
        needed: How many of them a call must have.
        more: The last of the names may stand several times.
    """

    call: str
    about: str
    options: type
    uses: Sequence[tuple[str, str]]
    results: Sequence[tuple[str, str]] = ()
    page: tuple[str, str] = ("docs/after_training.md", "what a policy can do once it is trained")
    names: Sequence[str] = ()
    needed: int = 0
    more: bool = False

    def help(self) -> str:
        """Return the page of `--help`."""
        sections = [
            (f"Usage: {self.call} OPTION=VALUE ...", ()),
            (self.about, ()),
            ("Uses", self.uses),
            ("Options, each with its default", described(self.options)),
            ("Results", self.results),
            ("The rest", (self.page,)),
        ]
        return usage.page_of(*(section for section in sections if section[1] or section in sections[:2]))

    def parse(self, arguments: Sequence[str]) -> tuple[list[str], Any]:
        """Return the values without a name, and the options.

        Raises:
            ValueError: If an argument is refused, or one is missing.
        """
        own = [argument for argument in arguments if argument.partition("=")[0].isidentifier() and "=" in argument]
        plain = [argument for argument in arguments if argument not in own]
        if flags := [argument for argument in plain if argument.startswith("-")]:
            raise ValueError(f"{flags[0]} is no option; expected OPTION=VALUE, and --help lists them")
        if len(plain) < self.needed or (len(plain) > len(self.names) and not self.more):
            raise ValueError(f"{self._expected(plain)}; e.g. {self.uses[0][0]}")
        return plain, read(self.options, own)

    def _expected(self, plain: Sequence[str]) -> str:
        if len(plain) < self.needed:
            return f"{self.names[len(plain)]} is missing"
        return f"{plain[len(self.names)]} is one too many; expected OPTION=VALUE behind {' '.join(self.names) or 'it'}"

    def main(self, arguments: Sequence[str], carry_out: Callable[[list[str], Any], int | None]) -> int:
        """Run the command.

        Returns:
            The exit code: 0; 1 if it ended early, with one line that says why and that what was done is kept; 2 for a
            mistake of the user's, in one line; 130 after Ctrl-C.
        """
        if {"--help", "-h"} & {*arguments}:
            print(self.help(), end="")
            return 0
        try:
            return carry_out(*self.parse(arguments)) or 0
        except ValueError as error:
            print(f"error: {in_one_line(str(error))}", file=sys.stderr)
            return 2
        except (CannotContinue, OSError) as error:
            print(f"error: {in_one_line(str(error))}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("stopped; what was done is kept", file=sys.stderr)
            return 128 + signal.SIGINT
