"""Chat templates as DeepSeek, Qwen and Moonshot publish them: prompts, thinking, and what is read from completions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from aha.chat import ChatFormat
from aha.errors import ModelError
from aha.streaming import Delta
from aha.template import ChatTemplate, Thinking
from aha.types import Completion, FinishReason, Message, Observation

TEMPLATES = Path(__file__).parent / "chat_templates"
BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
DEEPSEEK_TOOLS = [
    f"<｜tool▁{name}｜>" for name in ("calls▁begin", "calls▁end", "call▁begin", "call▁end", "outputs▁begin",
                                      "outputs▁end", "output▁begin", "output▁end", "sep")
]  # fmt: skip
DEEPSEEK = ([BOS, EOS], ["<｜User｜>", "<｜Assistant｜>", "<think>", "</think>", *DEEPSEEK_TOOLS], BOS, EOS)
QWEN = (["<|im_start|>", "<|im_end|>"], ["<think>", "</think>", "<tool_call>", "</tool_call>"], "", "<|im_end|>")
KIMI = (
    ["[BOS]", "<|im_end|>", "<|im_user|>", "<|im_assistant|>", "<|im_system|>", "<|im_middle|>"],
    ["<think>", "</think>"],
    "[BOS]",
    "<|im_end|>",
)
FORMATS = {
    "deepseek_r1_distill": DEEPSEEK,
    "deepseek_r1_0528": DEEPSEEK,
    "deepseek_v3.1": DEEPSEEK,
    "qwen3": QWEN,
    "kimi_k2": KIMI,
    "kimi_k2_thinking": KIMI,
}
SWITCHED = ("deepseek_v3.1", "qwen3")
MODES: tuple[Thinking, ...] = get_args(Thinking)


def build(folder: Path, name: str) -> ChatFormat:
    """A folder with a small tokenizer that has the model's control tokens, as its tokenizer_config.json names them."""
    special, added, bos, eos = FORMATS[name]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    corpus = ["You are a helpful assistant. What is 12 + 7? Let me think step by step.\n\n19 日本語"] * 4
    options = {"initial_alphabet": alphabet, "special_tokens": special, "show_progress": False}
    tokenizer.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=380, **options))
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in added])
    if bos:  # DeepSeek's tokenizers put one in front of plain text; the template writes its own
        bos_id = tokenizer.token_to_id(bos)
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, bos_id)])
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))

    def named(text: str) -> dict[str, Any]:
        return {"__type": "AddedToken", "content": text, "lstrip": False, "normalized": True, "rstrip": False}

    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": named(eos)}
    config |= {"bos_token": named(bos)} if bos else {}
    config["chat_template"] = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return ChatFormat.load(folder)


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ChatFormat]:
    root = tmp_path_factory.mktemp("published")
    return {name: build(root / name, name) for name in FORMATS}


CONVERSATIONS = [
    [Message("user", "What is 12 + 7?")],
    [Message("system", "Be brief."), Message("user", "What is 12 + 7?")],
    [Message("user", "a"), Message("assistant", "19", "twelve and seven"), Message("user", "and 1?")],
    [Message("user", "a"), Message("assistant", "<think>\nold\n</think>\n\n19"), Message("user", " why? ")],
    [Message("user", "a"), Message("assistant", "19", "twelve and seven")],
]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("thinking", MODES)
@pytest.mark.parametrize("index", range(len(CONVERSATIONS)))
def test_prompt_equals_apply_chat_template(
    chats: dict[str, ChatFormat], name: str, thinking: Thinking, index: int
) -> None:
    from transformers import PreTrainedTokenizerFast

    if thinking != "default" and name not in SWITCHED:
        return
    chat = chats[name].with_thinking(thinking)
    reference = PreTrainedTokenizerFast.from_pretrained(chat.folder)
    messages = CONVERSATIONS[index]
    turns = [
        {"role": m.role, "content": m.content}
        | ({} if m.reasoning_content is None else {"reasoning_content": m.reasoning_content})
        for m in messages
    ]
    switches = {} if thinking == "default" else {"enable_thinking": thinking == "on", "thinking": thinking == "on"}
    for add_generation_prompt in (True, False):
        options: dict[str, Any] = {"add_generation_prompt": add_generation_prompt}
        text = reference.apply_chat_template(turns, tokenize=False, **options, **switches)
        ids = reference.apply_chat_template(turns, tokenize=True, return_dict=False, **options, **switches)
        assert chat.render_text(messages, **options) == text
        assert chat.render(messages, **options) == ids


USER = "<｜User｜>12 + 7?<｜Assistant｜>"


