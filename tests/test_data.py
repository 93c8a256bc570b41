"""Rows of text become supervised tokens, and rows become batches."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from datasets import Dataset, DatasetDict, load_dataset
from tokenizers import processors

from copilot import data
from copilot.data import DataCollator, prepare_dataset

IGNORED = -100


def decoded(tokenizer, row) -> tuple[str, str]:
    """All tokens of a row, and its supervised ones."""
    supervised = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != IGNORED]
    assert supervised == [label for label in row["labels"] if label != IGNORED]
    return tokenizer.decode(row["input_ids"]), tokenizer.decode(supervised)


def test_a_completion_is_supervised_up_to_its_end_token(tokenizer):
    rows = prepare_dataset([{"prompt": "w1 w2", "completion": "w3 w4", "id": 7}], tokenizer)
    assert rows.column_names == ["input_ids", "labels"]
    assert decoded(tokenizer, rows[0]) == ("<bos> w1 w2 w3 w4 <eos>", "w3 w4 <eos>")


def test_the_prompt_is_supervised_too_on_request(tokenizer):
    rows = prepare_dataset([{"prompt": "w1 w2", "completion": "w3"}], tokenizer, completion_only_loss=False)
    # Not <bos>: nothing predicts the first token.
    assert decoded(tokenizer, rows[0]) == ("<bos> w1 w2 w3 <eos>", "w1 w2 w3 <eos>")


def test_a_datasets_dataset_and_a_list_give_the_same_rows(tokenizer):
    raw = [{"prompt": "w1", "completion": "w2"}, {"prompt": "w3 w4", "completion": "w5"}]
    assert prepare_dataset(Dataset.from_list(raw), tokenizer)[:] == prepare_dataset(raw, tokenizer)[:]


def test_rows_are_prepared_anew_by_other_code(tokenizer, tmp_path, monkeypatch):
    """Those of a file are cached by the name of the function that encodes them, not by what it does."""
    (tmp_path / "rows.jsonl").write_text('{"prompt": "w1", "completion": "w2"}\n', encoding="utf-8")
    raw = load_dataset("json", data_files=str(tmp_path / "rows.jsonl"), split="train", cache_dir=str(tmp_path))
    before = prepare_dataset(raw, tokenizer)[0]["input_ids"]
    monkeypatch.setattr(data, "_with_end", lambda tokens, _tokenizer: [*tokens, 7])
    assert prepare_dataset(raw, tokenizer)[0]["input_ids"] == [*before[:-1], 7]


def test_a_long_prompt_loses_its_beginning(tokenizer):
    rows = prepare_dataset([{"prompt": "w1 w2 w3 w4", "completion": "w5"}], tokenizer, max_length=4)
    assert decoded(tokenizer, rows[0]) == ("<bos> w4 w5 <eos>", "w5 <eos>")


def test_a_long_completion_loses_its_end(tokenizer):
    rows = prepare_dataset([{"prompt": "w1", "completion": "w2 w3 w4 w5 w6"}], tokenizer, max_length=4)
    assert decoded(tokenizer, rows[0]) == ("<bos> w2 w3 w4", "w2 w3 w4")


def test_a_row_without_a_beginning_of_sequence_is_cut_at_its_first_token(ending):
    raw = [{"prompt": "w1 w2 w3 w4", "completion": "w5"}, {"prompt": "w1", "completion": "w2 w3 w4 w5 w6"}]
    rows = prepare_dataset(raw, ending, max_length=4)
    assert decoded(ending, rows[0]) == ("w3 w4 w5 <eos>", "w5 <eos>")
    assert decoded(ending, rows[1]) == ("w2 w3 w4 w5", "w3 w4 w5")


def test_text_is_supervised_but_for_its_first_token(tokenizer):
    rows = prepare_dataset([{"text": "w1 w2 w3"}], tokenizer)
    assert decoded(tokenizer, rows[0]) == ("<bos> w1 w2 w3 <eos>", "w1 w2 w3 <eos>")


CONVERSATION = [
    {"role": "user", "content": "w1"},
    {"role": "assistant", "content": "w2 w3"},
    {"role": "user", "content": "w4"},
    {"role": "assistant", "content": "w5"},
]


def test_a_conversation_is_rendered_by_the_chat_template(tokenizer):
    rows = prepare_dataset([{"messages": CONVERSATION}], tokenizer)
    rendered = tokenizer.apply_chat_template(CONVERSATION)["input_ids"]
    assert rows[0]["input_ids"] == rendered
    assert rows[0]["labels"] == [IGNORED, *rendered[1:]]


def test_only_the_assistant_is_supervised_on_request(tokenizer):
    rows = prepare_dataset([{"messages": CONVERSATION}], tokenizer, assistant_only_loss=True)
    assert rows[0]["input_ids"] == tokenizer.apply_chat_template(CONVERSATION)["input_ids"]
    assert decoded(tokenizer, rows[0])[1] == "w2 w3 <end> w5 <end>"


def test_what_the_template_writes_before_an_assistant_that_speaks_first_is_not_supervised(tokenizer, monkeypatch):
    raw = [{"messages": CONVERSATION[1:]}]
    monkeypatch.setattr(tokenizer, "chat_template", "w9 w8" + tokenizer.chat_template)
    rows = prepare_dataset(raw, tokenizer, assistant_only_loss=True)
    assert rows[0]["input_ids"] == tokenizer.apply_chat_template(CONVERSATION[1:])["input_ids"]
    assert decoded(tokenizer, rows[0])[1] == "w2 w3 <end> w5 <end>"
    rewritten = tokenizer.chat_template.replace("%} <assistant>{%", "%} <assistant> w7{%")
    monkeypatch.setattr(tokenizer, "chat_template", rewritten)
    with pytest.raises(ValueError, match="the first words of the assistant cannot be located"):
        prepare_dataset(raw, tokenizer, assistant_only_loss=True)


def test_what_follows_the_last_answer_is_kept_unsupervised(tokenizer):
    rows = prepare_dataset([{"messages": CONVERSATION[:3]}], tokenizer, assistant_only_loss=True)
    assert rows[0]["input_ids"] == tokenizer.apply_chat_template(CONVERSATION[:3])["input_ids"]
    assert decoded(tokenizer, rows[0])[1] == "w2 w3 <end>"


def test_a_long_conversation_loses_its_beginning(tokenizer):
    rows = prepare_dataset([{"messages": CONVERSATION}], tokenizer, max_length=4, assistant_only_loss=True)
    assert decoded(tokenizer, rows[0]) == ("<bos> <assistant> w5 <end>", "w5 <end>")


def test_messages_of_prompt_and_completion_are_rendered_as_one_conversation(tokenizer):
    raw = [{"prompt": CONVERSATION[:3], "completion": CONVERSATION[3:]}]
    rows = prepare_dataset(raw, tokenizer)
    assert rows[0]["input_ids"] == tokenizer.apply_chat_template(CONVERSATION)["input_ids"]
    assert decoded(tokenizer, rows[0])[1] == "w5 <end>"
    asked = tokenizer.apply_chat_template(CONVERSATION[:3], add_generation_prompt=True)["input_ids"]
    assert rows[0]["input_ids"][: len(asked)] == asked
    assert rows[0]["labels"][: len(asked)] == [IGNORED] * len(asked)


def test_messages_of_prompt_and_completion_that_cannot_be_told_apart_are_refused(tokenizer, monkeypatch):
    raw = [{"prompt": CONVERSATION[:1], "completion": CONVERSATION[1:2]}]
    with pytest.raises(ValueError, match=r"the column completion holds 'w2', expected lists of \{role, content\}"):
        prepare_dataset([{"prompt": CONVERSATION[:1], "completion": "w2"}], tokenizer)
    monkeypatch.setattr(tokenizer, "chat_template", "{{ messages | length }}" + tokenizer.chat_template)
    with pytest.raises(ValueError, match="does not begin an answer as it prompts for one"):
        prepare_dataset(raw, tokenizer)
    monkeypatch.setattr(tokenizer, "chat_template", None)
    with pytest.raises(ValueError, match=r"^row 0, .*: processing_class has no chat_template, which messages"):
        prepare_dataset(raw, tokenizer)


def test_a_stream_is_refused_before_it_is_read(tokenizer):
    with pytest.raises(TypeError, match=r"^dataset is an IterableDataset, expected one of known length"):
        prepare_dataset(Dataset.from_list([{"text": "w1"}]).to_iterable_dataset(), tokenizer)


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", "{{ messages | length }}" + tokenizer.chat_template)
    with pytest.raises(ValueError, match="changes earlier turns when a later message is added"):
        prepare_dataset([{"messages": CONVERSATION}], tokenizer, assistant_only_loss=True)


def test_a_template_that_drops_thoughts_once_the_user_speaks_again_is_refused(tokenizer, monkeypatch):
    template = "{% for m in messages %}{{ m.content }} {% if loop.last and m.role == 'assistant' %}w9 {% endif %}"
    monkeypatch.setattr(tokenizer, "chat_template", template + "{% endfor %}")
    assert tokenizer.decode(prepare_dataset([{"messages": CONVERSATION[:2]}], tokenizer)[0]["input_ids"]).endswith("w9")
    with pytest.raises(ValueError, match="changes earlier turns when a later message is added"):
        prepare_dataset([{"messages": CONVERSATION[:3]}], tokenizer)


def test_tokenised_rows_are_taken_as_they_are_and_need_no_tokenizer():
    raw = [{"input_ids": [5, 6, 7, 8], "labels": [IGNORED, IGNORED, 7, 8]}]
    assert prepare_dataset(raw, None)[0] == raw[0]
    assert prepare_dataset(raw, None, max_length=3)[0] == {"input_ids": [6, 7, 8], "labels": [IGNORED, 7, 8]}


@pytest.mark.parametrize(
    "packed", [{"position_ids": [0, 1, 0, 1]}, {"position_ids": [0, 0, 0, 0]}, {"seq_lengths": [2, 2]}], ids=list
)
def test_several_texts_packed_in_a_row_are_refused(packed):
    """As by the pair's forward: they would attend to each other."""
    tokens = {"input_ids": [5, 6, 7, 8], "labels": [5, 6, 7, 8]}
    with pytest.raises(ValueError, match="pack several texts in a row"):
        prepare_dataset([tokens | packed], None)
    one = tokens | {"position_ids": [0, 1, 2, 3], "seq_lengths": [4]}
    assert prepare_dataset([one], None)[0] == tokens | {"labels": [IGNORED, 6, 7, 8]}


