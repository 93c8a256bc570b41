"""Data formats and metrics of the twelve tasks, and generated problems for the demo."""

from copilot.tasks.arithmetic_problems import ArithmeticProblems, generate_problems
from copilot.tasks.equations import evaluate_equation, evaluate_expression
from copilot.tasks.example import Example
from copilot.tasks.llm_adapters import (
    TASKS,
    Task,
    exact_match,
    extract_item,
    extract_letter,
    extract_number,
    read_examples,
)
from copilot.tasks.metrics import (
    Interval,
    PairedBootstrap,
    accuracy,
    bootstrap_interval,
    discounted_gains,
    hit_at_k,
    ndcg_at_k,
    paired_bootstrap,
    ranks_in_lists,
)
from copilot.tasks.sequences import (
    ItemSequences,
    NextItem,
    random_item_numbers,
    read_item_sequences,
    sequence_examples,
)

__all__ = [
    "TASKS",
    "ArithmeticProblems",
    "Example",
    "Interval",
    "ItemSequences",
    "NextItem",
    "PairedBootstrap",
    "Task",
    "accuracy",
    "bootstrap_interval",
    "discounted_gains",
    "evaluate_equation",
    "evaluate_expression",
    "exact_match",
    "extract_item",
    "extract_letter",
    "extract_number",
    "generate_problems",
    "hit_at_k",
    "ndcg_at_k",
    "paired_bootstrap",
    "random_item_numbers",
    "ranks_in_lists",
    "read_examples",
    "read_item_sequences",
    "sequence_examples",
]
