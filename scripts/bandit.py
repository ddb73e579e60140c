"""Compare AI feedback with a teacher's answers on a bandit: `python -m scripts.bandit OPTION=VALUE ...`."""

import io
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from fed.files import write_whole, writing
from fed.reports.style import COLOURS, GREY, GRID, dress, new_figure
from scripts.command import Command
from scripts.options import at_least, option

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from feedback.bandit import Outcome
    from feedback.winrates import Floats

MOST_PAIRS = 10_000_000  # more would need gigabytes
LOOKS = {  # colour and dashes of each policy
    "student": (COLOURS[5], "--"),
    "RLAIF": (COLOURS[1], "-"),
    "SFT": (COLOURS[0], "-"),
    "teacher": (COLOURS[6], "--"),
}
MIDDLE = 0.95  # share of the student's draws whose arms the picture shades


@dataclass(frozen=True)
class Options:
    """The options of the command."""

    student: float = option(40.0, "The arm about which the student draws; arms are 0 to 99, and that is their reward.")
    teacher: float = option(80.0, "The arm about which the teacher draws.")
    pairs: int = option(250_000, "So many pairs of the student's are judged, and so many answers of the teacher's.")
    steps: int = option(7_500, "Steps of gradient descent that fit the reward to the pairs.")
    sft_steps: int = option(15_000, "Steps of gradient descent that fit the SFT policy to the teacher's answers.")
    lr: float = option(0.01, "The learning rate of both.")
    beta: float = option(0.1, "How strongly the student holds RLAIF's policy, student * exp(reward / beta).")
    seed: int = option(0, "All draws depend on it.")
    out: str | None = option(None, "A file for the picture, NAME.png; null: none.")


COMMAND = Command(
    "python -m scripts.bandit",
    "Compares two ways to teach a student on a bandit with 100 arms, the synthetic experiment of arXiv 2402.12366: "
    "RLAIF from judged pairs of the student's own draws, and SFT on the draws of a teacher.",
    Options,
    (
        ("python -m scripts.bandit out=bandit.png", "as published: a weak student and a strong teacher"),
        ("python -m scripts.bandit student=75", "a student that is nearly as strong as its teacher"),
        ("python -m scripts.bandit steps=75000 sft_steps=150000", "fits that come ten times as far"),
    ),
    (("OUT", "the four policies with their mean rewards, and the learned reward beside the true one"),),
    page=("docs/ai_feedback.md", "asking, judging and what to do with it"),
)


def main(arguments: Sequence[str]) -> int:
    """Run the command line and return the exit code."""
    return COMMAND.main(arguments, carry_out)


def carry_out(_: list[str], options: Options) -> None:
    """Print the mean true reward of each policy, and draw the policies.

    Raises:
        ValueError: For a mistake of the user's.
        CannotWrite: If the disk refuses the picture.
    """
    _check(options)
    from feedback.bandit import Setting, mean_reward, outcome_of

    chosen = {item.name: getattr(options, item.name) for item in fields(Setting)}
    outcome = outcome_of(Setting(**chosen))
    print("mean true reward, of arms worth 0 to 99:")
    for name, policy in policies(outcome).items():
        print(f"  {name:8} {mean_reward(policy):5.2f}")
    print(reason(outcome))
    if options.out is not None:
        drawn = io.BytesIO()
        figure(outcome).savefig(drawn, format="png")
        with writing(Path(options.out)):
            write_whole(Path(options.out), drawn.getvalue())