def test_tokenised_rows_keep_the_beginning_of_sequence_of_a_tokenizer(tokenizer):
    raw = [{"input_ids": [2, 6, 7, 8], "labels": [2, 6, 7, 8]}, {"input_ids": [5, 6, 7, 8], "labels": [5, 6, 7, 8]}]
    rows = prepare_dataset(raw, tokenizer, max_length=3)
    assert rows["input_ids"][:] == [[2, 7, 8], [6, 7, 8]]
    assert rows["labels"][:] == [[IGNORED, 7, 8], [IGNORED, 7, 8]]


def test_an_encoder_reads_the_prompt_and_the_completion_is_the_target(tokenizer):
    rows = prepare_dataset([{"prompt": "w1 w2", "completion": "w3"}], tokenizer, is_encoder_decoder=True)
    assert tokenizer.decode(rows[0]["input_ids"]) == "<bos> w1 w2"
    assert tokenizer.decode(rows[0]["labels"]) == "<bos> w3 <eos>"
    short = prepare_dataset(
        [{"prompt": "w1 w2", "completion": "w3 w4"}], tokenizer, is_encoder_decoder=True, max_length=2
    )
    assert tokenizer.decode(short[0]["input_ids"]) == "<bos> w1"
    assert tokenizer.decode(short[0]["labels"]) == "<bos> w3"


