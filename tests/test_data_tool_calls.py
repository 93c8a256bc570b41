"""Tools and tool calls reach the chat template as the rows give them."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
from datasets import Dataset, load_dataset

from copilot.data import prepare_dataset

# Tools by name, calls by name and arguments; w98 and w99 are what Arrow could fill in.
TEMPLATE = (
    "{{ bos_token }}{{ ' w90' if brief }}{% for tool in tools or [] %} {{ tool.function.name }}"
    "{% for name in tool.function.parameters %} {{ name }}{% endfor %}{% endfor %}"
    "{% for message in messages %} <{{ message.role if message.role == 'assistant' else 'user' }}>"
    "{{ ' ' + message.content if message.content }}"
    "{% for call in message.tool_calls or [] %} {{ call.function.name }}"
    "{% for name, value in call.function.arguments.items() %} {{ name }} {{ 'w99' if value is none else value }}"
    "{% endfor %}{% endfor %}{{ ' w98' if 'tool_calls' in message }} <end>"
    "{% endfor %}{{ ' <assistant>' if add_generation_prompt }}"
)


@pytest.fixture
def calling(tokenizer):
    """The tokenizer, with a chat template for tools."""
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = TEMPLATE
    return changed


def user(content):
    return {"role": "user", "content": content}


def call(name, **arguments):
    called = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [called]}


def tool(name, **parameters):
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = [[tool("w10", w11={"type": "string"})], [tool("w20", w21={"type": "string"})]]
ROWS = [
    {"messages": [user("w1"), call("w10", w11="w12")], "tools": TOOLS[0]},
    {"messages": [user("w2"), call("w20", w21="w22")], "tools": TOOLS[1]},
    {"messages": [user("w3"), {"role": "assistant", "content": "w4"}], "tools": None},
]
PROMPTS = [{"prompt": row["messages"][:1], "completion": row["messages"][1:], "tools": row["tools"]} for row in ROWS]


def texts(rows, tokenizer) -> list[str]:
    return [tokenizer.decode(row["input_ids"]) for row in rows]


EXPECTED = [
    "<bos> w10 w11 <user> w1 <end> <assistant> w10 w11 w12 w98 <end>",
    "<bos> w20 w21 <user> w2 <end> <assistant> w20 w21 w22 w98 <end>",
    "<bos> <user> w3 <end> <assistant> w4 <end>",
]


@pytest.mark.parametrize("raw", [ROWS, PROMPTS], ids=["messages", "prompts"])
def test_rows_of_a_list_keep_their_own_arguments_and_tools(calling, raw):
    rows = prepare_dataset(raw, calling)
    assert rows.column_names == ["input_ids", "labels"]
    assert texts(rows, calling) == EXPECTED


def test_what_the_assistant_called_is_supervised(calling):
    by_messages = prepare_dataset(ROWS, calling, assistant_only_loss=True)
    supervised = [[label for label in row["labels"] if label != -100] for row in by_messages]
    assert calling.decode(supervised[0]) == "w10 w11 w12 w98 <end>"
    assert by_messages[:] == prepare_dataset(PROMPTS, calling)[:]


@pytest.mark.parametrize("raw", [ROWS, PROMPTS], ids=["messages", "prompts"])
def test_keys_that_arrow_fills_in_are_left_out(calling, raw):
    assert texts(prepare_dataset(Dataset.from_list(raw), calling), calling) == EXPECTED


def test_a_file_of_tool_calls_and_its_rows_are_the_same(calling, tmp_path):
    raw = copy.deepcopy(ROWS)
    del raw[0]["messages"][1]["content"]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, raw)), encoding="utf-8")
    loaded = load_dataset("json", data_files=str(tmp_path / "rows.jsonl"), split="train", cache_dir=str(tmp_path))
    assert texts(prepare_dataset(loaded, calling), calling) == EXPECTED


def test_an_argument_that_is_null_in_a_list_stays(calling):
    raw = [{"messages": [user("w1"), call("w10", w11=None)]}]
    assert texts(prepare_dataset(raw, calling), calling) == ["<bos> <user> w1 <end> <assistant> w10 w11 w99 w98 <end>"]


@pytest.mark.parametrize("make", [list, Dataset.from_list])
def test_tools_may_be_json(calling, make):
    raw = [row | {"tools": json.dumps(row["tools"])} for row in ROWS]
    assert texts(prepare_dataset(make(raw), calling), calling) == EXPECTED


@pytest.mark.parametrize("make", [list, Dataset.from_list])
def test_rows_without_tools_need_none(calling, make):
    raw = [{"messages": row["messages"]} for row in ROWS]
    without = [text.replace(" w10 w11 <user>", " <user>").replace(" w20 w21 <user>", " <user>") for text in EXPECTED]
    assert texts(prepare_dataset(make(raw), calling), calling) == without


def test_tools_of_a_later_row_of_a_list_count(calling):
    raw = [{"messages": ROWS[2]["messages"]}, *ROWS[:2]]
    assert texts(prepare_dataset(raw, calling), calling) == [EXPECTED[2], *EXPECTED[:2]]


@pytest.mark.parametrize("make", [list, Dataset.from_list])
def test_what_a_row_sets_for_its_template_is_passed_on(calling, make):
    raw = [{**ROWS[2], "chat_template_kwargs": {"brief": True}}, {**ROWS[2], "chat_template_kwargs": None}]
    (brief, plain) = texts(prepare_dataset(make(raw), calling), calling)
    assert brief == EXPECTED[2].replace("<bos>", "<bos> w90")
    assert plain == EXPECTED[2]


def test_rows_of_a_list_may_hold_tuples_and_arrays(calling):
    def array(value):
        """The value, but arrays for lists, as pandas reads them from a Parquet file."""
        if isinstance(value, dict):
            return {name: array(item) for name, item in value.items()}
        return np.array([array(item) for item in value], dtype=object) if isinstance(value, list) else value

    assert texts(prepare_dataset([array(row) for row in PROMPTS], calling), calling) == EXPECTED
    raw = [row | {"prompt": tuple(row["prompt"]), "completion": tuple(row["completion"])} for row in PROMPTS]
    assert texts(prepare_dataset(raw, calling), calling) == EXPECTED


def test_a_call_needs_no_content(calling):
    asked = call("w10", w11="w12")
    del asked["content"]
    raw = [{"messages": [user("w1"), asked], "tools": TOOLS[0]}]
    assert texts(prepare_dataset(raw, calling), calling) == EXPECTED[:1]


@pytest.mark.parametrize("make", [list, Dataset.from_list])
def test_a_content_that_is_null_is_one(calling, make):
    raw = [{"messages": [user("w1"), {"role": "assistant", "content": None}]}]
    assert texts(prepare_dataset(make(raw), calling), calling) == ["<bos> <user> w1 <end> <assistant> <end>"]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"messages": [user([{"type": "text", "text": "w1"}])]}, "processing_class refuses .*can only concatenate str"),
        ({"messages": ROWS[0]["messages"], "tools": "[w10"}, r"the column tools holds '\[w10', expected JSON"),
        ({"messages": ROWS[0]["messages"], "tools": ["w10"]}, "JSON schema"),
        ({"text": "w1"}, "the column messages holds None, expected lists"),
        ({"messages": [{"role": "assistant"}]}, r"expected \{role, content\} or \{role, tool_calls\}"),
    ],
    ids=["parts", "json", "tools", "columns", "message"],
)
def test_the_row_of_a_list_that_cannot_be_used_is_named(calling, bad, message):
    with pytest.raises(ValueError, match=f"^row 3, .*{message}"):
        prepare_dataset([*ROWS, bad, *ROWS], calling)


@pytest.mark.parametrize("make", [np.array, tuple])
def test_tokens_of_a_list_may_be_in_arrays_and_tuples(make):
    tokens = {"input_ids": [5, 6, 7], "labels": [5, 6, 7], "attention_mask": [0, 1, 1]}
    (row,) = prepare_dataset([{name: make(value) for name, value in tokens.items()}], None)
    assert row == {"input_ids": [6, 7], "labels": [-100, 7]}
