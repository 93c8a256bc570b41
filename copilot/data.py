"""Data of a fine-tuning run: rows of text become rows of token ids, and rows become batches."""

from __future__ import annotations

import logging
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from datasets.utils import tqdm
from transformers import PreTrainedTokenizerBase

from copilot.conversations import messages_of, renderer, turns
from copilot.loss import IGNORE_INDEX

logger = logging.getLogger(__name__)

DECODER_ONLY_COLUMNS = "{input_ids, labels}, {prompt, completion}, {messages} or {text}"
ENCODER_DECODER_COLUMNS = "{input_ids, labels} or {prompt, completion}"
CONVERSATION_COLUMNS = ("messages", "prompt", "completion", "tools", "chat_template_kwargs")


def prepare_dataset(
    dataset: Dataset | Iterable[Mapping[str, Any]],
    processing_class: PreTrainedTokenizerBase | None,
    *,
    max_length: int = 256,
    is_encoder_decoder: bool = False,
    completion_only_loss: bool = True,
    assistant_only_loss: bool = False,
) -> Dataset:
    """Tokenise a dataset for the pair.

    The columns say what a row is; others are dropped, but for `tools` and `chat_template_kwargs` of conversations:

    - `{prompt, completion}`, two strings. They are tokenised apart, as they are at inference, and the completion gets
      an end-of-sequence token. Supervised: the completion (`completion_only_loss=False`: the prompt too). A row longer
      than `max_length` loses the beginning of its prompt; a completion that is too long by itself loses its end. For
      a decoder-only model both may be lists of messages instead, which the tokenizer's chat template writes.
    - `{messages}`, a conversation for the tokenizer's chat template. Supervised: everything, or only what the assistant
      said (`assistant_only_loss=True`). A row that is too long loses its beginning. Of several answers the Copilot
      reads the earlier ones as steps of its own, not as context as in generation; a row `{prompt, completion}` for each
      answer is the same in both.
    - `{text}`, a string, followed by an end-of-sequence token. All of it is supervised. A row that is too long loses
      its end.
    - `{input_ids, labels}`, tokenised already, and with an `attention_mask` without what that masks. A row that is too
      long loses its beginning.

    A row that loses its beginning keeps a beginning-of-sequence token in front of the rest.

    The chat template also reads a row's `tools`, JSON schemas as a list or as a string, and what its
    `chat_template_kwargs` name. It sees rows of a list as they are given. In a `datasets.Dataset` a key that is None
    counts as absent, as in TRL (but for a message's content): Arrow gives each dictionary the keys of all others.

    An encoder-decoder model accepts `{prompt, completion}` and `{input_ids, labels}`; input and target are truncated
    at their ends, each to `max_length`.

    Rows without a supervised token are dropped, with one warning for all of them, and one counts the rows that were
    too long.

    Args:
        dataset: a `datasets.Dataset` or an iterable of rows (dictionaries with the columns of the first).
        processing_class: the tokenizer; `None` is fine for a tokenised dataset, whose rows are then cut at their first
            token, whatever it is.
        max_length: tokens a row may have, at least 2.

    Returns:
        A dataset with the columns `input_ids` and `labels`, lists of integers. Decoder-only: both have one entry
        per token, labels are not shifted. Encoder-decoder: `input_ids` feed the encoder, `labels` are the decoder's
        targets. A label of -100 is not supervised.

    Raises:
        ValueError: an empty dataset, unknown columns, a missing tokenizer, chat template or end-of-sequence token,
            tokenised rows of several texts each (which their position_ids or seq_lengths tell), messages without role
            or without content and tool calls, tools that are not JSON, a chat template that refuses a conversation or
            does not render it turn by turn, or no supervised token in any row.
        TypeError: neither a dataset nor rows, such as a `DatasetDict` of several splits.
    """
    if max_length is None or max_length < 2:
        raise ValueError(f"max_length is {max_length}, expected at least 2 (a large number cuts nothing)")
    rows = _as_rows(dataset)
    if len(rows) == 0:
        raise ValueError(f"dataset is empty, expected rows with the columns {DECODER_ONLY_COLUMNS}")
    columns = set(rows.column_names if isinstance(rows, Dataset) else rows[0])
    if assistant_only_loss and "messages" not in columns:
        raise ValueError(f"assistant_only_loss needs the column messages, the dataset has {sorted(columns)}")
    encode = _choose_encoder(
        columns, processing_class, max_length, is_encoder_decoder, completion_only_loss, assistant_only_loss
    )
    # Not from the cache, which does not see that this file, or a tokenizer's, has changed.
    fresh = {"load_from_cache_file": False}
    what = "Preparing dataset"
    if isinstance(rows, Dataset):
        named = partial(_encode_arrow_row, encode=encode)
        encoded = rows.map(named, with_indices=True, remove_columns=rows.column_names, desc=what, **fresh)
    else:  # not made a Dataset before: Arrow would change what the chat template sees
        numbered = enumerate(tqdm(rows, desc=what, unit=" examples"))
        encoded = Dataset.from_list([_encode_row(row, number, encode) for number, row in numbered])
    if cut := sum(encoded["cut"]):
        logger.warning("Cut %d of %d rows to max_length, %d tokens.", cut, len(encoded), max_length)
    supervised = encoded.remove_columns("cut").filter(_is_supervised, desc="Dropping unsupervised rows", **fresh)
    if len(supervised) == 0:
        raise ValueError(
            f"no row of the dataset has a supervised token (of {len(encoded)} rows, max_length {max_length})"
        )
    if len(supervised) < len(encoded):
        logger.warning(
            "Dropped %d of %d rows without a supervised token.", len(encoded) - len(supervised), len(encoded)
        )
    return supervised