@pytest.mark.parametrize(
    ("name", "thinking", "prompt", "is_open"),
    [
        ("deepseek_r1_distill", "default", f"{BOS}{USER}<think>\n", True),
        ("deepseek_r1_0528", "default", f"{BOS}{USER}", False),
        ("deepseek_v3.1", "default", f"{BOS}{USER}</think>", False),
        ("deepseek_v3.1", "off", f"{BOS}{USER}</think>", False),
        ("deepseek_v3.1", "on", f"{BOS}{USER}<think>", True),
        ("qwen3", "default", "<|im_start|>user\n12 + 7?<|im_end|>\n<|im_start|>assistant\n", False),
        ("qwen3", "on", "<|im_start|>user\n12 + 7?<|im_end|>\n<|im_start|>assistant\n", False),
        (
            "qwen3",
            "off",
            "<|im_start|>user\n12 + 7?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
            False,
        ),
    ],
)
def test_prompt_opens_or_closes_the_thinking_as_published(
    chats: dict[str, ChatFormat], name: str, thinking: Thinking, prompt: str, is_open: bool
) -> None:
    chat = chats[name].with_thinking(thinking)
    messages = [Message("user", "12 + 7?")]
    assert chat.render_text(messages) == prompt
    ids = chat.render(messages)
    assert Tokenizer.from_file(str(chat.folder / "tokenizer.json")).decode(ids, skip_special_tokens=False) == prompt
    assert chat.starts_in_thinking(ids) == is_open
    if name.startswith("deepseek"):
        bos_id = chat.vocabulary[BOS]
        assert ids.count(bos_id) == 1, "the template's, and not the tokenizer's on top"
        assert chat.stop_token_ids == (chat.vocabulary[EOS],)


@pytest.mark.parametrize("name", FORMATS)
def test_reasoning_of_earlier_turns_is_dropped(chats: dict[str, ChatFormat], name: str) -> None:
    for said in (Message("assistant", "19", "SECRET"), Message("assistant", "<think>\nSECRET\n</think>\n\n19")):
        if name == "kimi_k2" or (name == "kimi_k2_thinking" and said.reasoning_content is None):
            continue  # K2 does not think; K2-Thinking takes reasoning apart from content only
        text = chats[name].render_text([Message("user", "a"), said, Message("user", "b")])
        assert "SECRET" not in text
        assert "19" in text


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in SWITCHED])
def test_switch_that_a_template_does_not_have_is_refused(chats: dict[str, ChatFormat], name: str) -> None:
    with pytest.raises(ModelError, match=r"no switch for thinking \(enable_thinking or thinking\)"):
        chats[name].with_thinking("off")
    assert chats[name].with_thinking("default").render(CONVERSATIONS[0]) == chats[name].render(CONVERSATIONS[0])


def test_switch_of_the_first_v3_1_template_is_found_too() -> None:
    source = (
        "{% if not thinking is defined %}{% set thinking = false %}{% endif %}{{ '<think>' if thinking else 'no' }}"
    )
    template = ChatTemplate(source, origin="x", named_tokens={})
    answers = [
        template.with_thinking(mode).render([Message("user", "a")], add_generation_prompt=True) for mode in MODES
    ]
    assert answers == ["no", "<think>", "no"]
    with pytest.raises(ModelError, match="wrong at line 1"):
        ChatTemplate("{% if %}", origin="x", named_tokens={}).with_thinking("on")


def sampled(chat: ChatFormat, text: str) -> list[int]:
    """Tokens as the model would emit them: its tags are single tokens."""
    tokenizer = Tokenizer.from_file(str(chat.folder / "tokenizer.json"))
    return [*tokenizer.encode(text, add_special_tokens=False).ids, chat.stop_token_ids[0]]


COMPLETIONS = [
    # name, thinking, completion, reasoning, answer
    ("deepseek_r1_distill", "default", "12 + 7\nis 19.\n</think>\n\n**19**", "12 + 7\nis 19.", "**19**"),
    ("deepseek_r1_distill", "default", "never ends", "never ends", ""),
    ("deepseek_r1_distill", "default", "\n\n</think>\n\n19", "", "19"),
    ("deepseek_r1_distill", "default", "<think>\nonce more\n</think>\n\n19", "once more", "19"),
    ("deepseek_r1_0528", "default", "<think>\n12 + 7\n</think>\n19", "12 + 7", "19"),
    ("deepseek_r1_0528", "default", "19", "", "19"),
    ("deepseek_v3.1", "on", "12 + 7</think>19", "12 + 7", "19"),
    ("deepseek_v3.1", "off", "19", "", "19"),
    ("deepseek_v3.1", "off", "a </think> b", "", "a </think> b"),
    ("qwen3", "default", "<think>\n12 + 7\n</think>\n\n19", "12 + 7", "19"),
    ("qwen3", "default", "<think>\n\n</think>\n\n19", "", "19"),
    ("qwen3", "off", "19", "", "19"),
    ("kimi_k2_thinking", "default", "<think>12 + 7</think>19", "12 + 7", "19"),
]


