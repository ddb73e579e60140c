"""Write docs/settings.md from the schema and the files of config/: `make docs`."""

import sys
from collections import Counter
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from fed.config import choices, effect
from fed.config.explain import in_words
from fed.config.meaning import Key, shown, value_of
from fed.config.schema import GROUPS, OPEN_GROUPS, PRESETS, Config, GroupKeys, flat

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "settings.md"
INTRODUCTION = """# Settings

<!-- `make docs` writes this page from fed/config/ and config/. Change it there. -->

`python main.py KEY=VALUE KEY=VALUE ...` sets keys. `strategy=fedavg` chooses a file of `config/strategy/`, and
`strategy.fraction_evaluate=1.0` changes a parameter in it. `+loss.delta=2` adds a parameter that a class or function of
your own takes. `python main.py --cfg job` prints all settings of a run without running it. A wrong key or value, and a
key without effect, stop the run before anything is written.

- Lists are written `[a,b]`, and `null` stands for "none given".
- *May change on resume*: the key can be given with `resume=`.
- *A node may decide it*: a SuperNode can set the key with `--node-config`, see [deployment.md](deployment.md).
- The default is that of the key itself. A chosen file may set another one: `model=demo`, which `python main.py` runs,
  sets `comm_round`, `lr` and others.
"""


def main() -> int:
    """Write the page; return exit code 0."""
    PAGE.write_text(page(), encoding="utf-8")
    return 0


def page() -> str:
    """Return the whole page."""
    sections = [base for base in reversed(Config.__bases__) if base is not GroupKeys]
    parts = [INTRODUCTION]
    for section in sections:
        title, _, more = (section.__doc__ or "").partition("\n")
        parts.append(_keys(title.rstrip("."), more.strip(), section, ""))
    for section in (GroupKeys, *sections):
        parts += [_group(item.name, item.type) for item in fields(section) if _is_group(item.type)]
    parts.append("## Choices\n\nEach file of `config/GROUP/` is a choice, `GROUP=NAME`.\n")
    parts += [_choices(group) for group in (PRESETS, *GROUPS)]
    return "\n".join(parts)


def _is_group(kind: Any) -> bool:
    return isinstance(kind, type) and is_dataclass(kind)


def _group(name: str, schema: Any) -> str:
    return _keys(f"`{name}.*`", " ".join(str(schema.__doc__).split()), schema, f"{name}.")


def _keys(title: str, more: str, section: Any, prefix: str) -> str:
    """Return a heading and the table of a section's keys."""
    lines = [
        f"## {title}",
        "",
        *([more, ""] if more else []),
        "| key | default | value | meaning |",
        "|---|---|---|---|",
    ]
    for item in fields(section):
        if "key" in item.metadata:
            name, known = prefix + item.name, item.metadata["key"]
            default = value_of(Config(), name)
            lines.append(f"| `{name}` | `{shown(default)}` | {_value(item.type, known)} | {_meaning(name, known)} |")
    return "\n".join(lines) + "\n"


def _value(kind: Any, known: Key) -> str:
    limits = f", {known.limits.text}" if known.limits else ""
    listed = ", ".join(f"`{choice}`" for choice in known.choices)
    return _cell(listed or in_words(kind).replace(" or null", "") + limits)


def _meaning(name: str, known: Key) -> str:
    found = [known.doc]
    if known.read_by is not None:
        found.append(f"Read by {_readers(*known.read_by)}.")
    if reasons := [_setting(idle.reason) for idle in known.idle if idle.key != name]:
        found.append(f"Without effect with {' or '.join(reasons)}.")
    if known.scope.resume == "free":
        found.append("*May change on resume.*")
    if known.scope.decider != "run":
        found.append("*A node may decide it.*")
    return _cell(" ".join(found))


def _readers(group: str, read: str) -> str:
    """Return the choices of a group whose files read a key."""
    files = choices.files(group)
    reading = [path for path in files if effect.reads(path.read_text(encoding="utf-8"), read)]
    return f"every `{group}=`" if reading == files else ", ".join(f"`{group}={path.stem}`" for path in reading)


def _setting(reason: str) -> str:
    """Return the setting that a reason names, without the explanation: "debug=true, which saves no model"."""
    setting = reason.partition(",")[0]
    return f"`{setting}`" if "=" in setting else setting


def _choices(group: str) -> str:
    """Return the table of a group's files, with their parameters where the schema does not list them."""
    rows = [["choice", "meaning"], ["---", "---"]]
    rows += [[f"`{path.stem}`", _cell(choices.comment(path))] for path in choices.files(group)]
    more = ""
    if group in OPEN_GROUPS:
        parameters = _parameters(group)
        counts = Counter(each for found in parameters.values() for each in found)
        usual = [each for each, count in counts.items() if count > len(parameters) / 2]
        lacking = [f"`{name}`" for name, found in parameters.items() if not {*usual} <= {*found}]
        but = f" but {' and '.join(lacking)}" if lacking else ""
        more = "\n".join([f"All files{but} also have:", "", *(f"- {each}" for each in usual), ""])
        cells = [", ".join(each for each in found if each not in usual) for found in parameters.values()]
        rows = [[*row, cell] for row, cell in zip(rows, ["parameters", "---", *cells], strict=True)]
    return "\n".join(
        [f"### `{group}=`", "", *(f"| {' | '.join(row)} |" for row in rows), "", *([more] if more else [])]
    )


def _parameters(group: str) -> dict[str, list[str]]:
    """Return the parameters in each file of a group, as typed."""
    found = {}
    for path in choices.files(group):
        own = flat(choices.own(path, group))
        found[path.stem] = [f"`{key}: {shown(value)}`" for key, value in own if not key.endswith("_target_")]
    return found


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
