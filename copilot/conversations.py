"""Conversations as a tokenizer's chat template writes them, and which words in them are the assistant's."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase


def messages_of(row: Mapping[str, Any], column: str) -> list[dict[str, Any]]:
    """The messages in a column of a row; ValueError where these are none."""
    messages = row[column]
    if not isinstance(messages, list) or not all(isinstance(message, Mapping) for message in messages):
        raise ValueError(f"the column {column} holds {messages!r}, expected lists of {{role, content}}")
    for message in messages:
        if not isinstance(message.get("role"), str) or not {"content", "tool_calls"} & message.keys():
            expected = "{role, content} or {role, tool_calls}"
            raise ValueError(f"the column {column} holds the message {message!r}, expected {expected}")
    return messages


def renderer(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Callable[..., str]:
    """`_render` with what the row has for the chat template besides messages."""
    tools = row.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except json.JSONDecodeError as error:
            raise ValueError(f"the column tools holds {tools!r}, expected JSON: {error}") from error
    return partial(_render, tokenizer=tokenizer, options={"tools": tools, **(row.get("chat_template_kwargs") or {})})


def _render(
    messages: list[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    options: Mapping[str, Any],
    add_generation_prompt: bool = False,
) -> str:
    """The messages as the chat template writes them."""
    given = {"tokenize": False, "add_generation_prompt": add_generation_prompt}
    try:
        return str(tokenizer.apply_chat_template(messages, **given, **options))
    except (TemplateError, TypeError) as error:  # TypeError: parts of a content, say, where the template adds strings
        raise ValueError(f"the chat_template of processing_class refuses {messages!r}: {error}") from error


def turns(messages: list[dict[str, Any]], render: Callable[..., str]) -> list[tuple[str, bool]]:
    """Cut the rendered conversation where the assistant starts and stops: [(text, from_assistant), ...]."""
    rendered: list[tuple[str, bool]] = []
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            answered = render(messages[: index + 1])
            asked = render(messages[:index], add_generation_prompt=True) if index else _opening(answered, render)
            rendered += [(asked, False), (answered, True)]
    turns, done = [], ""
    for text, from_assistant in [*rendered, (render(messages), False)]:
        if not text.startswith(done):
            raise ValueError(
                "the chat_template of processing_class changes earlier turns when a later message is added, so that "
                "no token can be told to be the assistant's; give the columns prompt and completion instead"
            )
        turns.append((text[len(done) :], from_assistant))
        done = text
    return turns


def _opening(answered: str, render: Callable[..., str]) -> str:
    """What the template writes before the words of an assistant that speaks first, such as a system prompt."""
    question = [{"role": "user", "content": "?"}]
    prompt = render(question, add_generation_prompt=True).removeprefix(render(question))
    if prompt not in answered:
        raise ValueError(
            "the chat_template of processing_class does not begin an answer as it prompts for one, so that the first "
            "words of the assistant cannot be located; begin the conversation with another role"
        )
    return answered[: answered.index(prompt) + len(prompt)]
