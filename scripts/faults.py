"""What becomes of runs when things go wrong: `make faults`, or `python scripts/faults.py kills=3 rounds=200 seed=0`.

Kills and stops real runs at random instants and resumes them, damages checkpoints, fills a disk, types bad input, and
watches the memory of a long run. Prints what was counted, and ends with exit code 1 if anything was lost. Writes to a
temporary folder only.

    kills=3      kills of each case
    rounds=200   of the run whose memory is watched
    seed=0       of the random instants and bits
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).parent.parent))

import flwr_datasets  # noqa: F401 (here once, or every forked process would import it)
import tensorboardX.proto.event_pb2  # noqa: F401
import torch
import transformers
from hydra.core.global_hydra import GlobalHydra
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import main
from fed.tracking.line_files import read_lines
from fed.tracking.metrics import MARGINS, METRICS, SAMPLES, TIMING, read_metrics
from run import experiment
from support.bad_inputs import BAD_INPUTS

ROOT = Path(__file__).parent.parent
SMALL = [
    *["client_num_in_total=3", "comm_round=3", "n_train_examples=90", "n_test_examples=32"],
    *["num_threads=1", "output_dir=runs", "cache_dir=cache"],
]
CASES = {
    "FeDPO": [],
    "FedAvg, clients evaluate too": ["strategy=fedavg", "strategy.fraction_evaluate=1"],
    "FedAdam": ["strategy=fedadam"],
    "FedMedian": ["strategy=fedmedian"],
    "noise by the server": ["strategy=dp_server_adaptive"],
    "clipping by the clients": ["strategy=dp_client_adaptive"],
    "noise that is accounted for": ["privacy=central_dp", "strategy=fedavg"],
    "noise by every client": ["privacy=local_dp", "strategy=fedmedian"],
    "two of three clients a round": ["clients_per_round=2"],
    "optimizers that persist": ["client_optimizer=persist", "optimizer=AdamW", "lr=1e-4"],
    "an adapter": ["lora.r=2", "lr=1e-3"],
    "every client alone": ["mode=local"],
    "responses drawn": ["sample_during_eval=true", "n_eval_model_samples=2"],
    "clients that fail": ["faults.dropout_rate=0.2", "faults.nan_rate=0.2"],
    "two processes that share a model": ["trainer=FSDPTrainer", "trainer_processes=2"],
    "two clients at once": ["clients_in_parallel=2", "client_optimizer=persist"],
}
DAMAGES: dict[str, Callable[[Path, random.Random], object]] = {
    "cut off": lambda path, rng: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path, rng: path.write_bytes(b""),
    "removed": lambda path, rng: path.unlink(),
    "one bit turned": lambda path, rng: turn_bit(path, rng.randrange(8 * path.stat().st_size)),
}
LONGEST = 120.0  # seconds that a run may take


@dataclass(frozen=True)
class Ended:
    """How a run ended."""

    code: int  # negative: the signal that killed it
    text: str  # what it printed


def call(
    folder: Path,
    *arguments: str,
    during: Callable[[int], object] = lambda pid: None,
    before: Callable[[], object] = lambda: None,
) -> Ended:
    """`python main.py ...` in a forked process, in that folder.

    Args:
        folder: Where it runs.
        arguments: What is typed.
        during: Told its process id once it has begun.
        before: Called in that process first.
    """
    log = folder / "log"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12's, of forking beside threads
        pid = os.fork()
    if pid == 0:
        os.chdir(folder)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout = sys.stderr = open(out, "w")  # noqa: SIM115 (as long as the process)
        before()
        os._exit(_typed(arguments))
    during(pid)
    return Ended(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), log.read_text())


def _typed(arguments: Sequence[str]) -> int:
    sys.argv = ["main.py", *arguments]
    GlobalHydra.instance().clear()
    vars(experiment)["curves"] = lambda folder: folder / "curves.png"  # it takes longer than these runs
    try:
        code = main.main()
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    except BaseException as error:
        print(f"traceback: {error!r}")
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def launch(folder: Path, *arguments: str, during: Callable[[int], object] = lambda pid: None) -> Ended:
    """`python main.py ...` as a program of its own, for runs of several processes."""
    log = folder / "log"
    with log.open("w") as out:
        process = subprocess.Popen([sys.executable, ROOT / "main.py", *arguments], cwd=folder, stdout=out, stderr=out)
        during(process.pid)
        code = process.wait(LONGEST)
    return Ended(code, log.read_text())


def outcome(run: Path) -> dict[str, Any]:
    """All that a run leaves and that must not depend on whether it was cut off, by name."""
    files = (run / name for name in (METRICS, MARGINS, SAMPLES))
    found: dict[str, Any] = {path.name: path.read_bytes() for path in files if path.is_file()}
    found[TIMING] = [(row["round"], row["who"], row["pairs"]) for row in read_lines(run / TIMING)]
    found.update((str(path.relative_to(run)), path.read_bytes()) for path in (run / "policy").rglob("*.safetensors"))
    found["checkpoints"] = sorted(
        str(p.relative_to(run)) for p in (run / "checkpoints").rglob("*") if "round" in p.name
    )
    for folder in (run / "tensorboard").iterdir():
        (file,) = folder.iterdir()
        events = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
        for tag in events.Tags()["scalars"]:
            found[f"{folder.name}/{tag}"] = [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["tensors"]:  # text
            found[f"{folder.name}/{tag}"] = [
                (event.step, event.tensor_proto.string_val) for event in events.Tensors(tag)
            ]
        found[f"{folder.name}/settings"] = sorted(events.summary_metadata)
    return found


def only_run(folder: Path) -> Path | None:
    """The run in a folder, if one began."""
    runs = list(folder.glob("runs/*/*/config.yaml"))
    return runs[0].parent if runs else None


def after(seconds: float, number: int, choose: Callable[[int], int] = lambda pid: pid) -> Callable[[int], None]:
    """Sends a signal to the process, or to one that `choose` finds from it, so many seconds after it began."""

    def send(pid: int) -> None:
        time.sleep(seconds)
        with suppress(ProcessLookupError):
            os.kill(choose(pid), number)

    return send


def some_rank(rng: random.Random) -> Callable[[int], int]:
    """The launcher itself or one of the processes it started."""

    def choose(pid: int) -> int:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return rng.choice([pid, *map(int, children)])

    return choose


def turn_bit(path: Path, number: int) -> None:
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[number // 8] ^= 1 << number % 8
    path.write_bytes(content)


@dataclass
class Count:
    """How often something was tried, and how often it went well."""

    what: str
    tried: int = 0
    well: int = 0

    def add(self, well: bool, told: str) -> None:
        """One more; `told` is printed if it did not go well."""
        self.tried, self.well = self.tried + 1, self.well + well
        if not well:
            print(f"  LOST: {told}", flush=True)

    def __str__(self) -> str:
        return f"{self.well} of {self.tried} {self.what}"


def cut_off(
    name: str, typed: Sequence[str], number: int, times: int, top: Path, rng: random.Random, count: Count
) -> None:
    """Send a run of this case that signal at a random instant, resume it, compare; so many times."""
    several = any(word.startswith(("trainer=", "clients_in_parallel=")) for word in typed)
    how: Any = launch if several else call
    whole = top / "whole"
    whole.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    ended = how(whole, *SMALL, *typed)
    seconds = time.monotonic() - began
    run = only_run(whole)
    if ended.code or run is None:
        count.add(False, f"{name} fails by itself: {ended.text[-2000:]}")
        return
    expected = outcome(run)
    for time_ in range(times):
        folder = top / f"cut-{time_}"
        while True:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            instant = rng.uniform(0.1, 0.95) * seconds
            choose = some_rank(rng) if several and number == signal.SIGKILL else lambda pid: pid
            first = how(folder, *SMALL, *typed, during=after(instant, number, choose))
            run = only_run(folder)
            if run is not None and not (run / "summary.json").exists():
                break
        second = how(folder, "resume=latest", "output_dir=runs")
        told = f"{name}, after {instant:.2f} s: exit codes {first.code}, {second.code}: {second.text[-2000:]}"
        right = number == signal.SIGKILL or first.code == 128 + number
        count.add(right and not second.code and outcome(run) == expected, told)
        shutil.rmtree(folder)


def damage(top: Path, rng: random.Random, count: Count) -> None:
    """Damage the newest checkpoint of a run that was killed at its end; it must be found and named."""
    whole = top / "whole"
    whole.mkdir(parents=True)
    call(whole, *SMALL, "client_optimizer=persist")
    run = only_run(whole)
    assert run is not None
    expected = outcome(run)
    newest = run / "checkpoints" / "round-3"
    for path in sorted(path.relative_to(whole) for path in newest.rglob("*.safetensors")):
        for name, spoil in DAMAGES.items():
            folder = top / "damaged"
            shutil.copytree(whole, folder, symlinks=True)
            spoil(folder / path, rng)
            ended = call(folder, "resume=latest", "output_dir=runs")
            told = f"{path.name} {name}: exit code {ended.code}: {ended.text[-2000:]}"
            found = "is damaged" in ended.text and path.name in ended.text
            count.add(found and not ended.code and outcome(folder / run.relative_to(whole)) == expected, told)
            shutil.rmtree(folder)


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[None]:
    """A file system of that size."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def without_looking_for_room() -> None:
    """As if the disk got full later."""
    vars(experiment)["_check_space"] = lambda plan: None


