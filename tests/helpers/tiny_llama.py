"""A Llama of some thousand weights, its tokenizer of 64 words, and questions for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

WORDS = ["red", "green", "blue", "one", "two", "three", "say", "it", "again", "not", "what", "color", "number", "is"]
SPECIAL = ["<unk>", "<s>", "</s>"]
VOCABULARY = 64

CHAT = (
    "{% for m in messages %}{{ m['role'] + ' is ' + m['content'] + ' </s> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant is' }}{% endif %}"
)


def network(seed: int = 0, **options: Any) -> Any:
    """The same weights for the same seed, in evaluation mode. options: of its configuration."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 32,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "tie_word_embeddings": True,
        "initializer_range": 0.2,
    }
    return LlamaForCausalLM(LlamaConfig(**settings | options)).eval()


def make(folder: Path, dtype: torch.dtype = torch.float32, chat: str | None = CHAT, shards: str = "5GB") -> Path:
    """A folder as `from_pretrained` takes it, with weights."""
    network().to(dtype).save_pretrained(folder, max_shard_size=shards)
    tokenizer().save_pretrained(folder)
    if chat is not None:
        (folder / "chat_template.jinja").write_text(chat)
    return folder


def tokenizer():
    """Words between spaces; a text begins with <s>."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIAL, *WORDS, "user", "assistant", "system"]
    words += [f"w{i}" for i in range(VOCABULARY - len(words))]
    found = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    found.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    found.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=found, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def questions(path: Path, n: int = 60, shape: str = "prompt") -> Path:
    """JSON lines: a word is asked for and said again."""
    rows = []
    for i in range(n):
        word = WORDS[i % 6]
        prompt, answer = f"say it again {word}" if i % 2 else f"say {word}", word
        if shape == "prompt":
            rows.append({"prompt": prompt, "completion": answer})
        elif shape == "text":
            rows.append({"text": f"{prompt} is {answer}"})
        else:
            asked = {"role": "user", "content": prompt}
            rows.append({"messages": [asked, {"role": "assistant", "content": answer}]})
    path.write_text("\n".join(map(json.dumps, rows)))
    return path
