"""Options of small online runs, and the lines of their metrics."""

import json
from pathlib import Path
from typing import Any

RULE = 'online.rule="{per_word: 1}"'
ONLINE = ("online.judge=lexicon", RULE, "online.max_new_tokens=16", "max_length=112", "max_prompt_length=96")


def lines(run: Path, split: str, who: str = "client") -> list[dict[str, Any]]:
    found = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in found if line["split"] == split and line["who"].startswith(who)]