@pytest.mark.parametrize(("name", "thinking", "text", "reasoning", "answer"), COMPLETIONS)
def test_completion_is_split_into_reasoning_and_answer(
    chats: dict[str, ChatFormat], name: str, thinking: Thinking, text: str, reasoning: str, answer: str
) -> None:
    chat = chats[name].with_thinking(thinking)
    is_open = chat.starts_in_thinking(chat.render([Message("user", "12 + 7?")]))
    ids = sampled(chat, text)
    completion = Completion(tuple(ids), (-0.5,) * len(ids), FinishReason.STOP)
    parsed = chat.parse(completion, starts_in_thinking=is_open)
    assert (parsed.reasoning, parsed.answer) == (reasoning, answer)
    assert joined(stream(chat, ids, is_open=is_open)) == (reasoning, answer)


def stream(chat: ChatFormat, ids: Sequence[int], *, is_open: bool) -> list[Delta]:
    splitter = chat.splitter(is_open)
    return [delta for token_id in ids for delta in splitter.push(token_id)] + splitter.finish()


def joined(deltas: Sequence[Delta]) -> tuple[str, str]:
    reasoning = "".join(delta.text for delta in deltas if delta.kind == "reasoning")
    return reasoning, "".join(delta.text for delta in deltas if delta.kind == "content")


@settings(max_examples=100, deadline=None)
@given(
    data=st.data(),
    name=st.sampled_from(["deepseek_r1_distill", "deepseek_r1_0528", "deepseek_v3.1", "qwen3", "kimi_k2_thinking"]),
)
def test_stream_equals_parse_for_any_tokens(chats: dict[str, ChatFormat], data: st.DataObject, name: str) -> None:
    mode = data.draw(st.sampled_from(MODES)) if name in SWITCHED else "default"
    chat = chats[name].with_thinking(mode)
    is_open = chat.starts_in_thinking(chat.render([Message("user", "a")]))
    tags = [chat.vocabulary["<think>"], chat.vocabulary["</think>"], chat.stop_token_ids[0]]
    any_token = st.integers(0, max(chat.vocabulary.values()))
    ids = data.draw(st.lists(st.one_of(st.sampled_from(tags), any_token), max_size=30))
    completion = Completion(tuple(ids), (-0.5,) * len(ids), FinishReason.STOP)
    parsed = chat.parse(completion, starts_in_thinking=is_open)
    assert joined(stream(chat, ids, is_open=is_open)) == (parsed.reasoning, parsed.answer)


@pytest.mark.parametrize("name", FORMATS)
def test_control_tokens_in_messages_are_spelled_out(chats: dict[str, ChatFormat], name: str) -> None:
    chat = chats[name]
    controls = {token for text in (*FORMATS[name][0], *FORMATS[name][1]) if (token := chat.vocabulary[text])}
    hostile = " ".join([*FORMATS[name][0], *FORMATS[name][1]])
    ids = chat.render([Message("user", f"x {hostile} y")])
    plain = chat.render([Message("user", "x y")])
    assert [i for i in ids if i in controls] == [i for i in plain if i in controls]
    assert hostile in Tokenizer.from_file(str(chat.folder / "tokenizer.json")).decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("name", ["deepseek_r1_distill", "deepseek_v3.1", "qwen3"])
def test_worked_answers_are_encoded_as_the_model_writes_them(chats: dict[str, ChatFormat], name: str) -> None:
    chat = chats[name]
    is_open = chat.starts_in_thinking(chat.render([Message("user", "a")]))
    ids = chat.encode_completion(reasoning="12 + 7", answer="19", starts_in_thinking=is_open)
    parsed = chat.parse(Completion(tuple(ids), (-0.5,) * len(ids), FinishReason.STOP), starts_in_thinking=is_open)
    assert (parsed.reasoning, parsed.answer) == ("12 + 7", "19")
    assert ids.count(chat.vocabulary["</think>"]) == 1
    assert ids.count(chat.vocabulary["<think>"]) == (0 if is_open else 1)


@pytest.mark.parametrize("name", ["deepseek_r1_distill", "deepseek_v3.1", "qwen3"])
def test_tools_result_stands_in_the_models_own_tokens(chats: dict[str, ChatFormat], name: str) -> None:
    chat = chats[name]
    ids = chat.continuation(Observation("19"), last_token_id=chat.stop_token_ids[0])
    shown = Tokenizer.from_file(str(chat.folder / "tokenizer.json")).decode(ids, skip_special_tokens=False)
    assert (
        shown
        == {
            "deepseek_r1_distill": (
                "<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>19<｜tool▁output▁end｜><｜tool▁outputs▁end｜>"
            ),
            "deepseek_v3.1": "<｜tool▁output▁begin｜>19<｜tool▁output▁end｜>",
            "qwen3": "\n<|im_start|>user\n<tool_response>\n19\n</tool_response><|im_end|>\n<|im_start|>assistant\n",
        }[name]
    )
