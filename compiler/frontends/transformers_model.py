"""Build the transformers model that a checkpoint's config names, with every weight accounted for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compiler.errors import CompilerError, nearest_hint
from compiler.frontends.traced_module import first_line

ROLES = (
    ("ForCausalLM", "causal-lm"),
    ("LMHeadModel", "causal-lm"),
    ("ForConditionalGeneration", "seq2seq"),
    ("ForSequenceClassification", "classifier"),
    ("ForTokenClassification", "classifier"),
    ("ForImageClassification", "classifier"),
    ("ForAudioClassification", "classifier"),
    ("Model", "encoder"),
)
"""The role by how the architecture's name ends; the first that fits."""


EXPERTS = "batched_mm"
"""How mixtures of experts multiply: the form of matrix products alone, which every runtime has."""


def role_of(model: Any) -> str:
    """What the model is for, as far as its class and config say."""
    if getattr(model.config, "is_encoder_decoder", False):
        return "seq2seq"
    name = type(model).__name__
    return next((role for ending, role in ROLES if name.endswith(ending)), "unknown")


def context_length(config: Any) -> int | None:
    """The most tokens that a text model was made for, as its config says under one of its names."""
    text = getattr(config, "text_config", config)
    found = (getattr(text, name, None) for name in ("max_position_embeddings", "n_positions"))
    return next((int(length) for length in found if isinstance(length, int) and length > 0), None)


def read_config(doing: str, folder: Path) -> Any:
    """The folder's transformers config. Raises CompilerError when it is damaged or of an unknown kind."""
    import transformers

    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CompilerError(doing, f"config.json is damaged ({error})", "Fetch the file again.") from error
    if not isinstance(content, dict) or "model_type" not in content:
        hint = "A transformers config.json names its model_type."
        raise CompilerError(doing, "config.json is not a model's config", hint)
    kind = str(content["model_type"])
    known = transformers.CONFIG_MAPPING
    if kind not in known:
        hint = "Code that comes with a checkpoint is never run; name a file.py:factory that builds the model."
        hint = hint if "auto_map" in content else nearest_hint(kind, known, hint)
        raise CompilerError(doing, f"transformers knows no model type {kind!r}", hint)
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # each config class checks its fields in its own way
        problem = f"config.json does not fit model type {kind!r} ({first_line(error)})"
        raise CompilerError(doing, problem, "Compare it with the config of a model that works.") from error
    for part in (config, config.get_text_config(decoder=True)):
        part.use_cache = False
    return config


def model_class(doing: str, config: Any) -> Any:
    """The class that `architectures` names, or the plain model of the config's type."""
    import transformers

    names = getattr(config, "architectures", None) or []
    if not names:
        return transformers.AutoModel
    found = getattr(transformers, names[0], None)
    if found is None or not isinstance(found, type) or not issubclass(found, transformers.PreTrainedModel):
        like = [name for name in dir(transformers) if name.lower().startswith(str(config.model_type)[:3])]
        hint = nearest_hint(names[0], like, "Code that comes with a checkpoint is never run; name a file.py:factory.")
        raise CompilerError(doing, f"transformers has no architecture {names[0]!r}", hint)
    return found


def build_model(doing: str, source: Path, cls: Any, config: Any, **reading: Any) -> tuple[Any, set[str]]:
    """The model in float32 with its weights read, and the weights that the checkpoint does not hold, by name.

    `reading` goes to from_pretrained. Raises CompilerError when weights have other shapes than the config says, or when
    the checkpoint holds weights of parts of the model that the config does not have.
    """
    attention = "sdpa" if getattr(cls, "_supports_sdpa", True) else "eager"
    if getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None):
        reading["experts_implementation"] = EXPERTS
    try:
        model, found = cls.from_pretrained(
            source,
            config=config,
            local_files_only=True,
            trust_remote_code=False,
            attn_implementation=attention,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **reading,
        )
    except Exception as error:  # configs that contradict themselves fail anywhere in the model's constructor
        problem = f"the model cannot be built from its config ({first_line(error)})"
        raise CompilerError(doing, problem, "Do config and weights belong together?") from error
    _refuse_mismatches(doing, found)
    _refuse_strays(doing, model, found)
    return model, set(found["missing_keys"])


def refuse_missing(doing: str, missing: set[str], used: set[str]) -> None:
    """Raise CompilerError when a weight that the graph uses was not in the checkpoint and so has random values."""
    random = sorted(missing & used)
    if random:
        problem = f"{_counted(random)} that the config asks for are not in the checkpoint"
        raise CompilerError(doing, problem, "Do config and weights belong together?")


def _refuse_mismatches(doing: str, found: dict[str, Any]) -> None:
    mismatched = sorted(found["mismatched_keys"])
    if mismatched:
        name, stored, expected = mismatched[0]
        more = f", and {len(mismatched) - 1} more" if len(mismatched) > 1 else ""
        problem = f"{name} is {list(stored)} in the checkpoint and {list(expected)} by the config{more}"
        raise CompilerError(doing, problem, "Do config and weights belong together?")
    if found["error_msgs"]:
        raise CompilerError(
            doing, str(found["error_msgs"][0]).splitlines()[0], "Do config and weights belong together?"
        )


def _refuse_strays(doing: str, model: nn.Module, found: dict[str, Any]) -> None:
    """Weights of parts that the model has are an error; a head that another task trained is not."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    parts = {name for name, _ in model.named_children()}
    base = getattr(model, prefix[:-1], None)
    parts |= {name for name, _ in base.named_children()} if isinstance(base, nn.Module) else set()
    strays = sorted(key for key in found["unexpected_keys"] if key.removeprefix(prefix).split(".")[0] in parts)
    if strays:
        problem = f"the checkpoint holds {_counted(strays)} that the config has no place for"
        raise CompilerError(doing, problem, "Do config and weights belong together?")


def _counted(names: list[str]) -> str:
    return f"{len(names)} weights ({names[0]}{', ...' if len(names) > 1 else ''})"
