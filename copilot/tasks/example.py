"""One supervised example: what a model reads, what it should write, and the answer that counts."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """A prompt with its target.

    Attributes:
        prompt: Text the model is given; its tokens are not supervised.
        completion: Text to learn. It starts with a space and carries no end-of-sequence token, which belongs to the
            tokenizer. Empty where a test file gives only the answer.
        answer: The reference answer that `Task.is_correct` compares with.
        task: Name of the task, a key of `TASKS`.
        grade: Difficulty from 1 (one operation) upwards; 0 where the data set does not grade its problems.
    """

    prompt: str
    completion: str
    answer: str
    task: str
    grade: int = 0