def fill_disk(top: Path, count: Count) -> None:
    """Runs on a disk that gets full as they go; with room again they end as if nothing had been."""
    whole, disk = top / "whole", top / "disk"
    whole.mkdir(parents=True)
    call(whole, *SMALL)
    run = only_run(whole)
    assert run is not None
    expected = outcome(run)
    for kilobytes in (60, 300, 700, 1100, 1500, 2000, 2300, 2600):
        with small_disk(disk, kilobytes):
            (top / "elsewhere").mkdir(exist_ok=True)
            where = ["cache_dir=../whole/cache", f"output_dir={disk}/runs"]
            first = call(top / "elsewhere", *SMALL, *where, before=without_looking_for_room)
            said = [line for line in first.text.splitlines() if line.startswith(("error: ", "traceback: "))]
            subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
            second = call(top / "elsewhere", "resume=latest", f"output_dir={disk}/runs")
            run = only_run(disk)
            told = f"{kilobytes} kB: exit codes {first.code}, {second.code}: {first.text[-1500:]}{second.text[-1500:]}"
            well = first.code == 1 and len(said) == 1 and said[0].startswith("error: ") and "No space" in said[0]
            count.add(well and not second.code and run is not None and outcome(run) == expected, told)


def type_bad_input(top: Path, count: Count) -> None:
    """Everything in the table must be refused with one line and leave nothing behind."""
    for number, bad in enumerate(BAD_INPUTS):
        folder, work = top / f"{number}-input", top / f"{number}-work"
        folder.mkdir(parents=True)
        work.mkdir()
        typed = bad.arguments(folder)
        cache = [] if any(word.startswith("cache_dir=") for word in typed) else [f"cache_dir={top / 'cache'}"]
        ended = call(work, *typed, *cache)
        *_, said = ended.text.splitlines() or [""]
        right = ended.code == 2 and said.startswith("error: ") and ended.text.count("error: ") == 1
        right = right and all(word in said for word in bad.words.split())
        left = [path.name for path in work.iterdir() if path.name != "log"]
        count.add(
            right and not left, f"{bad.kind}, {bad.name}: exit code {ended.code}, left {left}: {ended.text[-500:]}"
        )


