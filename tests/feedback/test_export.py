"""`python -m scripts.export`: weights, card, upload and conversion."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from scripts.export import main
from support.command_line import SMALL, CommandLine
from support.stub_hub import stub_hub

ROOT = Path(__file__).parents[2]
TINY = (*SMALL, "max_length=112", "max_prompt_length=64", "batch_size=4", "lr=0.2")


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`", UserWarning)
        return AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([[7, 8, 9]])).logits


def front(folder: Path) -> dict:
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


@pytest.mark.parametrize("more", [(), ("lora.use_dora=true",), ("lora.modules_to_save=[lm_head]",)])
def test_an_adapter_is_merged_or_kept(command_line: CommandLine, tmp_path: Path, more: tuple[str, ...]) -> None:
    run = command_line(*TINY, "lora.r=2", *more).run
    assert main([str(run), f"out={tmp_path / 'merged'}"]) == 0
    assert main([str(run), f"out={tmp_path / 'kept'}", "merge=false"]) == 0
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    expected = logits(run / "policy")
    assert torch.allclose(logits(tmp_path / "merged"), expected, atol=1e-4)
    assert torch.allclose(logits(tmp_path / "kept"), expected, atol=1e-5)
    assert not torch.allclose(logits(run / "policy" / "base"), expected, atol=1e-2)
    assert (
        front(tmp_path / "merged")["library_name"] == "transformers"
        and front(tmp_path / "kept")["library_name"] == "peft"
    )
    assert "A LoRA adapter on" in (tmp_path / "kept" / "README.md").read_text()


def test_a_card_says_what_the_run_knows_and_no_path(
    command_line: CommandLine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = ("privacy=central_dp", "privacy.noise_multiplier=1.5", "strategy=fedavg", "client_num_in_total=4")
    result = command_line(*TINY, *keys, "privacy.delta=1e-3")
    assert main([str(result.run), f"out={tmp_path / 'out'}", "licence=mit", "base=owner/base", "round=best"]) == 0
    text, final = (tmp_path / "out" / "README.md").read_text(), result.lines(split="test")[-1]
    data = front(tmp_path / "out")
    assert data["license"] == "mit" and data["base_model"] == "owner/base" and "federated-learning" in data["tags"]
    measured = data["model-index"][0]["results"][-1]["metrics"][0]
    assert measured["value"] == pytest.approx(final["accuracy"], abs=1e-4)
    spent = result.lines(split="privacy")[-1]["epsilon"]
    assert f"(epsilon, delta) = ({spent:.3g}, 0.001) for each client" in text and "fedavg, 4 of 4 clients" in text
    assert "privacy.noise_multiplier: 1.5" in text and "2305.18290" in text and "2007.14390" in text
    assert f"{final['accuracy']:.3f} [{final['accuracy_low']:.3f}, {final['accuracy_high']:.3f}]" in text
    assert str(tmp_path) not in text and "runs/" not in text and "output_dir" not in text


def test_a_card_of_an_online_run_has_no_address_and_no_path(command_line: CommandLine, tmp_path: Path) -> None:
    judge = command_line(*SMALL, "loss=reward", "max_length=112").run
    online = (f"online.judge=reward_model:{judge}", "online.max_new_tokens=8", "online.prompts=4")
    result = command_line(*SMALL, *online, "max_length=112", "max_prompt_length=64", "strategy=fedavg")
    assert main([str(result.run), f"out={tmp_path / 'out'}"]) == 0
    text = (tmp_path / "out" / "README.md").read_text()
    assert "online.prompts: 4" in text and "reward_model" not in text and str(tmp_path) not in text
    won = result.lines(split="test")[-1]
    told = "Win rate over the model that the run began with, by the judge that it was trained with"
    assert f"{told}: {won['win_rate']:.3f} [" in text
    assert "| preferences | 2 own responses to each prompt, judged by a reward model |" in text


def test_a_policy_of_no_run_is_written_without_a_card(
    gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(gpt2), f"out={tmp_path / 'out'}", "dtype=bfloat16"]) == 0
    assert "no model card" in capsys.readouterr().out and not (tmp_path / "out" / "README.md").exists()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").dtype == torch.bfloat16
    assert torch.allclose(logits(tmp_path / "out").float(), logits(gpt2), atol=0.05)


def test_llama_cpps_converter_is_called_or_the_reason_is_told(
    gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    assert main([str(gpt2), f"out={tmp_path / 'a'}", f"gguf={tmp_path / 'a.gguf'}"]) == 2
    assert "needs llama.cpp's convert_hf_to_gguf.py, which no Python package brings" in capsys.readouterr().err
    stand_in = tmp_path / "convert_hf_to_gguf.py"
    stand_in.write_text("import sys; open(sys.argv[3], 'w').write(sys.argv[1])")
    more = (f"gguf={tmp_path / 'a.gguf'}", f"converter={stand_in}")
    assert main([str(gpt2), f"out={tmp_path / 'a'}", *more]) == 0
    assert (tmp_path / "a.gguf").read_text() == str(tmp_path / "a")
    stand_in.write_text("raise SystemExit('Model GPT2 is not supported')")
    assert main([str(gpt2), f"out={tmp_path / 'b'}", f"gguf={tmp_path / 'b.gguf'}", f"converter={stand_in}"]) == 2
    assert "could not convert" in (error := capsys.readouterr().err) and "Model GPT2 is not supported" in error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("out=.",), "out=. exists"),
        (("push=name",), "push=name is no name on the hub; expected owner/name"),
        (("converter=x",), "converter= has no effect without gguf="),
        (("gguf=x.gguf", "merge=false"), "gguf= needs whole weights"),
        (("dtype=float3",), "float3"),
    ],
)
def test_mistakes_are_told_in_one_line(
    gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    out = () if arguments[0].startswith("out=") else (f"out={tmp_path / 'out'}",)
    assert main([str(gpt2), *out, *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_is_pushed_to_the_hub(gpt2: Path, tmp_path: Path) -> None:
    def push(url: str, out: str) -> subprocess.CompletedProcess[str]:
        hub = {"HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_secret", "HF_HUB_DISABLE_XET": "1"}
        env = {**os.environ, **hub, "HF_HOME": str(tmp_path)}
        command = [sys.executable, "-m", "scripts.export", str(gpt2), f"out={tmp_path / out}", "push=owner/name"]
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False)

    with stub_hub() as hub:
        done = push(hub.url, "out")
    assert done.returncode == 0, done.stderr
    assert (
        hub.created == [{"name": "name", "organization": "owner", "type": "model", "visibility": "private"}]
        or hub.created
    )
    assert hub.created[0]["name"] == "name" and hub.tokens == {"Bearer hf_secret"}
    written = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}
    assert hub.files == written and "model.safetensors" in written
    assert "owner/name" in done.stdout and "hf_secret" not in done.stdout + done.stderr
    with stub_hub(is_public=True) as hub:
        public = push(hub.url, "public")
    assert public.returncode == 2 and "it is public already; give private=false" in public.stderr and not hub.files
    with stub_hub(refuses=True) as hub:
        refused = push(hub.url, "again")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1, refused.stderr
    assert "push=owner/name failed" in refused.stderr and (tmp_path / "again" / "model.safetensors").is_file()
