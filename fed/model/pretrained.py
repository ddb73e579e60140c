"""Models and tokenizers as transformers reads them: from directories, from the hub and from GGUF files."""

import logging
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
)
from transformers.utils import GENERATION_CONFIG_NAME

from fed.config.groups import ModelSettings
from fed.config.places import check_model_folder, gguf_path, offline
from fed.model.demo import demo_model, demo_tokenizer
from fed.model.randomness import put_back, without_randomness
from fed.model.scorer import KIND, check_scorer

# Transformers then names the weights that it left random; by default a log line or an exception names none.
REPORT = {"output_loading_info": True, "ignore_mismatched_sizes": True}

MOST_LAYERS = 10_000  # each is an object before a weight is read; the largest models have some hundreds


def quiet_libraries() -> None:
    """Silence what libraries print while models are loaded: progress bars, and what this program checks itself."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # warns, whenever peft is loaded, of a kernel it tries


def load_tokenizer(settings: ModelSettings) -> Any:
    """Load the tokenizer, and check that it can end a response, knows text and can be saved.

    Raises:
        ValueError: If it cannot.
    """
    name = settings.tokenizer_name_or_path or settings.name_or_path or "."
    gguf = settings.gguf_file if settings.tokenizer_name_or_path is None else None
    if name == "demo" and gguf is None:
        return demo_tokenizer()
    tokenizer = from_pretrained("tokenizer", AutoTokenizer.from_pretrained, name, gguf, settings.trust_remote_code)
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"the tokenizer of {name} has no end-of-text token, so a response could never end; set eos_token in its "
            "tokenizer_config.json or give model.tokenizer_name_or_path"
        )
    if not tokenizer("text")["input_ids"]:  # what transformers returns for a directory without a tokenizer
        raise ValueError(f"{name} has no tokenizer with a vocabulary; give model.tokenizer_name_or_path")
    with tempfile.TemporaryDirectory() as folder:
        try:
            tokenizer.save_pretrained(folder)
        except Exception as error:  # found at the end, it would cost the run its model
            raise ValueError(
                f"the tokenizer of {name} cannot be saved, as that of the trained model must be: {in_words(error)}; "
                "mend its tokenizer_config.json or give model.tokenizer_name_or_path"
            ) from error
    return tokenizer


def load_model(settings: ModelSettings, tokenizer: Any, dtype: torch.dtype, *, scores: bool = False) -> Any:
    """Load the model with all its weights; the demo model is drawn from torch's generator.

    With `scores` a reward model may be loaded, and without it is refused.

    Raises:
        ValueError: If weights are missing, or the tokenizer has more tokens than the model.
    """
    name, gguf, trust = settings.name_or_path or ".", settings.gguf_file, settings.trust_remote_code
    if is_demo(settings):
        return demo_model(tokenizer).to(dtype)
    config = load_config(settings)
    load_generation_config(settings)  # transformers reads it too, and its errors do not name the file
    random = without_randomness(config)
    is_reward_model = any(kind.endswith(KIND) for kind in config.architectures or ())
    if is_reward_model and not scores:
        raise ValueError(f"{name} is a reward model, which writes no responses; scripts.reward_model scores with it")
    kind = AutoModelForSequenceClassification if is_reward_model else AutoModelForCausalLM
    model, report = from_pretrained(
        "model", kind.from_pretrained, name, gguf, trust, config=config, dtype=dtype, **REPORT
    )
    if is_reward_model:
        check_scorer(model)
    lacking = sorted({*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])})
    if lacking:  # transformers would continue with random ones
        raise ValueError(
            f"{name} lacks {len(lacking)} weights of {type(model).__name__} (first: {lacking[0]}); give a complete "
            "causal language model"
        )
    if gguf is not None:
        model = _without_quantization(model, dtype)
    put_back(model.config, random)
    check_tokens(model, tokenizer, settings)
    return model


def _without_quantization(model: Any, dtype: torch.dtype) -> Any:
    """Return a plain model with the same weights: one loaded from GGUF refuses to be saved."""
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.random.fork_rng(devices=[]):  # the next draws must not depend on the kind of file
        plain = AutoModelForCausalLM.from_config(config, dtype=dtype)
    plain.load_state_dict(model.state_dict())
    return plain


def load_config(settings: ModelSettings) -> Any:
    """Load the model's configuration.

    Raises:
        ValueError: If it cannot be loaded.
    """
    name, gguf, trust = settings.name_or_path or ".", settings.gguf_file, settings.trust_remote_code
    config = from_pretrained("model", AutoConfig.from_pretrained, name, gguf, trust)
    layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    if isinstance(layers, int) and layers > MOST_LAYERS:
        raise ValueError(f"the configuration of {name} has {layers:,} layers; expected at most {MOST_LAYERS:,}")
    return config


def load_generation_config(settings: ModelSettings) -> GenerationConfig | None:
    """Load from a directory how the model's authors generate; None: there is no directory, or no such file in it.

    Raises:
        ValueError: If the file cannot be read.
    """
    if settings.gguf_file is not None or settings.name_or_path is None:
        return None
    folder = Path(settings.name_or_path).expanduser()
    if not (folder / GENERATION_CONFIG_NAME).exists():
        return None
    try:
        return GenerationConfig.from_pretrained(str(folder))
    except Exception as error:  # whatever a foreign file makes the reader raise
        raise ValueError(
            f"cannot use {GENERATION_CONFIG_NAME} of {settings.name_or_path}: {in_words(error)}; mend or remove it"
        ) from error


def check_tokens(model: Any, tokenizer: Any, settings: ModelSettings) -> None:
    """Check that the model embeds all tokens of the tokenizer.

    Raises:
        ValueError: If it does not.
    """
    embedded = model.get_input_embeddings().num_embeddings
    if embedded < len(tokenizer):
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens but model {settings.name_or_path or '.'} embeds {embedded}; "
            "they do not fit"
        )


def is_demo(settings: ModelSettings) -> bool:
    """Return whether the settings name the demo model."""
    return settings.name_or_path == "demo" and settings.gguf_file is None


def from_pretrained(what: str, load: Callable[..., Any], name: str, gguf: str | None, trust: bool, **more: Any) -> Any:
    """Return what `load`, one of transformers' functions, reads from a directory, the hub or a GGUF file.

    Args:
        what: What is loaded, for the message.
        load: A `from_pretrained` of transformers.
        name: A directory or a hub name; the directory of the GGUF file if that is relative.
        gguf: The GGUF file; None: there is none.
        trust: Run Python code that comes with the model.
        **more: Passed on to `load`.

    Raises:
        ValueError: If it cannot be read. The message has one line.
    """
    if gguf is not None:
        file = gguf_path(name, gguf)
        name, more = str(file.parent), {**more, "gguf_file": file.name}
    check_model_folder(name)
    folder = Path(name).expanduser()
    try:
        return load(str(folder) if folder.is_dir() else name, trust_remote_code=trust, **more)
    except Exception as error:  # whatever a damaged, incomplete or foreign file makes the readers raise
        if not trust and "trust_remote_code" in str(error):
            raise ValueError(
                f"the {what} of {name} needs code of its own, which is not run; read the Python files beside it and, "
                "if you trust them, set model.trust_remote_code=true"
            ) from error
        variable = offline()
        hub = "with the hub reachable" if variable is None else f"({variable} is set: unset it to reach the hub)"
        raise ValueError(
            f"cannot load the {what} of {name}: {in_words(error)} | expected a directory with config, tokenizer and "
            f"weights, a GGUF file (model.gguf_file=), or a hub name {hub}"
        ) from error


def in_words(error: Exception) -> str:
    """Return the type and the text of an exception in one line."""
    if isinstance(error, pickle.UnpicklingError):
        return "its weights are damaged or hold more than tensors, and pickled code is never run"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
