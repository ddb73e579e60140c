"""docs/settings.md is what `make docs` writes."""

from fed.config.schema import CONFIG_DIR, every_key
from scripts import settings_page


def test_the_page_is_not_stale() -> None:
    assert settings_page.PAGE.read_text() == settings_page.page(), "run make docs"


def test_the_page_has_every_key_and_every_choice() -> None:
    rows = [line.split("`")[1] for line in settings_page.page().splitlines() if line.startswith("| `")]
    assert sorted(rows) == sorted([*every_key(), *(path.stem for path in CONFIG_DIR.glob("*/*.yaml"))])