@pytest.fixture
def ending(tokenizer):
    """The tokenizer, but one that ends every text, as T5's do."""
    changed = copy.deepcopy(tokenizer)
    changed.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    return changed


def test_a_text_that_its_tokenizer_ends_is_not_ended_twice(ending):
    (row,) = prepare_dataset([{"prompt": "w1 w2", "completion": "w3"}], ending, is_encoder_decoder=True)
    assert [ending.decode(row[name]) for name in ("input_ids", "labels")] == ["w1 w2 <eos>", "w3 <eos>"]
    (row,) = prepare_dataset([{"text": "w1 w2"}], ending)
    assert decoded(ending, row) == ("w1 w2 <eos>", "w2 <eos>")
    (row,) = prepare_dataset([{"prompt": "w1 w2", "completion": "w3"}], ending)
    assert decoded(ending, row) == ("w1 w2 w3 <eos>", "w3 <eos>")


def test_the_end_marker_of_a_source_that_is_cut_stays(ending):
    raw = [{"prompt": "w1 w2 w3 w4", "completion": "w5"}]
    (row,) = prepare_dataset(raw, ending, is_encoder_decoder=True, max_length=3)
    assert ending.decode(row["input_ids"]) == "w1 w2 <eos>"


def test_unsupervised_rows_are_dropped_with_one_warning(caplog):
    raw = [{"input_ids": [5, 6], "labels": [IGNORED, 6]}] + 3 * [{"input_ids": [5, 6], "labels": [5, IGNORED]}]
    with caplog.at_level(logging.WARNING, logger="copilot.data"):
        rows = prepare_dataset(raw, None)
    assert len(rows) == 1
    assert [record.getMessage() for record in caplog.records] == ["Dropped 3 of 4 rows without a supervised token."]


