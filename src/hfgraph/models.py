"""Models by hub name or folder, and inputs that they take: what the command line runs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from hfgraph.errors import CannotMakeInputs, ModelNotFound

DTYPES = ("auto", "float32", "bfloat16", "float16")


def quiet() -> None:
    """Progress bars and notes of transformers would run into our own."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def load(name: str, dtype: str = "auto") -> PreTrainedModel:
    """A model in eval mode, of the class that its checkpoint names.

    Args:
        name: a hub name or a local folder.
        dtype: one of `DTYPES`; "auto" is the dtype the weights are stored in.

    Raises:
        ModelNotFound: it cannot be loaded, for whatever reason; the message gives it.
    """
    try:
        config = AutoConfig.from_pretrained(name)
        model = class_of(config).from_pretrained(name, dtype=dtype)
    except Exception as e:  # every failure to load is the same to who named the model; `from e` keeps the rest
        raise ModelNotFound(name, sentence(e)) from e
    return model.eval()


def class_of(config: PreTrainedConfig) -> Any:
    """The class that the checkpoint names; else the Auto class that fits the configuration."""
    for name in config.architectures or ():
        if hasattr(transformers, name):
            return getattr(transformers, name)
    if config.is_encoder_decoder:
        return transformers.AutoModelForSeq2SeqLM
    for auto in (transformers.AutoModelForMaskedLM, transformers.AutoModelForCausalLM):
        if type(config) in auto._model_mapping:
            return auto
    return transformers.AutoModel


def sentence(e: Exception) -> str:
    """The first line of a message, as a sentence."""
    first = (str(e).strip() or type(e).__name__).splitlines()[0].strip()
    return first if first.endswith((".", "!", "?")) else first + "."


def inputs(model: PreTrainedModel, *, batch: int = 2, length: int = 16, seed: int = 0) -> dict[str, Tensor | bool]:
    """Random tokens, special ones excepted, as keyword arguments of the model.

    Raises:
        CannotMakeInputs: the model does not read tokens, or not so many.
    """
    if "input_ids" not in _parameters(model):
        raise CannotMakeInputs(_name(model), f"the model reads {model.main_input_name}, and the command line makes tokens only")
    _check_length(model, length)
    generator = torch.Generator().manual_seed(seed)
    choices = _ordinary_tokens(model.config)
    ids = choices[torch.randint(len(choices), (batch, length), generator=generator)]
    return _completed(model, {"input_ids": ids})


def encoded(model: PreTrainedModel, text: str, *, batch: int = 1, limit: int | None = None) -> dict[str, Tensor | bool]:
    """`text` as the model's tokenizer gives it, as keyword arguments of the model.

    Args:
        limit: keep the first so many tokens.

    Raises:
        CannotMakeInputs: the model comes without a tokenizer, or the text is empty or too long.
    """
    tokens = tokenizer(model)([text] * batch, return_tensors="pt")
    given = {name: tokens[name][:, :limit] for name in ("input_ids", "attention_mask", "token_type_ids") if name in tokens and name in _parameters(model)}
    if "input_ids" not in given or not given["input_ids"].numel():
        raise CannotMakeInputs(_name(model), f"the text {text!r} gives no tokens")
    _check_length(model, given["input_ids"].shape[1])
    return _completed(model, given)


def tokenizer(model: PreTrainedModel) -> Any:
    """The tokenizer that comes with the model.

    Raises:
        CannotMakeInputs: there is none.
    """
    try:
        return AutoTokenizer.from_pretrained(model.name_or_path)
    except Exception as e:
        raise CannotMakeInputs(_name(model), f"a text was given, but no tokenizer comes with the model ({sentence(e).rstrip('.')})") from e


def _completed(model: PreTrainedModel, given: dict[str, Tensor]) -> dict[str, Tensor | bool]:
    """What a forward pass needs besides its tokens."""
    ids = given["input_ids"]
    complete: dict[str, Tensor | bool] = {name: value.to(model.device) for name, value in given.items()}
    if model.config.is_encoder_decoder:
        complete["decoder_input_ids"] = ids.flip(-1).to(model.device)
    if "use_cache" in _parameters(model):
        complete["use_cache"] = False
    return complete


def _name(model: PreTrainedModel) -> str:
    return model.name_or_path or type(model).__name__


def _parameters(model: PreTrainedModel) -> set[str]:
    return set(inspect.signature(model.forward).parameters)


def _check_length(model: PreTrainedModel, length: int) -> None:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if isinstance(limit, int) and 0 < limit < length:
        raise CannotMakeInputs(_name(model), f"{length} tokens are asked for, and the model reads at most {limit}")


def _ordinary_tokens(config: PreTrainedConfig) -> Tensor:
    """Ids of the vocabulary that mark nothing: no padding, no end of text, no place for an image."""
    special = {i for c in (config, config.get_text_config()) for i in _special(c)}
    return torch.tensor([i for i in range(config.get_text_config().vocab_size) if i not in special])


def _special(config: PreTrainedConfig) -> Iterator[int]:
    for name, value in config.to_dict().items():
        if name.endswith(("_token_id", "_token_index")):
            yield from (i for i in (value if isinstance(value, list) else [value]) if isinstance(i, int))
