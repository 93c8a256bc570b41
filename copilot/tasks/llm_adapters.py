"""The paper's tasks, and the reader of data in the layout of the LLM-Adapters repository.

`<root>/<task>/<split>.json` holds a list of objects with the fields `instruction`, `input`, `output` and `answer`.
A task says how such an object becomes a prompt, how the answer is found in what a model wrote, and when it is correct.
"""

import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from copilot.tasks.equations import evaluate_equation
from copilot.tasks.example import Example

logger = logging.getLogger(__name__)

Kind = Literal["commonsense", "arithmetic", "equation", "recommendation"]
Split = Literal["train", "valid", "test"]

# That of LLM-Adapters. It is absolute: a relative one would let 5605 pass for 5600. Where a reference is rounded to two
# decimals, the exact value is wrong.
NUMBER_TOLERANCE = 1e-3

_FIELDS = ("instruction", "input", "output", "answer")
# A minus directly after a digit, a letter or a bracket is a subtraction, not a sign.
_NUMBER = re.compile(r"(?:(?<![\w.)])-)?\$?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)")
# With which the prompts of the arithmetic tasks begin: a text that does not stop goes on with a problem of its own.
_NEXT_QUESTION = "Question:"
# What stands before is matched too, as far as it goes: of several the last counts.
_FINAL_ANSWER = re.compile(r".*the answer is([^\n]*)", re.IGNORECASE | re.DOTALL)
_FINAL_LETTER = re.compile(
    r".*(?i:(?:answer|option|choice) is|answer):?\s*(?i:therefore\s+|option\s+|choice\s+)*\(?([A-E])\b", re.DOTALL
)
_LONE_LETTER = re.compile(r"(?:\(|\\boxed\{|\*\*)([A-E])(?:\)|\}|\*\*)|^\s*([A-E])(?:[.)]|\s*$)")
_ITEM = re.compile(r"item_\d+")


@dataclass(frozen=True)
class Task:
    """How one task is asked and judged.

    Attributes:
        kind: Family of the task; "equation" is arithmetic whose completion is an equation rather than reasoning.
        template: Format string of the prompt, with the one field `instruction`.
        extract: The answer in a generated text: a string, a number, or None where there is none.
    """

    kind: Kind
    template: str
    extract: Callable[[str], str | float | None]

    def is_correct(self, text: str, answer: str) -> bool:
        """Whether the answer extracted from `text` is `answer`.

        Numbers are equal within `NUMBER_TOLERANCE`; everything else must be the same string.
        """
        extracted = self.extract(text)
        if isinstance(extracted, float):
            return abs(extracted - _to_float(answer)) <= NUMBER_TOLERANCE
        return extracted == answer


def exact_match(text: str, target: str) -> bool:
    """Whether two texts are the same up to white space around them."""
    return text.strip() == target.strip()


def extract_number(text: str) -> float | None:
    """The number after the last "the answer is" on its line, or else the last number of the text.

    Of a calculation, as in "The answer is 5 * 12 = 60.", it is the result. Dollar signs, thousands separators, minus
    signs of print and a closing full stop are understood: "$1,250." is 1250. What follows "Question:" is not read.
    """
    text = text.partition(_NEXT_QUESTION)[0].replace("\N{MINUS SIGN}", "-")
    if final := _FINAL_ANSWER.match(text):
        result = re.sub(r"^[\s:]*-\s+", "-", final.group(1).rpartition("=")[2])  # a sign may stand apart
        if number := _NUMBER.search(result):
            return _to_float(number.group())
    numbers = _NUMBER.findall(text)
    return _to_float(numbers[-1]) if numbers else None


def extract_letter(text: str) -> str | None:
    """The choice A to E named after the last "answer is", "option is", "choice is" or "answer:".

    Else the last one set off by brackets, by \\boxed{} or by two asterisks; or one with which the text begins, as in
    "C. 12", or that is all of it. What follows "Question:" is not read.
    """
    text = text.partition(_NEXT_QUESTION)[0]
    if final := _FINAL_LETTER.match(text):
        return final.group(1)
    letters = [set_off or alone for set_off, alone in _LONE_LETTER.findall(text)]
    return letters[-1] if letters else None


def extract_item(text: str) -> str | None:
    """The first item named in the text, such as `item_1253`."""
    item = _ITEM.search(text)
    return item.group() if item else None