@pytest.mark.parametrize(
    ("raw", "options", "message"),
    [
        ([], {}, "dataset is empty"),
        ([{"question": "w1"}], {}, r"columns \['question'\], expected \{input_ids, labels\}"),
        ([{"text": "w1"}], {"is_encoder_decoder": True}, r"columns \['text'\], expected .* or \{prompt, completion\}$"),
        ([{"prompt": "w1", "completion": ["w2"]}], {}, "the column completion holds list, expected strings"),
        ([{"text": "w1"}], {"max_length": 1}, "max_length is 1, expected at least 2"),
        ([{"text": "w1"}], {"assistant_only_loss": True}, "assistant_only_loss needs the column messages"),
        ([{"input_ids": [1, 2], "labels": [IGNORED] * 2}], {}, "no row of the dataset has a supervised token"),
        ([{"input_ids": [1, 2], "labels": [1]}], {}, "2 input_ids and 1 labels"),
    ],
)
def test_unusable_data_is_named(tokenizer, raw, options, message):
    with pytest.raises(ValueError, match=message):
        prepare_dataset(raw, tokenizer, **options)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (DatasetDict(train=Dataset.from_list([{"text": "w1"}])), "got a DatasetDict of train"),
        ("rows.jsonl", "got a str"),
        ([("w1", "w2")], "got a list"),
        (None, "got a NoneType"),
    ],
    ids=["splits", "path", "tuples", "none"],
)
def test_what_holds_no_rows_is_refused(tokenizer, given, message):
    with pytest.raises(TypeError, match=f"dataset must be a datasets.Dataset or rows, each a dictionary; {message}"):
        prepare_dataset(given, tokenizer)


def test_the_row_that_cannot_be_used_is_named_however_long_it_is(tokenizer):
    rows = [{"prompt": "w1 " * 100, "completion": "w2"}] * 3 + [{"prompt": "w1 " * 100, "completion": None}]
    with pytest.raises(ValueError, match=r"^row 3, \{.*None.*w1.*\}: the column completion holds NoneType") as caught:
        prepare_dataset(rows, tokenizer)
    assert len(str(caught.value)) < 200


def test_a_conversation_that_is_none_is_refused(tokenizer):
    with pytest.raises(ValueError, match="the column messages holds 'w1', expected lists"):
        prepare_dataset([{"messages": "w1"}], tokenizer)


@pytest.mark.parametrize(
    "message",
    [{"from": "human", "value": "w1"}, {"role": "user", "value": "w1"}, {"role": None, "content": "w1"}],
    ids=["from", "value", "none"],
)
def test_a_message_without_role_or_content_is_named(tokenizer, message):
    with pytest.raises(ValueError, match=r"^row 0, .* messages holds the message \{.*w1.*\}, expected \{role, content"):
        prepare_dataset([{"messages": [message]}], tokenizer)
    with pytest.raises(ValueError, match=r"^row 0, .* completion holds the message \{.*w1.*\}, expected \{role, con"):
        prepare_dataset([{"prompt": CONVERSATION[:1], "completion": [message]}], tokenizer)


