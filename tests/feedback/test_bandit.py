"""The bandit by hand, by the rows of the published experiment, by its laws, and as a command."""

import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from feedback.bandit import (
    ARMS,
    TRUE_REWARDS,
    Floats,
    Outcome,
    Setting,
    around,
    fitted_rewards,
    imitated,
    mean_reward,
    optimised,
    outcome_of,
    preferences,
    reward_gradient,
    share_from,
)
from scripts.bandit import Options, figure, main, policies, reason

ROOT = Path(__file__).parents[2]
MOST_SECONDS = 30.0
PUBLISHED = Setting(**{name: value for name, value in asdict(Options()).items() if name != "out"})
SHORT = ("pairs=500", "steps=20", "sft_steps=20")


@pytest.fixture(scope="module")
def published() -> Outcome:
    return outcome_of(PUBLISHED)


def drawn(pairs: int = 3_000) -> np.ndarray:
    found = np.random.default_rng(3).choice(ARMS, size=(pairs, 2), p=around(40.0))
    assert (found[:, 0] == found[:, 1]).any(), "otherwise equal arms are not tried"
    return found


def gradient_of_rows(rewards: Floats, rows: np.ndarray) -> Floats:
    """Return the gradient that torch computes from single pairs, as the published notebook does."""
    learned = torch.tensor(rewards, requires_grad=True)
    first, second = torch.tensor(rows).unbind(1)
    signs = (first > second).double() * 2 - 1
    loss = -torch.nn.functional.logsigmoid((learned[first] - learned[second]) * signs).mean()
    (found,) = torch.autograd.grad(loss, learned)
    return found.numpy()


def test_the_gradient_of_three_pairs_by_hand() -> None:
    """With rewards 0 each pair moves its two arms by half; the pair of equal arms counts in the mean only."""
    preferred = preferences(np.array([[7, 5], [5, 7], [9, 9], [7, 9]]))
    assert (preferred[7, 5], preferred[9, 9], preferred[9, 7], preferred.sum()) == (2, 1, 1, 4)
    expected = np.zeros(ARMS)
    expected[[5, 7, 9]] = 2 * 0.5 / 4, (-2 * 0.5 + 0.5) / 4, -0.5 / 4
    np.testing.assert_array_equal(reward_gradient(np.zeros(ARMS), preferred), expected)


def test_the_gradient_from_counts_is_that_from_single_pairs() -> None:
    rows = drawn()
    for scale in (0.0, 1.0, 30.0):
        rewards = scale * np.random.default_rng(4).normal(size=ARMS)
        found = reward_gradient(rewards, preferences(rows))
        np.testing.assert_allclose(found, gradient_of_rows(rewards, rows), rtol=1e-12, atol=1e-15)


def test_both_fits_are_those_that_torch_makes_of_rows() -> None:
    rows, rewards, logits = drawn(300), np.zeros(ARMS), torch.zeros(ARMS, dtype=torch.float64, requires_grad=True)
    for _ in range(50):
        rewards = rewards - 0.5 * gradient_of_rows(rewards, rows)
    np.testing.assert_allclose(fitted_rewards(preferences(rows), 50, 0.5), rewards, rtol=1e-12, atol=1e-15)
    answers = torch.tensor(rows[:, 0])
    optimizer = torch.optim.SGD([logits], lr=0.5)
    for _ in range(50):
        optimizer.zero_grad()
        (-torch.log_softmax(logits, 0)[answers].mean()).backward()
        optimizer.step()
    found = imitated(np.bincount(rows[:, 0], minlength=ARMS), 50, 0.5)
    np.testing.assert_allclose(found, torch.softmax(logits, 0).detach().numpy(), rtol=1e-12)


def test_equal_arms_move_no_reward_but_make_each_step_shorter() -> None:
    rows = drawn()
    unequal = rows[rows[:, 0] != rows[:, 1]]
    rewards = np.random.default_rng(5).normal(size=ARMS)
    with_equal, without = (reward_gradient(rewards, preferences(each)) for each in (rows, unequal))
    np.testing.assert_allclose(with_equal * len(rows), without * len(unequal), rtol=1e-9, atol=1e-9)


def test_the_optimised_policy_has_the_largest_reward_minus_divergence() -> None:
    student, rewards, beta = around(40.0), np.random.default_rng(6).normal(size=ARMS), 0.3
    best = optimised(student, rewards, beta)

    def value(policy: Floats) -> float:
        return float(policy @ rewards - beta * (policy * np.log(policy / student)).sum())

    assert value(best) == pytest.approx(beta * np.log(student @ np.exp(rewards / beta)))
    for other in (around(50.0), student, optimised(student, rewards, 0.4)):
        assert value(other) < value(best)


def test_a_tiny_beta_draws_the_best_arm_only_and_a_huge_one_the_student() -> None:
    student, rewards = around(40.0), np.sin(TRUE_REWARDS)
    assert optimised(student, rewards, 1e-300)[rewards.argmax()] == 1
    np.testing.assert_allclose(optimised(student, rewards, 1e12), student)


