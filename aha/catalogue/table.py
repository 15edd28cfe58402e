"""The table of `aha models`, and one model in detail, as text for a terminal or a file."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Literal

from aha.catalogue.entry import PLANNED_TOKENS, Entry, planned_tokens
from aha.catalogue.free_memory import FreeMemory
from aha.cost.prices import TokenPrice, moment_words
from aha.models.counts import cache_bytes_per_token, fp8_weight_bytes, weight_bytes

WIDTH = 112
_Columns = Literal["all", "first"]
_FULL_WIDTH = 115
"""Below it the table leaves out FP8, licence and price, and fits 80 columns."""
_COLUMNS = f"  {'model':<30}{'params':>8}{'active':>8}{'KB/token':>9}{'bf16 GB':>8}"
_NARROW_HEAD = f"{_COLUMNS}  {'fits':<4} verified"
_HEAD = f"{_COLUMNS}{'fp8 GB':>8}  {'fits':<5} {'verified':<9} {'licence':<14} {'API $':>9}"
_NARROW_LEGEND = (
    "active: parameters that one token uses. KB/token: bytes of cache a token takes in bf16, all layers together. "
    "bf16: the weights, multi-token prediction included. verified: real = real weights run in this project's "
    "tests; random = the tests hold this class equal to transformers' on random weights; config = counted only."
)
_LEGEND = f"{_NARROW_LEGEND.replace('bf16: the', 'bf16, fp8: the')} API $: list price of a million tokens in/out."
_HINT = "aha models NAME|FOLDER|config.json shows one, aha models WORD lists matches, --json has it all"


def table(entries: Sequence[Entry], *, here: FreeMemory, width: int = _FULL_WIDTH) -> str:
    """One line for each model, those of a family together; in a terminal of less than 115 columns the first columns."""
    columns: _Columns = "first" if width < _FULL_WIDTH else "all"
    lines = [_NARROW_HEAD if columns == "first" else _HEAD]
    for group, members in groupby(entries, key=lambda entry: entry.group):
        rows = list(members)
        types = ", ".join(dict.fromkeys(row.model_type for row in rows if row.model_type))
        owner = f", huggingface.co/{rows[0].owner}" if rows[0].owner else ""
        lines += [f"{group} ({types}{owner})", *(_row(row, here, columns=columns) for row in rows)]
    fits = f"fits: bf16 and {PLANNED_TOKENS:,} tokens, in the {_size(here.num_bytes)} free of {here.name}."
    notes = [
        f"{fits} {_NARROW_LEGEND if columns == 'first' else _LEGEND}",
        *([] if columns == "first" else _prices(entries)),
        _HINT,
    ]
    lines += ["", *(line for note in notes for line in _wrap(note, width))]
    return "\n".join(lines)


def _row(entry: Entry, here: FreeMemory, *, columns: _Columns) -> str:
    config, counts = entry.config, entry.counts
    if config is None or counts is None:
        return f"  {entry.name:<30} {entry.note}"[: len(_NARROW_HEAD) if columns == "first" else WIDTH]
    sizes = (
        f"{_short(counts.total):>8}{_short(counts.active):>8}{cache_bytes_per_token(config) / 1e3:>9.1f}"
        f"{_gb(weight_bytes(config)):>8}"
    )
    fits = "yes" if entry.fits(here) else "no"
    if columns == "first":
        return f"  {entry.name:<30}{sizes}  {fits:<4} {entry.verified.split()[0]}"
    price = "" if entry.price is None else _amounts(entry.price)
    words = f"{fits:<5} {entry.verified.split()[0]:<9} {entry.licence or '-':<14} {price or '-':>9}"
    return f"  {entry.name:<30}{sizes}{_gb(fp8_weight_bytes(config)):>8}  {words}"


def _prices(entries: Sequence[Entry]) -> Iterator[str]:
    prices = {entry.price.price_id: entry.price for entry in entries if entry.price is not None}
    for price in prices.values():
        yield f"{price.name} {_price_words(price)}"


def _price_words(price: TokenPrice) -> str:
    until = f" to {moment_words(price.effective_to)}" if price.effective_to else ""
    return f"${_amounts(price)} from {moment_words(price.effective_from)}{until} [{price.confidence}]: {price.source}"


def _amounts(price: TokenPrice) -> str:
    return f"{price.pico_usd_per_input_token / 1e6:.2f}/{price.pico_usd_per_output_token / 1e6:.2f}"


def describe(entry: Entry, *, here: FreeMemory, width: int = _FULL_WIDTH) -> str:
    """One model, a line for each thing that is known of it."""
    return "\n".join(
        line
        for name, value in _facts(entry, here)
        for line in textwrap.wrap(
            value,
            min(WIDTH, max(width, 60)) - 2,
            initial_indent=f"{name:<16}",
            subsequent_indent=" " * 16,
            break_on_hyphens=False,
        )
    )


def _facts(entry: Entry, here: FreeMemory) -> Iterator[tuple[str, str]]:
    config, counts = entry.config, entry.counts
    yield "model", entry.name
    yield "family", f"{entry.model_type} ({entry.group})"
    if config is not None and counts is not None:
        mtp = f"; {counts.mtp:,} more in multi-token prediction" if counts.mtp else ""
        yield "parameters", f"{counts.total:,}, of which one token uses {counts.active:,}{mtp}"
        yield "attention", _attention(entry)
        if config.experts is not None:
            experts = config.experts
            shared = f" and {experts.num_shared_experts} shared" if experts.num_shared_experts else ""
            yield "experts", f"{experts.num_experts_per_token} of {experts.num_experts}{shared} for each token"
        if config.vision is not None:
            vision = config.vision
            tower = f"a tower of {vision.num_layers} layers, {vision.hidden_size} wide"
            yield "pictures", f"{tower}; {vision.tokens_per_tile} tokens for each tile of {vision.image_size} pixels"
        yield "context", f"{config.max_position_embeddings:,} tokens"
        per_token = cache_bytes_per_token(config)
        whole = _size(per_token * config.max_position_embeddings)
        yield "cache", f"{per_token:,} bytes a token in bf16; {whole} at the whole context"
        yield "weights", f"bf16 {_size(weight_bytes(config))}; fp8 in blocks of 128 {_size(fp8_weight_bytes(config))}"
        needed = f"{_size(entry.needed_bytes(here))} with {planned_tokens(config):,} tokens of cache, in bf16"
        free = f"{_size(here.num_bytes)} are free of {here.name}"
        yield "fits here", f"{'yes' if entry.fits(here) else 'no'}: needs {needed}; {free}"
    yield "verified", _verified(entry)
    yield "licence", entry.licence or "not stated"
    yield "API price", "none known" if entry.price is None else _price_words(entry.price)
    if entry.folder is not None:
        yield "folder", f"{entry.folder} ({_size(entry.num_bytes or 0)})"
    yield "source", entry.source
    if entry.note:
        yield "note", entry.note


def _attention(entry: Entry) -> str:
    config = entry.config
    assert config is not None
    if config.mla is None:
        return f"{config.num_heads} heads, {config.num_kv_heads} of keys and values, {config.num_layers} layers"
    width = f"a latent of {config.mla.kv_lora_rank} + {config.mla.qk_rope_head_dim} numbers is cached"
    return f"latent (MLA): {config.num_heads} heads, {width}, {config.num_layers} layers"


def _verified(entry: Entry) -> str:
    return {
        "real weights": "real weights are loaded and sampled from in this project's tests",
        "random weights": "this class equals transformers' on random weights, in this project's tests",
        "config only": "counted from its configuration; it cannot be loaded here",
    }[entry.verified]


def _short(count: int) -> str:
    return f"{count / 1e9:.1f}B" if count >= 10**9 else f"{count / 1e6:.1f}M"


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f}" if num_bytes >= 10**8 else f"{num_bytes / 1e9:.3f}"


def _size(num_bytes: int) -> str:
    """In decimal units, as model pages and disks count."""
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 10**9 else f"{num_bytes / 1e6:,.1f} MB"


def _wrap(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, min(WIDTH, max(width, 60)), break_on_hyphens=False, break_long_words=False)
