"""The model card of a trained policy: what it was trained on, how, how well it does, and what it must not be taken for.

No path of the machine that trained it, and no text of the data, stands in it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fed.config.choices import chosen
from fed.config.explain import counted, listed
from fed.config.schema import every_key, flat
from fed.config.scopes import of_role
from fed.reports.runs import Run
from fed.reports.statistics import with_interval

TEMPLATE = "model_card.md.jinja"
PRIVATE = {  # keys that hold paths or addresses
    *of_role("place", "upkeep"),
    *("data_dir", "chat_template", "partition.client_data", "online.judge", "online.model", "online.base_url"),
}
OF_MODEL = ("model.name_or_path", "model.tokenizer_name_or_path", "model.archive", "model.gguf_file", "model.adapter")
DPO = """@inproceedings{rafailov2023direct,
  title = {Direct Preference Optimization: Your Language Model is Secretly a Reward Model},
  author = {Rafailov, Rafael and Sharma, Archit and Mitchell, Eric and Ermon, Stefano and Manning, Christopher D.
            and Finn, Chelsea},
  booktitle = {NeurIPS},
  year = {2023},
  eprint = {2305.18290}
}"""
IPO = """@inproceedings{azar2024general,
  title = {A General Theoretical Paradigm to Understand Learning from Human Preferences},
  author = {Azar, Mohammad Gheshlaghi and Rowland, Mark and Piot, Bilal and Guo, Daniel and Calandriello, Daniele
            and Valko, Michal and Munos, R{\\'e}mi},
  booktitle = {AISTATS},
  year = {2024},
  eprint = {2310.12036}
}"""
FLOWER = """@misc{beutel2020flower,
  title = {Flower: A Friendly Federated Learning Research Framework},
  author = {Beutel, Daniel J. and Topal, Taner and Mathur, Akhil and Qiu, Xinchi and Fernandez-Marques, Javier
            and Gao, Yan and Sani, Lorenzo and Li, Kwing Hei and Parcollet, Titouan and de Gusm{\\~a}o,
            Pedro Porto Buarque and Lane, Nicholas D.},
  year = {2020},
  eprint = {2007.14390}
}"""
PAPERS = {"dpo": (DPO,), "ipo": (IPO,)}


@dataclass(frozen=True)
class Card:
    """The facts on a card that the run does not know.

    Attributes:
        name: The name of the repository, "owner/name", or a folder's.
        licence: The hub's name of a licence, "apache-2.0"; None: it is not known.
        base: The name under which others find the model that was trained; None: it has none.
        is_adapter: The files are an adapter, not whole weights.
        curve: The file of the curves beside the card; None: there is none.
        server_round: The round of the weights; None: the last.
    """

    name: str
    licence: str | None
    base: str | None
    is_adapter: bool
    curve: str | None = None
    server_round: int | None = None


def model_card(run: Run, card: Card) -> str:
    """Return the card as the text of a README.md."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(  # a Markdown file, so nothing is escaped as in HTML
        loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    config = dict(flat(run.config))
    rows = list(_results(run, card))
    text: str = environment.get_template(TEMPLATE).render(
        data=_data(run, card, rows).to_yaml().strip(),
        title=card.name.rpartition("/")[2],
        summary=_summary(run, card, config),
        base=_base(card),
        results=[" | ".join(row.cells()) for row in rows],
        wins=list(_wins(run, card)),
        curve=card.curve,
        training=list(_training(run, config)),
        settings=_settings(run, config),
        repository=card.name,
        how=_how_to_ask(config),
        limits=list(_limits(run, card, config)),
        citations="\n\n".join([*PAPERS.get(_loss(config), ()), *((FLOWER,) if run.mode == "federated" else ())]),
    )
    return text


@dataclass(frozen=True)
class _Result:
    split: str
    metrics: Mapping[str, Any]

    def cells(self) -> Sequence[str]:
        """Return the cells of its row of the table."""
        found, count = self.metrics, counted(int(self.metrics["examples"]), "pair")
        accuracy = "-"
        if "accuracy" in found:
            accuracy = with_interval(found["accuracy"], found["accuracy_low"], found["accuracy_high"])
        margin = f"{found['margin']:.3f}" if "margin" in found else "-"
        return f"{self.split}, {count}", accuracy, margin, f"{found['loss']:.3f}"


def _results(run: Run, card: Card) -> Iterator[_Result]:
    """Yield the server's metrics of the weights' round on each split."""
    lines = [line for line in run.lines if line.who == "server" and line.split in ("test", "validation")]
    last = max((line.server_round for line in lines), default=0) if card.server_round is None else card.server_round
    for line in lines:
        if line.server_round == last and line.metrics.get("loss") is not None:
            yield _Result(line.split, {name: value for name, value in line.metrics.items() if value is not None})


def _wins(run: Run, card: Card) -> Iterator[str]:
    """Yield the win rates over the model that training began with, of an online run."""
    whose = {"test": "the server's prompts", "held-out": "prompts of the clients"}
    lines = [line for line in run.lines if line.who == "server" and line.metrics.get("win_rate") is not None]
    last = max((line.server_round for line in lines), default=0) if card.server_round is None else card.server_round
    for line in lines:
        if line.server_round == last and line.split in whose:
            found = line.metrics
            rates = [
                with_interval(found[name], found[f"{name}_low"], found[f"{name}_high"])
                for name in ("win_rate", "length_controlled")
            ]
            yield f"{rates[0]}, at equal length {rates[1]}, on {found['win_prompts']:g} of {whose[line.split]}"


def _judge(config: Mapping[str, Any]) -> str:
    """Return who judged, without a path or an address."""
    kind, colon, _ = str(config["online.judge"]).partition(":")
    if kind == "lexicon":
        return f"the rule {config['online.rule']}"
    if colon:
        return {"policy": "a policy's implicit reward", "reward_model": "a reward model"}.get(kind, "a model")
    return f"a served model with the prompt {Path(kind).stem}"


def _data(run: Run, card: Card, rows: Sequence[_Result]) -> ModelCardData:
    names = list(run.config["datasets"])
    on_hub = [name for name in names if "/" in name]
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=on_hub[0] if on_hub else "other",
            dataset_name="+".join(names) or "the clients' own",
            dataset_split=row.split,
            metric_type="accuracy",
            metric_name="preference accuracy",
            metric_value=round(row.metrics["accuracy"], 4),
        )
        for row in rows
        if "accuracy" in row.metrics
    ]
    return ModelCardData(
        license=card.licence or "unknown",
        base_model=card.base,
        datasets=on_hub or None,
        library_name="peft" if card.is_adapter else "transformers",
        pipeline_tag="text-generation",
        tags=[_loss(dict(flat(run.config))), *(["federated-learning", "flower"] if run.mode == "federated" else [])],
        model_name=card.name.rpartition("/")[2],
        eval_results=results or None,
    )