def read_examples(root: str | Path, task: str, split: Split) -> list[Example]:
    """Read `<root>/<task>/<split>.json`.

    A completion is the file's `output`. In a test file of GSM8K, AQuA or SVAMP all are empty, with a warning, where one
    gives another answer than its row: LLM-Adapters has test files of which some model wrote the outputs, often wrongly,
    so that answers can be judged and completions cannot.

    Raises:
        ValueError: `task` or `split` is unknown, or the file does not hold the layout, numbers as answers where the
            task asks for numbers; the message names the place.
        FileNotFoundError: the file does not exist.
    """
    if task not in TASKS:
        raise ValueError(f"task is {task!r}; accepted are {', '.join(TASKS)}")
    if split not in ("train", "valid", "test"):
        raise ValueError(f"split is {split!r}; accepted are train, valid, test")
    path = Path(root) / task / f"{split}.json"
    if not path.is_file():
        raise FileNotFoundError(f"root is {str(root)!r}, which holds no {task}/{split}.json")
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(rows, list) or not rows:
        found = "an empty list" if rows == [] else type(rows).__name__
        raise ValueError(f"{path} holds {found}; accepted is a non-empty list of objects")
    examples = [_to_example(row, task, f"{path}, entry {index}") for index, row in enumerate(rows)]
    if split == "test" and TASKS[task].kind == "arithmetic":
        written = [example for example in examples if example.completion]
        wrong = sum(not TASKS[task].is_correct(example.completion, example.answer) for example in written)
        if wrong:
            message = "%d of %d completions in %s give another answer than their row: only answers are read there."
            logger.warning(message, wrong, len(written), path)
            return [replace(example, completion="") for example in examples]
    return examples


def _to_example(row: object, task: str, place: str) -> Example:
    if not isinstance(row, dict):
        raise ValueError(f"{place} is {type(row).__name__}; accepted is an object with the fields {', '.join(_FIELDS)}")
    missing = [field for field in _FIELDS if field not in row]
    if missing:
        raise ValueError(f"{place} lacks {', '.join(missing)}; required are {', '.join(_FIELDS)}")
    for field in _FIELDS:
        accepted = str | int | float if field == "answer" else str
        if not isinstance(row[field], accepted):
            raise ValueError(f"{place}: {field} is {row[field]!r}; accepted is text")
    instruction = "\n".join(part for part in (row["instruction"].strip(), row["input"].strip()) if part)
    output, answer = row["output"].strip(), str(row["answer"]).strip()
    if TASKS[task].extract in (extract_number, evaluate_equation):
        try:
            _to_float(answer)
        except ValueError:
            raise ValueError(f"{place}: answer is {row['answer']!r}; accepted is a number") from None
    return Example(
        prompt=TASKS[task].template.format(instruction=instruction),
        completion=f" {output}" if output else "",
        answer=answer,
        task=task,
    )


def _to_float(number: str) -> float:
    return float(number.replace("$", "").replace(",", ""))


def _choice(allowed: str) -> Callable[[str], str | None]:
    pattern = re.compile(rf"\b(?:{allowed})\b", re.IGNORECASE)

    def extract_choice(text: str) -> str | None:
        found = pattern.search(text)
        return found.group().lower() if found else None

    return extract_choice


def _commonsense(allowed: str) -> Task:
    # The instruction already ends with the form of the answer.
    return Task("commonsense", "{instruction}", _choice(allowed))


_QUESTION = "Question: {instruction}\nAnswer:"
_EQUATION = "Question: {instruction}\nEquation:"
_NEXT_ITEM = "{instruction}\nNext item:"

TASKS: dict[str, Task] = {
    "piqa": _commonsense("solution[12]"),
    "winogrande": _commonsense("option[12]"),
    "hellaswag": _commonsense("ending[1-4]"),
    "boolq": _commonsense("true|false"),
    "social_i_qa": _commonsense("answer[1-3]"),
    "openbookqa": _commonsense("answer[1-4]"),
    "AQuA": Task("arithmetic", _QUESTION, extract_letter),
    "gsm8k": Task("arithmetic", _QUESTION, extract_number),
    "mawps": Task("equation", _EQUATION, evaluate_equation),
    "SVAMP": Task("arithmetic", _QUESTION, extract_number),
    "beauty": Task("recommendation", _NEXT_ITEM, extract_item),
    "lastfm": Task("recommendation", _NEXT_ITEM, extract_item),
    "arithmetic_problems": Task("equation", _EQUATION, evaluate_equation),
}
"""The twelve tasks of the paper, and the generated problems of `generate_problems`."""
