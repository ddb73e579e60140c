"""One record of a data set, whose fields are checked when they are asked for."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field


class Unusable(Exception):
    """Raised where a record lacks what a pair needs; the reason is counted, and the next record is read."""


HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # JSON can write it, UTF-8 and so a tokenizer cannot


@dataclass(frozen=True, slots=True)
class Record:
    """One line or row of a file, or one row of the hub; fields are checked when they are asked for."""

    where: str  # "path:line" or "path, row n", for messages
    part: str  # the file's name without -train or -test, or the hub's folder
    fields: Mapping[str, object]
    read: set[str] = field(default_factory=set)  # names of the fields that were asked for, here and in earlier records

    def text(self, name: str) -> str:
        """Return a string field that can be encoded."""
        value = self._field(name)
        if not isinstance(value, str):
            raise self.wrong(name, "a string")
        return whole_text(value, self.where, name)

    def label(self, name: str) -> str | None:
        """Return a field that is a string or a number, as text; None if there is none, or it is null or NaN.

        1.0 is 1: pandas writes whole numbers so if a column lacks some.
        """
        self.read.add(name)
        value = self.fields.get(name)
        if value is not None and not isinstance(value, str | int | float):
            raise self.wrong(name, "a string or a number")
        return as_label(value, self.where, name)

    def number(self, name: str) -> float:
        """Return a field that is an int or a float."""
        value = self._field(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(name, "a number")
        return value

    def records(self, name: str) -> "list[Record]":
        """Return a field that is a list of objects, each as a record."""
        value = self._field(name)
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self.wrong(name, "a list of objects")
        return [Record(self.where, self.part, item) for item in value]

    def value(self, name: str) -> object:
        """Return a field as it is; None if there is none, or it is NaN, as pandas writes what is missing."""
        self.read.add(name)
        value = self.fields.get(name)
        return None if value != value else value

    def has(self, *names: str) -> bool:
        """Return True if the record has all these fields, null or not."""
        return all(name in self.fields for name in names)

    def wrong(self, name: str, expected: str) -> ValueError:
        """Return the error of a field that is something other than expected."""
        return ValueError(f"{self.where}: {name!r} is {type(self.fields.get(name)).__name__}, expected {expected}")

    def _field(self, name: str) -> object:
        self.read.add(name)
        if name not in self.fields:
            raise ValueError(f"{self.where}: no field {name!r}; the record has {self.names()}")
        return self.fields[name]

    def names(self) -> str:
        """Return the names of the record's fields, the first eight of them."""
        return ", ".join(f"{name!r:.40}" for name in list(self.fields)[:8]) or "no field"


def whole_text(text: str, where: str, name: str) -> str:
    """Return the text.

    Raises:
        ValueError: If it holds half of a character, which no tokenizer can read.
    """
    if not text.isascii() and HALF_CHARACTER.search(text):
        raise ValueError(f"{where}: {name!r} holds half of a \\ud800-\\udfff pair, expected whole characters")
    return text


def as_label(value: object, where: str, name: str) -> str | None:
    """Return a string, a number or a truth value as text; None if it is null, NaN or anything else."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and not math.isfinite(value):
        return None if value != value else str(value)
    if isinstance(value, int | float):
        return str(int(value) if isinstance(value, float) and value.is_integer() else value)
    return whole_text(value, where, name) if isinstance(value, str) else None
