"""The tokenizer of the built-in `tiny` base, made from nothing: bytes, numbers of up to three digits, a few tags.

A number of up to three digits is one token, so that arithmetic is a step from number to number and not a walk over
digits; every other byte is its own token, so that any text survives the round trip.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

SPECIAL_TOKENS = ("<|pad|>", "<|bos|>", "<|user|>", "<|assistant|>", "<|end|>", "<think>", "</think>")
CHAT_TEMPLATE = (
    "{{- '<|bos|>' }}\n"
    "{%- for message in messages %}\n"
    "    {#- The base was trained without a system role, so a system message is left out. #}\n"
    "    {%- if message['role'] == 'user' %}\n"
    "        {{- '<|user|>' + message['content'] }}\n"
    "    {%- elif message['role'] == 'assistant' %}\n"
    "        {{- '<|assistant|><think>' + (message['reasoning_content'] or '') + '</think>' }}\n"
    "        {{- message['content'] + '<|end|>' }}\n"
    "    {%- endif %}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}{{- '<|assistant|><think>' }}{%- endif %}\n"
)


def build_tokenizer() -> Tokenizer:
    """A byte-level BPE whose only merges make the numbers 00 to 99 and 000 to 999."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    digits = "0123456789"
    pairs = [(a, b) for a in digits for b in digits]
    triples = [(a + b, c) for a, b in pairs for c in digits]
    merges = pairs + triples
    symbols = [*SPECIAL_TOKENS, *alphabet, *(a + b for a, b in merges)]
    vocab = {symbol: index for index, symbol in enumerate(symbols)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[0-9]{1,3}"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS])
    return tokenizer


def save_tokenizer(folder: Path) -> None:
    """Write tokenizer.json, its Hugging Face configuration, the chat template and the generation defaults."""
    import json

    tokenizer = build_tokenizer()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|bos|>",
        "eos_token": "<|end|>",
        "pad_token": "<|pad|>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1024,
    }
    generation = {"bos_token_id": 1, "eos_token_id": 4, "pad_token_id": 0, "do_sample": True, "temperature": 1.0}
    files = {
        "tokenizer_config.json": json.dumps(tokenizer_config, indent=2) + "\n",
        "generation_config.json": json.dumps(generation, indent=2) + "\n",
        "chat_template.jinja": CHAT_TEMPLATE,
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