def test_what_a_chat_template_refuses_is_named(tokenizer, monkeypatch):
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('No system role') }}{% endif %}"
    monkeypatch.setattr(tokenizer, "chat_template", refusing + tokenizer.chat_template)
    system = {"role": "system", "content": "w9"}
    with pytest.raises(ValueError, match=r"^row 0, .* processing_class refuses \[.*w9.*\]: No system role"):
        prepare_dataset([{"messages": [system, *CONVERSATION[:1], CONVERSATION[1]]}], tokenizer)
    with pytest.raises(ValueError, match=r"^row 0, .* processing_class refuses \[.*w9.*\]: No system role"):
        prepare_dataset([{"prompt": [system], "completion": CONVERSATION[1:2]}], tokenizer)


def test_a_dataset_of_tensors_is_read_as_lists():
    rows = [{"input_ids": [5, 6, 7], "labels": [5, 6, 7], "attention_mask": [0, 1, 1]}]
    assert list(prepare_dataset(Dataset.from_list(rows).with_format("torch"), None)) == list(
        prepare_dataset(rows, None)
    )


@pytest.mark.parametrize(
    ("row", "options"),
    [
        ({"prompt": "w1 w2", "completion": "w3 w4"}, {}),  # <bos> w1 w2 w3 w4 <eos>
        ({"prompt": "w1 w2 w3 w4", "completion": "w5"}, {"is_encoder_decoder": True}),
        ({"prompt": "w1", "completion": "w2 w3 w4 w5"}, {"is_encoder_decoder": True}),
        ({"text": "w1 w2 w3 w4"}, {}),
        ({"input_ids": [3, 4, 5, 6, 7, 8], "labels": [3, 4, 5, 6, 7, 8]}, {}),
    ],
    ids=["prompt", "source", "target", "text", "tokens"],
)
def test_rows_that_are_cut_are_counted(tokenizer, caplog, row, options):
    with caplog.at_level(logging.WARNING, logger="copilot.data"):
        prepare_dataset([row] * 2, tokenizer, max_length=6, **options)
        assert not caplog.records
        prepare_dataset([row] * 2, tokenizer, max_length=4, **options)
    assert [record.getMessage() for record in caplog.records] == ["Cut 2 of 2 rows to max_length, 4 tokens."]


def test_text_without_a_tokenizer_is_refused():
    with pytest.raises(ValueError, match="processing_class is None"):
        prepare_dataset([{"text": "w1"}], None)


def test_decoder_only_rows_end_together():
    rows = [{"input_ids": [5, 6, 7], "labels": [IGNORED, 6, 7]}, {"input_ids": [8, 9], "labels": [IGNORED, 9]}]
    batch = DataCollator(pad_token_id=1)(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [1, 8, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 1, 1]]
    assert batch["labels"].tolist() == [[IGNORED, 6, 7], [IGNORED, IGNORED, 9]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_encoder_decoder_rows_start_together():
    rows = [{"input_ids": [5, 6, 7], "labels": [6]}, {"input_ids": [8, 9], "labels": [9, 3]}]
    batch = DataCollator(pad_token_id=1, is_encoder_decoder=True)(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[6, IGNORED], [9, 3]]


@pytest.mark.parametrize("is_encoder_decoder", [False, True])
def test_what_an_attention_mask_hides_is_left_out(is_encoder_decoder):
    labels = [7, 8] if is_encoder_decoder else [-100, -100, -100, 4, 5]
    raw = [{"input_ids": [0, 0, 3, 4, 5], "attention_mask": [0, 0, 1, 1, 1], "labels": labels}]
    (row,) = prepare_dataset(raw, None, is_encoder_decoder=is_encoder_decoder)
    assert row["input_ids"] == [3, 4, 5]
    assert row["labels"] == (labels if is_encoder_decoder else [-100, 4, 5])


def test_an_attention_mask_of_another_length_is_refused():
    with pytest.raises(ValueError, match="3 input_ids and 2 in attention_mask"):
        prepare_dataset([{"input_ids": [3, 4, 5], "attention_mask": [1, 1], "labels": [3, 4, 5]}], None)
