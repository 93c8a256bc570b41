"""Data formats and metrics of the paper's tasks, and generated problems for the demo."""

from copilot.tasks.arithmetic_problems import ArithmeticProblems, generate_problems
from copilot.tasks.equations import evaluate_equation, evaluate_expression
from copilot.tasks.example import Example
from copilot.tasks.llm_adapters import (
    TASKS,
    Task,
    exact_match,
    extract_letter,
    extract_number,
    read_examples,
)
from copilot.tasks.metrics import (
    Interval,
    PairedBootstrap,
    discounted_gains,
    hit_at_k,
    ndcg_at_k,
    paired_bootstrap,
)
from copilot.tasks.sequences import (
    ItemSequences,
    read_item_sequences,
)

__all__ = [
    "TASKS",
    "ArithmeticProblems",
    "Example",
    "Interval",
    "ItemSequences",
    "PairedBootstrap",
    "Task",
    "discounted_gains",
    "evaluate_equation",
    "evaluate_expression",
    "exact_match",
    "extract_letter",
    "extract_number",
    "generate_problems",
    "hit_at_k",
    "ndcg_at_k",
    "paired_bootstrap",
    "read_examples",
    "read_item_sequences",
]