@dataclass
class DataCollator:
    """Pads rows of `prepare_dataset` to one batch.

    Decoder-only rows are padded on the left, as in generation; encoder-decoder rows on the right.

    Args:
        pad_token_id: any valid token id; padded positions are masked and not supervised.
    """

    pad_token_id: int
    is_encoder_decoder: bool = False

    def __call__(self, rows: list[Mapping[str, list[int]]]) -> dict[str, torch.Tensor]:
        """Return `input_ids`, `attention_mask` (B, S) and `labels` (B, S; encoder-decoder: B, T), all int64."""
        side = "right" if self.is_encoder_decoder else "left"
        inputs = [torch.as_tensor(row["input_ids"], dtype=torch.int64) for row in rows]
        labels = [torch.as_tensor(row["labels"], dtype=torch.int64) for row in rows]

        def pad(sequences: list[torch.Tensor], value: int) -> torch.Tensor:
            return torch.nn.utils.rnn.pad_sequence(sequences, True, padding_value=value, padding_side=side)

        return {
            "input_ids": pad(inputs, self.pad_token_id),
            "attention_mask": pad([torch.ones_like(row) for row in inputs], 0),
            "labels": pad(labels, IGNORE_INDEX),
        }


def _as_rows(rows: Dataset | Iterable[Mapping[str, Any]]) -> Dataset | list[dict[str, Any]]:
    if isinstance(rows, Dataset):
        return rows.with_format(None)
    if isinstance(rows, IterableDataset):
        raise TypeError("dataset is an IterableDataset, expected one of known length: load it without streaming=True")
    given = type(rows).__name__
    if isinstance(rows, Mapping):
        given += f" of {', '.join(rows)}"
    elif isinstance(rows, Iterable):
        rows = list(rows)
        if all(isinstance(row, Mapping) for row in rows):
            columns = dict.fromkeys(rows[0]) if rows else {}
            return [columns | _as_lists(row) for row in rows]
    raise TypeError(f"dataset must be a datasets.Dataset or rows, each a dictionary; got a {given}")


def _as_lists(value: Any) -> Any:
    """The value with lists in place of arrays, tensors and tuples, at any depth."""
    if isinstance(value, str | int):
        return value
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, Mapping):
        return {key: _as_lists(item) for key, item in value.items()}
    return [_as_lists(item) for item in value] if isinstance(value, list | tuple) else value