def _check(options: Options) -> None:
    """Refuse values out of their range.

    Raises:
        ValueError: If there is one.
    """
    at_least(1, pairs=options.pairs, steps=options.steps, sft_steps=options.sft_steps)
    at_least(0, seed=options.seed)
    if options.pairs > MOST_PAIRS:
        raise ValueError(f"pairs={options.pairs} is too large; expected at most {MOST_PAIRS}")
    for name, value in (("student", options.student), ("teacher", options.teacher)):
        if not 0 <= value <= 99:
            raise ValueError(f"{name}={value:g} is no arm; expected a number from 0 to 99")
    if not 0 < options.lr <= 1:
        raise ValueError(f"lr={options.lr:g} is out of range; expected a number above 0, and 1 at most")
    if not 0 < options.beta < math.inf:
        raise ValueError(f"beta={options.beta:g} is out of range; expected a number above 0")
    if options.out is not None and Path(options.out).suffix != ".png":
        raise ValueError(f"out={options.out} is no PNG file; expected a name that ends in .png, e.g. out=bandit.png")


def policies(outcome: "Outcome") -> dict[str, "Floats"]:
    """Return the policies by name; the two that learn stand between the two that they learn from."""
    return {"student": outcome.student, "RLAIF": outcome.rlaif, "SFT": outcome.sft, "teacher": outcome.teacher}


def reason(outcome: "Outcome") -> str:
    """Return the reason for the order of SFT and RLAIF, in one sentence with its numbers."""
    from feedback.bandit import mean_reward, share_from

    sft, rlaif = mean_reward(outcome.sft), mean_reward(outcome.rlaif)
    share = f"{100 * share_from(outcome.student, sft):.1f} % of the student's draws reach SFT's mean of {sft:.1f}"
    if sft > rlaif:
        return (
            f"SFT ends {sft - rlaif:.1f} above RLAIF: it copies what the teacher draws, while only {share}, so that "
            "pairs of them say little about better arms; a stronger student may turn the order."
        )
    return (
        f"RLAIF ends {rlaif - sft:.1f} above SFT: {share}, so that pairs of them tell which arms are better still, "
        "while SFT only copies its teacher; a weaker student or a stronger teacher may turn the order."
    )


def figure(outcome: "Outcome") -> "Figure":
    """Draw the policies, and below them the reward that was learned beside the true one."""
    made = new_figure(8.0, 6.4)
    above, below = made.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for axes in (above, below):
        dress(axes)
        _shade(axes, outcome.student)
    _draw_policies(above, outcome)
    _draw_rewards(below, outcome)
    return made


def _shade(axes: "Axes", student: "Floats") -> None:
    """Shade the arms that the student mostly draws: the judge sees few pairs of the others."""
    low, high = student.cumsum().searchsorted([(1 - MIDDLE) / 2, (1 + MIDDLE) / 2])
    label = f"{100 * MIDDLE:.0f} % of the student's draws"
    axes.axvspan(low - 0.5, high + 0.5, color=GRID, alpha=0.6, linewidth=0, label=label)


def _draw_policies(axes: "Axes", outcome: "Outcome") -> None:
    from feedback.bandit import TRUE_REWARDS, mean_reward

    for name, policy in policies(outcome).items():
        colour, dash = LOOKS[name]
        label = f"{name}: mean reward {mean_reward(policy):.1f}"
        axes.plot(TRUE_REWARDS, policy, color=colour, linestyle=dash, linewidth=2.0, label=label)
    axes.set_ylabel("probability of the arm")
    axes.set_ylim(bottom=0)
    axes.set_xlim(TRUE_REWARDS[0], TRUE_REWARDS[-1])
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)


def _draw_rewards(axes: "Axes", outcome: "Outcome") -> None:
    from feedback.bandit import TRUE_REWARDS

    arms = TRUE_REWARDS
    learned = axes.plot(arms, outcome.rewards, color=COLOURS[2], linewidth=2.0, label="learned reward (left axis)")
    axes.set_ylabel("learned reward (nats)")
    axes.set_xlabel("arm (its number is its true reward)")
    true_axes = axes.twinx()
    true = true_axes.plot(
        arms, TRUE_REWARDS, color=GREY, linestyle=":", linewidth=2.0, label="true reward (right axis)"
    )
    true_axes.set_ylabel("true reward")
    true_axes.spines["top"].set_visible(False)
    axes.legend(handles=[*learned, *true], loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, frameon=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