def watch_memory(top: Path, rounds: int, count: Count) -> None:
    """The resident memory of a run stays within 5 % of that after its tenth round."""
    top.mkdir(parents=True)
    found: dict[int, int] = {}

    def watch(pid: int) -> None:
        while (resident := _resident(pid)) is not None:
            run = only_run(top)
            lines = read_metrics(run) if run is not None else []
            found[max((line.server_round for line in lines if line.who == "server"), default=-1)] = resident
            time.sleep(0.5)

    typed = ["client_num_in_total=5", "n_train_examples=100", "n_test_examples=64", f"comm_round={rounds}"]
    ended = launch(top, *typed, "num_threads=1", "output_dir=runs", during=watch)
    early = max((memory for number, memory in found.items() if number <= 10), default=0)
    late = max((memory for number, memory in found.items() if number > 10), default=0)
    told = f"{rounds} rounds: {early / 1e6:.0f} MB after 10 rounds, then at most {late / 1e6:.0f} MB"
    print(told, flush=True)
    count.add(not ended.code and 0 < late <= 1.05 * early, f"{told}: {ended.text[-500:]}")


def _resident(pid: int) -> int | None:
    """Bytes of main memory that a process has; None: it has ended."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return 1024 * int(line.split()[1])
    return None


def run_all(kills: int, rounds: int, seed: int) -> list[Count]:
    """Everything, with so many kills of each case."""
    rng = random.Random(seed)
    killed, stopped = Count("killed runs resumed to the same bytes"), Count("stopped runs resumed to the same bytes")
    damaged, filled = Count("damaged checkpoints found, named and made good"), Count("full disks survived")
    refused, flat = Count("bad inputs refused"), Count("long runs with flat memory")
    with tempfile.TemporaryDirectory(prefix="fedpo-faults-") as scratch:
        top = Path(scratch)
        for place, (name, typed) in enumerate(CASES.items()):
            cut_off(name, typed, signal.SIGKILL, kills, top / str(place), rng, killed)
            print(f"{name}: {killed}", flush=True)
        for name, number in (("FeDPO", signal.SIGTERM), ("FedAdam", signal.SIGINT)):
            cut_off(name, CASES[name], number, kills, top / f"stop-{name}", rng, stopped)
        name = "two processes that share a model"
        cut_off(name, CASES[name], signal.SIGTERM, 1, top / "stop-several", rng, stopped)
        print(stopped, flush=True)
        damage(top / "damage", rng, damaged)
        print(damaged, flush=True)
        if os.geteuid() == 0:
            fill_disk(top / "full", filled)
            print(filled, flush=True)
        else:
            print("full disks: not tried, mounting a small one needs root", flush=True)
        type_bad_input(top / "bad", refused)
        print(refused, flush=True)
        watch_memory(top / "memory", rounds, flat)
    return [killed, stopped, damaged, filled, refused, flat]


def _command(arguments: Sequence[str]) -> int:
    settings = {"kills": 3, "rounds": 200, "seed": 0}
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key not in settings or not value.isdigit():
            print(f"error: {argument} is no setting; expected kills=, rounds= or seed=NUMBER", file=sys.stderr)
            return 2
        settings[key] = int(value)
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    began = time.monotonic()
    counts = run_all(**settings)
    print(f"\n{'; '.join(map(str, counts))}; {time.monotonic() - began:.0f} s, seed {settings['seed']}")
    return int(any(count.well < count.tried for count in counts))


if __name__ == "__main__":
    sys.exit(_command(sys.argv[1:]))
