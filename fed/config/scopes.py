"""Keys by their scope: what they decide, who decides them, and what `resume=` does with them."""

from fed.config.meaning import Decider, OnResume, Role
from fed.config.schema import every_key


def of_role(*roles: Role) -> tuple[str, ...]:
    """Return the keys of these roles."""
    return tuple(name for name, known in every_key().items() if known.scope.role in roles)


def decided_by(decider: Decider) -> tuple[str, ...]:
    """Return the keys that the run, a node, or a node's machine decides."""
    return tuple(name for name, known in every_key().items() if known.scope.decider == decider)


def on_resume(rule: OnResume) -> tuple[str, ...]:
    """Return the keys with this rule for `resume=`."""
    return tuple(name for name, known in every_key().items() if known.scope.resume == rule)
