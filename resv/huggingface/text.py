"""Text to token ids and back, and the words around frames and questions.

A model that comes with a tokenizer uses it. The tiny random models have none: their text is bytes, modulo the
vocabulary, so that the whole path runs with no download; what they say means nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

_TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model")


class TextCodec(Protocol):
    """end_ids : tokens that end an answer"""

    end_ids: frozenset[int]

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...


class ByteText:
    """UTF-8 bytes as ids, modulo the vocabulary; ids back modulo 256, what is no UTF-8 replaced."""

    def __init__(self, vocab: int, end_ids: frozenset[int] = frozenset()) -> None:
        self._vocab = vocab
        self.end_ids = end_ids

    def encode(self, text: str) -> list[int]:
        return [byte % self._vocab for byte in text.encode()]

    def decode(self, ids: list[int]) -> str:
        return bytes(i % 256 for i in ids).decode("utf-8", errors="replace")


class PretrainedText:
    """A tokenizer of transformers; special tokens written in the text are taken as such, and none is added."""

    def __init__(self, tokenizer: Any, end_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self.end_ids = end_ids

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text


def text_codec(model: Any) -> TextCodec:
    """The tokenizer beside the model, in its folder or on the hub; bytes where it was made here and has none."""
    ends = _end_ids(model)
    source = str(getattr(model, "name_or_path", "") or "")
    folder = Path(source)
    has_one = any(any(folder.glob(name)) for name in _TOKENIZER_FILES) if folder.is_dir() else "/" in source
    if not has_one:
        return ByteText(model.get_input_embeddings().num_embeddings, ends)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    own = frozenset() if tokenizer.eos_token_id is None else frozenset((int(tokenizer.eos_token_id),))
    return PretrainedText(tokenizer, ends | own)


def _end_ids(model: Any) -> frozenset[int]:
    configs = (getattr(model, "generation_config", None), model.config, model.config.get_text_config())
    ids = [getattr(config, "eos_token_id", None) for config in configs]
    flat = [i for one in ids for i in (one if isinstance(one, (list, tuple)) else [one])]
    return frozenset(int(i) for i in flat if i is not None)


@dataclass(frozen=True)
class Prompts:
    """opening : before the first frame;  question : behind the frames, with {question}"""

    opening: str = ""
    question: str = "\nUser: {question}\nAssistant:"


_CHATML = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
_CHATML_ANSWER = "\n{question}<|im_end|>\n<|im_start|>assistant\n"
PROMPTS: dict[str, Prompts] = {  # source: chat templates of the released checkpoints, by `model_type`
    "llava_onevision": Prompts(_CHATML, _CHATML_ANSWER),
    "qwen2_5_vl": Prompts(_CHATML + "<|vision_start|>", "<|vision_end|>" + _CHATML_ANSWER.lstrip("\n")),
    "qwen2": Prompts(_CHATML, _CHATML_ANSWER),
    "smolvlm": Prompts("<|im_start|>User:", "{question}<end_of_utterance>\nAssistant:"),
}


def prompts_for(model: Any, codec: TextCodec) -> Prompts:
    """The words that the model was trained with; plain ones where text is bytes."""
    return Prompts() if isinstance(codec, ByteText) else PROMPTS.get(model.config.model_type, Prompts())


@dataclass(frozen=True)
class LivePrompts:
    """VideoLLM-online's template: frames stand in brackets, a separator between them.

    Source: models/tokenization_live.py, commit 4ea416c.
    """

    separator: str = ","
    stream: str = "\n["
    question: str = "]\nUser: {question}\nAssistant:"
    unasked: str = "]\nAssistant:"