def _choose_encoder(
    columns: set[str],
    tokenizer: PreTrainedTokenizerBase | None,
    max_length: int,
    is_encoder_decoder: bool,
    completion_only_loss: bool,
    assistant_only_loss: bool,
) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """What turns a row with these columns into `input_ids`, `labels` and `cut`, whether it was too long."""
    if {"input_ids", "labels"} <= columns:
        return partial(_crop_tokens, tokenizer=tokenizer, max_length=max_length, is_encoder_decoder=is_encoder_decoder)
    if tokenizer is None:
        raise ValueError(f"processing_class is None, but a dataset with the columns {sorted(columns)} is not tokenised")
    options: dict[str, Any] = {"tokenizer": tokenizer, "max_length": max_length}
    if "messages" in columns and not is_encoder_decoder:
        if tokenizer.chat_template is None:
            raise ValueError("processing_class has no chat_template, which the column messages needs")
        return partial(_encode_messages, assistant_only_loss=assistant_only_loss, **options)
    if tokenizer.eos_token_id is None:
        raise ValueError("processing_class has no eos_token, which ends every row")
    if {"prompt", "completion"} <= columns:
        if is_encoder_decoder:
            return partial(_encode_source_and_target, **options)
        return partial(_encode_prompt_and_completion, completion_only_loss=completion_only_loss, **options)
    if "text" in columns and not is_encoder_decoder:
        return partial(_encode_text, **options)
    accepted = ENCODER_DECODER_COLUMNS if is_encoder_decoder else DECODER_ONLY_COLUMNS
    raise ValueError(f"dataset has the columns {sorted(columns)}, expected {accepted}")


def _encode_row(
    row: Mapping[str, Any], number: int, encode: Callable[[Mapping[str, Any]], dict[str, Any]]
) -> dict[str, Any]:
    try:
        return encode(row)
    except ValueError as error:  # the row itself too: a dataset that was shuffled has other numbers than its file
        raise ValueError(f"row {number}, {reprlib.repr(dict(row))}: {error}") from error


def _encode_arrow_row(
    row: Mapping[str, Any], number: int, encode: Callable[[Mapping[str, Any]], dict[str, Any]]
) -> dict[str, Any]:
    given = {name: _without_none(row[name], kept="content") for name in CONVERSATION_COLUMNS if name in row}
    return _encode_row({**row, **given}, number, encode)


def _without_none(value: Any, kept: str | None = None) -> Any:
    """The value without the keys that are None, at any depth; the outermost dictionaries keep one of these names."""
    if isinstance(value, Mapping):
        return {key: _without_none(item) for key, item in value.items() if item is not None or key == kept}
    return [_without_none(item, kept) for item in value] if isinstance(value, list) else value


def _encode_prompt_and_completion(
    row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, max_length: int, completion_only_loss: bool
) -> dict[str, Any]:
    if isinstance(row["prompt"], list):
        prompt, completion = _question_and_answer(row, tokenizer)
    else:
        prompt = prompt_tokens(_string(row, "prompt"), tokenizer)
        completion = _with_end(tokenizer(_string(row, "completion"), add_special_tokens=False).input_ids, tokenizer)
    cut = len(prompt) + len(completion) > max_length
    completion = completion[: max_length - _begins(prompt, tokenizer)]
    prompt_labels = [IGNORE_INDEX] * len(prompt) if completion_only_loss else prompt
    return _without_beginning(prompt + completion, prompt_labels + completion, tokenizer, max_length) | {"cut": cut}


