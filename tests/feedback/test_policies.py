"""Policies opened by their run, their directory or their adapter, and their references."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from fed.data.examples import Example
from fed.model.lora import adapter_off
from fed.model.policy import Policy, pair_logps
from fed.tracking.line_files import read_lines
from feedback.policies import Found, Loading, find, load
from support.command_line import SMALL, CommandLine

HOW = Loading(torch.device("cpu"))
PAIRS = [Example((5, 6, 7), (8, 9), (9, 8, 4)), Example((1,), (2,), (3,))]


def logps(policy: Policy) -> torch.Tensor:
    return torch.tensor(pair_logps(policy, PAIRS, batch_size=2))


def plain(folder: Path) -> torch.Tensor:
    """Return the log-probs that transformers alone computes."""
    model = AutoModelForCausalLM.from_pretrained(folder)

    def of(prompt: tuple[int, ...], response: tuple[int, ...]) -> float:
        ids = torch.tensor([[*prompt, *response]])
        with torch.no_grad():
            every = model(ids).logits[0].log_softmax(-1)
        return sum(float(every[len(prompt) + i - 1, token]) for i, token in enumerate(response))

    return torch.tensor([[of(pair.prompt, side) for side in (pair.chosen, pair.rejected)] for pair in PAIRS])


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.allclose(found.double(), expected.double(), atol=1e-4)


@pytest.mark.parametrize("adapter", [(), ("lora.r=2", "lr=0.5"), ("lora.r=2", "lora.bias=all", "model=own", "lr=0.5")])
def test_a_run_is_opened_with_its_reference(command_line: CommandLine, gpt2: Path, adapter: tuple[str, ...]) -> None:
    arguments = [a if a != "model=own" else f"model.name_or_path={gpt2}" for a in adapter]
    arguments += ["model.block_name=null"] * ("model=own" in adapter)
    small = (*SMALL, "comm_round=2", "max_length=48", "max_prompt_length=32", "checkpoint_keep=9")
    run = command_line(*small, *arguments).run
    found = find(str(run))
    policy = load(found, HOW)
    assert close(logps(policy), plain(run / "policy"))
    assert found.has_adapter == bool(adapter) and found.reference is not None and found.config is not None
    began = logps(load(found.reference, HOW))
    assert not close(began, logps(policy))
    if adapter:
        with adapter_off(policy.model):
            assert close(logps(policy), began)
        assert close(logps(policy), plain(run / "policy"))
    else:
        assert not any(parameter.requires_grad for parameter in policy.model.parameters())
    last, first = (load(find(str(run), server_round), HOW) for server_round in ("2", "1"))
    assert close(logps(last), logps(policy)) and not close(logps(first), logps(policy))
    assert close(logps(load(find(str(run), "0"), HOW)), began)
    of_files = find(str(run / "policy"))
    assert of_files.config is None and close(logps(load(of_files, HOW)), logps(policy))


def test_what_is_no_policy_says_so(command_line: CommandLine, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no policy: neither config.yaml of a run nor config.json"):
        find(str(tmp_path))
    run = command_line(*SMALL, "debug=true").run
    with pytest.raises(ValueError, match=r"has no trained policy: the run has not ended, or kept none$"):
        find(str(run))
    kept = command_line(*SMALL).run
    with pytest.raises(ValueError, match="has no checkpoint of round=7 but best, 1; a run keeps the newest"):
        find(str(kept), "7")
    with pytest.raises(ValueError, match="round=1 needs the folder of a run"):
        find(str(kept / "policy"), "1")
    (kept / "config.yaml").write_text("seed: [")
    with pytest.raises(ValueError, match=r"config.yaml cannot be read as the settings of a run"):
        find(str(kept))
    assert find("owner/name") == Found("owner/name", find("owner/name").model)


def test_a_damaged_adapter_is_refused(command_line: CommandLine, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    run = command_line(*SMALL, "lora.r=2").run
    file = run / "policy" / "adapter_model.safetensors"
    state = load_file(file)
    state.pop(sorted(state)[0])
    save_file(state, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"cannot use the adapter .*1 weights are missing or unknown, first: .*lora_A"):
        load(find(str(run)), HOW)


def test_a_run_samples_what_a_generated_file_says(command_line: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn with the run's own keys, the responses of its last evaluation come out again."""
    from scripts.generate import main

    keys = ("sample_during_eval=true", "n_eval_model_samples=4", "sample_temperature=0.9", "sample_top_p=0.8")
    result = command_line(*SMALL, *keys, "max_length=112", "max_prompt_length=96", "lr=0.05")
    monkeypatch.chdir(result.folder)
    asked = ("temperature=0.9", "top_p=0.8", "limit=4", "max_new_tokens=16", "stop=[]", "out=drawn.jsonl")
    assert main([str(result.run), *asked]) == 0
    drawn = list(read_lines(result.folder / "drawn.jsonl"))
    samples = [row for row in read_lines(result.run / "samples.jsonl") if row["round"] == 1]
    assert [row["prompt"] for row in drawn] == [row["prompt"] for row in samples]
    assert [row["completion"] for row in drawn] == [row["policy"] for row in samples]