def test_means_and_shares_by_hand() -> None:
    policy = np.zeros(ARMS)
    policy[[10, 20, 99]] = 0.5, 0.25, 0.25
    assert mean_reward(policy) == 5 + 5 + 24.75
    assert [share_from(policy, reward) for reward in (10, 10.5, 20, 99)] == [1, 0.5, 0.5, 0.25]


def test_the_order_and_the_means_are_those_of_the_published_experiment(published: Outcome) -> None:
    means = {name: mean_reward(policy) for name, policy in policies(published).items()}
    assert means == pytest.approx({"student": 40.0, "RLAIF": 51.8, "SFT": 70.7, "teacher": 78.5}, abs=0.15)
    assert list(means.values()) == sorted(means.values())
    for policy in policies(published).values():
        assert policy.shape == (ARMS,) and policy.sum() == pytest.approx(1)
    assert reason(published).startswith("SFT ends 18.")


def test_a_stronger_student_turns_the_order() -> None:
    outcome = outcome_of(replace(PUBLISHED, student=75.0))
    assert mean_reward(outcome.rlaif) > mean_reward(outcome.teacher) > mean_reward(outcome.sft)
    assert reason(outcome).startswith("RLAIF ends 16.")


def test_the_same_seed_gives_the_same_policies_and_another_one_others(published: Outcome) -> None:
    again, other = outcome_of(PUBLISHED), outcome_of(replace(PUBLISHED, seed=1))
    for name in asdict(published):
        np.testing.assert_array_equal(getattr(again, name), getattr(published, name))
    assert not np.array_equal(other.rewards, published.rewards) and not np.array_equal(other.sft, published.sft)
    assert mean_reward(other.rlaif) == pytest.approx(mean_reward(published.rlaif), abs=0.3)


def test_the_answers_of_the_teacher_do_not_depend_on_the_student(published: Outcome) -> None:
    other = outcome_of(replace(PUBLISHED, student=60.0, steps=1))
    np.testing.assert_array_equal(other.sft, published.sft)


def test_the_picture_names_each_policy_with_its_mean_reward(published: Outcome) -> None:
    above, below, right = figure(published).axes
    texts = [text.get_text() for text in above.get_legend().get_texts()]
    for name, policy in policies(published).items():
        assert f"{name}: mean reward {mean_reward(policy):.1f}" in texts
    (learned,), (true,) = below.lines, right.lines
    np.testing.assert_array_equal(learned.get_ydata(), published.rewards)
    np.testing.assert_array_equal(true.get_ydata(), TRUE_REWARDS)


def test_the_command_prints_and_draws_the_same_each_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for name in ("one.png", "folder/two.png"):
        assert main([*SHORT, f"out={tmp_path / name}"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] and said[0].count("\n") == 6
    assert [line.split()[0] for line in said[0].splitlines()[1:5]] == ["student", "RLAIF", "SFT", "teacher"]
    one, two = (tmp_path / "one.png").read_bytes(), (tmp_path / "folder" / "two.png").read_bytes()
    assert one == two and one.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("student=100", "student=100 is no arm; expected a number from 0 to 99"),
        ("teacher=nan", "teacher=nan is no arm"),
        ("student=strong", "student=strong is of the wrong type"),
        ("pairs=0", "pairs=0 is too small"),
        ("pairs=1000000000", "pairs=1000000000 is too large; expected at most 10000000"),
        ("steps=0", "steps=0 is too small"),
        ("sft_steps=-1", "sft_steps=-1 is too small"),
        ("lr=0", "lr=0 is out of range; expected a number above 0, and 1 at most"),
        ("lr=2", "lr=2 is out of range"),
        ("beta=0", "beta=0 is out of range; expected a number above 0"),
        ("beta=inf", "beta=inf is out of range"),
        ("seed=-1", "seed=-1 is too small"),
        ("out=bandit.pdf", "out=bandit.pdf is no PNG file"),
        ("arms=10", "unknown option arms=10"),
        ("--beta", "--beta is no option"),
        ("policy", "policy is one too many"),
    ],
)
def test_mistakes_are_told_in_one_line(argument: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([argument]) == 2
    out, err = capsys.readouterr()
    assert told in err and err.startswith("error: ") and err.count("\n") == 1 and out == ""


def test_a_disk_that_refuses_the_picture_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main([*SHORT, f"out={tmp_path / 'file' / 'bandit.png'}"]) == 1
    err = capsys.readouterr().err
    assert "cannot write" in err and err.count("\n") == 1


def test_help_names_each_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name}=" in out for name in asdict(Options()))


def test_the_published_experiment_takes_few_seconds_of_cpu(tmp_path: Path) -> None:
    """Measured: 4 s, most of it for imports (two cores of an Intel Xeon)."""
    code = "import sys, time; from scripts.bandit import main; main(sys.argv[1:]); print(time.process_time())"
    command = [sys.executable, "-c", code, f"out={tmp_path / 'bandit.png'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True)
    assert float(done.stdout.splitlines()[-1]) < MOST_SECONDS