def _question_and_answer(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The tokens of the messages of a prompt and of a completion, as the chat template writes them."""
    if tokenizer.chat_template is None:
        raise ValueError("processing_class has no chat_template, which messages in the column prompt need")
    question, answer = messages_of(row, "prompt"), messages_of(row, "completion")
    render = renderer(row, tokenizer)
    asked = render(question, add_generation_prompt=True)
    whole = render(question + answer)
    if not whole.startswith(asked):
        raise ValueError(
            "the chat_template of processing_class does not begin an answer as it prompts for one, so that the "
            "completion cannot be located; give strings instead"
        )
    asked_tokens, answer_tokens = (
        tokenizer(text, add_special_tokens=False).input_ids for text in (asked, whole.removeprefix(asked))
    )
    return asked_tokens, answer_tokens


def prompt_tokens(prompt: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens before a decoder-only model's completion."""
    tokens = tokenizer(prompt).input_ids
    return tokens[:-1] if tokens[-1:] == [tokenizer.eos_token_id] else tokens  # some tokenizers end every text


def _encode_source_and_target(
    row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> dict[str, Any]:
    source = tokenizer(_string(row, "prompt")).input_ids
    target = _with_end(tokenizer(text_target=_string(row, "completion")).input_ids, tokenizer)
    cut = max(len(source), len(target)) > max_length
    if len(source) > max_length:  # the tokenizer cuts before it appends its special tokens: the end marker stays
        source = tokenizer(row["prompt"], truncation=True, max_length=max_length).input_ids
    return {"input_ids": source, "labels": target[:max_length], "cut": cut}


def _encode_messages(
    row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, max_length: int, assistant_only_loss: bool
) -> dict[str, Any]:
    input_ids: list[int] = []
    labels: list[int] = []
    for text, from_assistant in turns(messages_of(row, "messages"), renderer(row, tokenizer)):
        # Turns are tokenised apart, where generation starts and ends: no token straddles a border.
        tokens = tokenizer(text, add_special_tokens=False).input_ids  # the template wrote the special tokens
        input_ids += tokens
        labels += tokens if from_assistant or not assistant_only_loss else [IGNORE_INDEX] * len(tokens)
    return _without_beginning(input_ids, labels, tokenizer, max_length)


def _encode_text(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, Any]:
    tokens = _with_end(tokenizer(_string(row, "text")).input_ids, tokenizer)
    return _decoder_only_row(tokens[:max_length], tokens[:max_length], cut=len(tokens) > max_length)


def _crop_tokens(
    row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase | None, max_length: int, is_encoder_decoder: bool
) -> dict[str, Any]:
    input_ids, labels = row["input_ids"], row["labels"]
    positions = row.get("position_ids") or []
    if any(later <= earlier for earlier, later in pairwise(positions)) or len(row.get("seq_lengths") or []) > 1:
        raise ValueError(
            "position_ids or seq_lengths pack several texts in a row, which would be taken for one; unpack"
        )
    mask = row.get("attention_mask") or [1] * len(input_ids)
    if len(mask) != len(input_ids):
        raise ValueError(f"{len(input_ids)} input_ids and {len(mask)} in attention_mask, expected equally many")
    if is_encoder_decoder:
        source = _kept(input_ids, mask)
        cut = max(len(source), len(labels)) > max_length
        return {"input_ids": source[:max_length], "labels": labels[:max_length], "cut": cut}
    if len(input_ids) != len(labels):
        raise ValueError(f"{len(input_ids)} input_ids and {len(labels)} labels, expected equally many")
    return _without_beginning(_kept(input_ids, mask), _kept(labels, mask), tokenizer, max_length)


def _kept(tokens: list[int], mask: list[int]) -> list[int]:
    return [token for token, kept in zip(tokens, mask, strict=True) if kept]


def _with_end(tokens: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    end = tokenizer.eos_token_id
    return tokens if tokens[-1:] == [end] else [*tokens, end]


def _string(row: Mapping[str, Any], column: str) -> str:
    if not isinstance(row[column], str):
        raise ValueError(f"the column {column} holds {type(row[column]).__name__}, expected strings")
    return row[column]


def _begins(tokens: list[int], tokenizer: PreTrainedTokenizerBase | None) -> bool:
    """Whether the first token is the beginning of a sequence, which models expect where they were trained with it."""
    return tokenizer is not None and tokens[:1] == [tokenizer.bos_token_id]


def _without_beginning(
    input_ids: list[int], labels: list[int], tokenizer: PreTrainedTokenizerBase | None, max_length: int
) -> dict[str, Any]:
    """A row of the last `max_length` tokens; one that begins a sequence stays in front of them."""
    excess = max(0, len(input_ids) - max_length)
    start = int(_begins(input_ids, tokenizer))
    input_ids, labels = ([*row[:start], *row[start + excess :]] for row in (input_ids, labels))
    return _decoder_only_row(input_ids, labels, cut=excess > 0)


def _decoder_only_row(input_ids: list[int], labels: list[int], cut: bool) -> dict[str, Any]:
    # Nothing predicts the first token of a row. Left in place, padding would seem to predict it.
    return {"input_ids": input_ids, "labels": [IGNORE_INDEX, *labels[1:]], "cut": cut}


def _is_supervised(row: Mapping[str, list[int]]) -> bool:
    return any(label != IGNORE_INDEX for label in row["labels"])