def _loss(config: Mapping[str, Any]) -> str:
    return chosen("loss", config) or str(config["loss._target_"]).rpartition(".")[2]


def _base(card: Card) -> str:
    return f"[{card.base}](https://huggingface.co/{card.base})" if card.base else "the model that the run began with"


def _summary(run: Run, card: Card, config: Mapping[str, Any]) -> str:
    what = "A LoRA adapter on" if card.is_adapter else "A copy of"
    how = {
        "federated": f"trained by {counted(config['client_num_in_total'], 'client')} whose data stayed with them",
        "centralized": "trained on all pairs in one place",
        "local": "trained by one client alone",
    }[run.mode]
    return f"{what} {_base(card)}, {how}, with the loss {_loss(config)}."


def _training(run: Run, config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "data", listed(run.config["datasets"]) or "the clients' own"
    pairs = max((line.pairs for line in run.lines), default=0)
    yield "pairs trained on", f"{pairs:,}, every epoch counted"
    if config.get("online.judge"):
        yield "preferences", f"{config['online.n']} own responses to each prompt, judged by {_judge(config)}"
    if run.mode == "federated":
        strategy = chosen("strategy", config) or str(config["strategy._target_"])
        each = config.get("clients_per_round") or config["client_num_in_total"]
        yield "strategy", f"{strategy}, {each} of {config['client_num_in_total']} clients in a round"
    yield "rounds", f"{config['comm_round']:,}"
    yield "optimizer", f"{config['optimizer']}, learning rate {config['lr']:g}, {config['batch_size']} pairs a step"
    yield (
        "tokens",
        f"{config['max_length']} for prompt and response, of them {config['max_prompt_length']} for the prompt",
    )
    kind = config["privacy.kind"]
    yield "privacy", _privacy(run) if kind != "none" else "none: weights may tell what they were trained on"
    environment = run.environment
    packages = environment.get("packages", {})
    yield (
        "software",
        ", ".join(f"{name} {packages[name]}" for name in ("torch", "transformers", "flwr") if name in packages),
    )
    if commit := environment.get("commit"):
        yield "commit", str(commit)


def _privacy(run: Run) -> str:
    """Return what the run spent, by its last line about it."""
    kind, spent = run.config["privacy"]["kind"], [line.metrics for line in run.lines if line.split == "privacy"]
    if not spent:
        return f"{kind}: what it spent is not recorded"
    return f"{kind}: (epsilon, delta) = ({spent[-1]['epsilon']:.3g}, {spent[-1]['delta']:g}) for each client"


def _settings(run: Run, config: Mapping[str, Any]) -> str:
    """Return the typed settings as YAML, without those that hold paths."""
    typed = [key for key in run.environment.get("given", []) if key in config and key in every_key()]
    shown = {key: config[key] for key in sorted(typed) if key not in PRIVATE and key not in OF_MODEL}
    return yaml.safe_dump(shown, sort_keys=True, allow_unicode=True).strip() if shown else ""


def _how_to_ask(config: Mapping[str, Any]) -> str:
    if config.get("text_as_chat") or config.get("chat_template") not in (None, "none"):
        return "It was trained through the tokenizer's chat template: ask it with `tokenizer.apply_chat_template`."
    return "It was trained on prompts as its data has them; other ways of asking may do less well."


def _limits(run: Run, card: Card, config: Mapping[str, Any]) -> Iterator[str]:
    yield "The figures are of held-out pairs of the same data; on other data they may be lower."
    yield "Higher preference accuracy does not make a model safe, right or fair. Try it before you rely on it."
    if config["privacy.kind"] == "none":
        yield "It was trained without differential privacy: what it was trained on may be told from it."
    if card.licence is None:
        yield "No licence was given. The licences of the base model and of the data bind you."
