"""The page of `python main.py --help`."""

import re
import shutil
import textwrap
from collections.abc import Iterable, Iterator

from fed.config import choices
from fed.config.explain import listed
from fed.config.meaning import shown, value_of
from fed.config.schema import GROUPS, PRESETS, Config, every_key

WIDEST = 100  # columns
# The keys that most runs set; docs/settings.md has all.
KEYS = (
    *("model.name_or_path", "datasets", "data_dir", "max_length", "client_num_in_total", "clients_per_round"),
    *("comm_round", "mode", "local_epochs", "batch_size", "optimizer", "lr", "temp", "decay_rate", "alpha"),
    *("lora.r", "precision", "seed", "exp_name", "output_dir", "resume"),
)
USES = (
    ("python main.py", "the demo: ten clients, synthetic dialogues, a tiny model"),
    ("python main.py model=gpt2 datasets=[hh] comm_round=20", "GPT-2 on Anthropic's dialogues, from the hub"),
    (
        "python main.py model=gpt2 datasets=[files] data_dir=mine.jsonl lr=1e-6",
        "pairs of your own, one object per line",
    ),
    ("python main.py strategy=fedavg partition=dirichlet", "another strategy, clients that differ"),
    ("python main.py mode=centralized", "the same pairs without a federation"),
    ("python main.py temp=0,0.1,1 seed=0,1,2 --multirun", "a sweep of nine runs"),
    ("python main.py resume=latest", "go on with the newest run of exp_name"),
)
FLAGS = (
    ("--cfg job", "print all settings of the run, and do not run it"),
    ("--multirun", "one run for each combination of values; the flag stands last"),
    ("--version", "print the versions of this program, torch and Flower"),
    (
        "--shell-completion install=bash",
        'complete keys by Tab: eval "$(python main.py --shell-completion install=bash)"',
    ),
)
THE_REST = (
    ("docs/settings.md", "every key with its default, meaning and range"),
    ("docs/training.md", "examples for most tasks"),
    ("docs/README.md", "all pages: comparing, several GPUs, privacy, deployment, ..."),
    ("python scripts/compare.py --help", "federated against centralised and local training, with several seeds"),
)


def page() -> str:
    """Return the page, as wide as the terminal but no wider than `WIDEST` columns."""
    keys = ((f"{name}={shown(value_of(Config(), name))}", every_key()[name].doc) for name in KEYS)
    usual = choices.usual()
    groups = ((f"{group}={usual.get(group) or ''}", listed(choices.names(group))) for group in GROUPS)
    presets = ((f"{PRESETS}={path.stem}", choices.comment(path)) for path in choices.files(PRESETS))
    return page_of(
        ("Usage: python main.py KEY=VALUE KEY=VALUE ...", ()),
        ("Uses", USES),
        ("Keys, each with its default; model=demo sets smaller values of its own", keys),
        ("Groups, each with its default: GROUP=NAME takes a file of config/GROUP/", groups),
        ("Presets: several settings at once; what is typed wins", presets),
        ("Flags", FLAGS),
        ("The rest", THE_REST),
    )


def page_of(*sections: tuple[str, Iterable[tuple[str, str]]]) -> str:
    """Return a page of sections, each of a title and rows of a term and what it means."""
    return "\n".join(line for title, rows in sections for line in (*_section(title, rows), "")).rstrip() + "\n"


def _section(title: str, rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield the title and the rows of a section, in two columns."""
    yield title
    rows = list(rows)
    width = min(max(shutil.get_terminal_size((WIDEST, 0)).columns, 40), WIDEST)
    first = min(max((len(term) for term, _ in rows), default=0), width // 3)
    for term, meaning in rows:
        lines = textwrap.wrap(_plain(meaning), width - first - 4, break_on_hyphens=False)
        if len(term) > first:
            yield f"  {term}"
            term = ""
        yield f"  {term:{first}}  {lines[0]}"
        yield from (f"  {'':{first}}  {line}" for line in lines[1:])


def _plain(text: str) -> str:
    """Return Markdown of the docs as text: no backticks, and pages by their paths."""
    return re.sub(r"\[[^]]+\]\(([^)]+)\)", r"docs/\1", text).replace("`", "")
