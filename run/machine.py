"""The computation of a run: threads and memory, the model, and the library that multiplies matrices."""

import os
from dataclasses import replace

import torch

from fed.config.schema import Config
from fed.cpu.matmul import MOST_FLOP, Choice, choose_library
from fed.cpu.runtime import set_up
from fed.cpu.threads import ThreadChoice, choose_threads
from fed.data.chat import read_template
from fed.data.collate import Layout
from fed.data.examples import Example
from fed.distributed.launch import is_rank, local_ranks
from fed.distributed.ranks import Mesh, Ranks
from fed.model.loading import load_policy
from fed.model.placement import Placement
from fed.model.policy import Policy, total_loss
from fed.model.quantization import weight_count
from fed.seeding import seed_globals

LARGE = 10_000_000  # weights; with more, the matrices of a step take longer than threads wait
SHORTEST = 32  # tokens of a measured pair


def set_up_torch(config: Config) -> str:
    """Set threads and memory before anything large is allocated, and describe the memory."""
    torch.use_deterministic_algorithms(config.deterministic)
    if config.deterministic:  # read by cuBLAS; without it torch refuses matrix products on a GPU
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    temporary = (config.trainer == "FSDPTrainer" and is_rank()) or config.model.quantization is not None
    keep = config.keep_freed_memory
    return set_up(config.num_threads, keep_freed=keep, processes=local_ranks(), temporary_weights=temporary)


def make_policy(config: Config, device: torch.device, mesh: Mesh, *, scores: bool = False) -> Policy:
    """Load the model that the settings name, its weights drawn from the seed where they are random.

    With `scores` it is a reward model.
    """
    seed_globals(config.seed, "model")
    policy = load_policy(
        replace(config.model, fsdp_policy_mp=config.precision or config.model.fsdp_policy_mp),
        Placement(device, mesh, config.trainer == "TensorParallelTrainer", config.cpu_offload),
        lora=config.lora,
        layout=Layout(packing=config.packing, prefix_sharing=config.prefix_sharing, fused_head=config.fused_head),
        max_length=config.max_length,
        activation_checkpointing=config.activation_checkpointing,
        scores=scores,
    )
    if config.chat_template not in (None, "none"):  # saved with the model, which is trained on it
        policy.tokenizer.chat_template = read_template(config.chat_template)  # type: ignore[attr-defined]
    return policy


def chosen_threads(policy: Policy, config: Config, world: Ranks) -> ThreadChoice:
    """Return the number of threads; measure a step of a small model for it, unless `num_threads` is given.

    Large models, runs of several processes and runs with `deterministic` have the threads that they began with.

    Raises:
        ValueError: If the choice cannot be kept in `cache_dir`.
    """
    most, weights = torch.get_num_threads(), weight_count(policy.model)
    is_fixed = config.num_threads is not None or config.deterministic or policy.device.type != "cpu"
    if is_fixed or world.count > 1 or most == 1 or weights > LARGE:
        return ThreadChoice(most, {})
    pairs = max(1, config.batch_size // config.gradient_accumulation_steps)
    # Forward and backward pass take 6 operations for each weight and token.
    length = min(config.max_length, max(SHORTEST, int(MOST_FLOP / (6 * weights * pairs))))
    shape = (type(policy.model).__name__, weights, pairs, length, policy.layout, policy.compute_dtype, config.lora.r)
    batch = policy.collate([_pair(length)] * pairs)

    def step() -> None:
        total, _ = total_loss(policy, batch, lambda logps, *_: logps.chosen)
        total.backward()  # type: ignore[no-untyped-call]
        policy.model.zero_grad()

    return choose_threads(step, most, cache_dir=config.cache_dir, what=repr(shape))


def _pair(length: int) -> Example:
    """Return a pair of so many tokens, half of them in the prompt."""
    prompt, response = (1,) * (length - length // 2), (1,) * (length // 2)
    return Example(prompt, response, response)


def choose_matmul(policy: Policy, config: Config, world: Ranks) -> Choice | None:
    """Choose the library that multiplies float32 matrices on a CPU; None if there are none.

    Raises:
        ValueError: If `cpu_matmul` was given and has no effect.
    """
    if policy.device.type != "cpu" or policy.compute_dtype is not None or policy.model.dtype != torch.float32:
        if config.cpu_matmul != "auto":
            dtype = str(policy.compute_dtype or policy.model.dtype).removeprefix("torch.")
            raise ValueError(
                f"cpu_matmul={config.cpu_matmul} has no effect with {dtype} on {policy.device}; leave it out"
            )
        return None

    wanted = config.cpu_matmul
    if policy.holders.count > 1 and policy.root is None:
        if wanted == "onednn":
            raise ValueError("cpu_matmul=onednn has no effect on layers that processes share; leave it out")
        wanted = "mkl"

    def choose(wanted: str) -> Choice:
        return choose_library(policy.model, wanted, cache_dir=config.cache_dir, deterministic=config.deterministic)

    choice = world.from_first_or_raise(lambda: choose(wanted))
    if not world.is_first:  # the same in all processes: libraries differ in the last bits
        choose(choice.library or "auto")
    return choice
