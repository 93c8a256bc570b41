"""Generated arithmetic word problems in four grades, with the equation that solves each.

They need no download and can be made in any number, yet they cannot be memorised: the splits share the reasoning types
of `STORIES`, but neither a wording nor a set of operands.
"""

import ast
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from copilot.tasks.arithmetic_stories import (
    CONTAINERS,
    DAYS,
    GAINS,
    LOSES,
    NAMES,
    OBJECTS,
    PLACES,
    Story,
)
from copilot.tasks.arithmetic_stories_grade1 import GRADE_1
from copilot.tasks.arithmetic_stories_grade2 import GRADE_2
from copilot.tasks.arithmetic_stories_grade3 import GRADE_3
from copilot.tasks.arithmetic_stories_grade4 import GRADE_4
from copilot.tasks.example import Example
from copilot.tasks.llm_adapters import TASKS

STORIES = GRADE_1 + GRADE_2 + GRADE_3 + GRADE_4

_TASK = "arithmetic_problems"
# More draws than any story needs while a twentieth of its operands is still unused.
_MOST_DRAWS = 20_000


@dataclass(frozen=True)
class ArithmeticProblems:
    """The three splits of generated problems, each in random order, its grades equally frequent up to one problem."""

    train: list[Example]
    validation: list[Example]
    test: list[Example]


def generate_problems(
    train: int = 2000, validation: int = 400, test: int = 500, seed: int = 0, grades: Sequence[int] = (1, 2, 3, 4)
) -> ArithmeticProblems:
    """Generate word problems whose completion is an equation such as ` X=(22-14)/4` and whose answer is its value.

    Every intermediate result and every answer is a whole number above zero. No two problems, of one split or of two,
    have the same operands in any order; no wording occurs in two splits.

    Args:
        train, validation, test: Number of problems in each split. There is room for about nine thousand in all.
        seed: The same arguments give the same problems.
        grades: Those to take the stories from; 1 is the easiest, 4 the hardest.

    Raises:
        ValueError: a number is negative, a grade is unknown or there is none, or more problems are asked for than there
            are unused operands.
    """
    for name, count in (("train", train), ("validation", validation), ("test", test)):
        if count < 0:
            raise ValueError(f"{name} is {count}; accepted is 0 or more")
    known = {story.grade for story in STORIES}
    if not grades or not known.issuperset(grades):
        raise ValueError(f"grades is {grades}; accepted are some of {sorted(known)}")
    stories = [story for story in STORIES if story.grade in grades]
    generator = random.Random(seed)
    used: set[tuple[int, ...]] = set()
    return ArithmeticProblems(
        train=_problems([(story, story.train) for story in stories], train, used, generator),
        validation=_problems([(story, story.validation) for story in stories], validation, used, generator),
        test=_problems([(story, story.test) for story in stories], test, used, generator),
    )


def _problems(
    stories: list[tuple[Story, tuple[str, ...]]], count: int, used: set[tuple[int, ...]], generator: random.Random
) -> list[Example]:
    """`count` problems, turn by turn from each grade, and within a grade from each of its stories."""
    grades = sorted({story.grade for story, _ in stories})
    by_grade = [[entry for entry in stories if entry[0].grade == grade] for grade in grades]
    problems = []
    for index in range(count):
        turn, grade = divmod(index, len(by_grade))
        story, wordings = by_grade[grade][turn % len(by_grade[grade])]
        problems.append(_problem(story, generator.choice(wordings), used, generator))
    generator.shuffle(problems)
    return problems


def _problem(story: Story, wording: str, used: set[tuple[int, ...]], generator: random.Random) -> Example:
    operands, answer = _unused_operands(story, used, generator)
    used.add(tuple(sorted(operands.values())))
    name, other = generator.sample(NAMES, 2)
    objects, things = generator.sample(OBJECTS, 2)
    container, containers = generator.choice(CONTAINERS)
    question = wording.format(
        **operands,
        # An extra number equal to an operand would leave open which of the two the equation uses.
        extra=generator.choice([number for number in range(3, 12) if number not in operands.values()]),
        name=name,
        other=other,
        objects=objects,
        things=things,
        container=container,
        containers=containers,
        gains=generator.choice(GAINS),
        loses=generator.choice(LOSES),
        place=generator.choice(PLACES),
        day=generator.choice(DAYS),
    )
    within = story.equation[1:-1]  # without the parentheses around the whole
    equation = re.sub("[a-d]", lambda letter: str(operands[letter.group()]), within)
    return Example(
        TASKS[_TASK].template.format(instruction=question), f" X={equation}", str(answer), _TASK, story.grade
    )


def _unused_operands(story: Story, used: set[tuple[int, ...]], generator: random.Random) -> tuple[dict[str, int], int]:
    """Distinct operands that make every step of the story a whole number above zero, and the answer they give."""
    equation = ast.parse(story.equation, mode="eval").body
    for _ in range(_MOST_DRAWS):
        operands = {letter: generator.randint(*bounds) for letter, bounds in story.ranges.items()}
        numbers = tuple(sorted(operands.values()))
        if len(set(numbers)) < len(numbers) or numbers in used:
            continue
        answer = _whole_value(equation, operands)
        if answer is not None:
            return operands, answer
    raise ValueError(
        f"no unused operands are left for {story.equation}; ask for fewer problems than {len(used)} so far"
    )


def _whole_value(node: ast.expr, operands: dict[str, int]) -> int | None:
    """Value of an equation over `operands`; None where a step leaves the whole numbers above zero."""
    if isinstance(node, ast.Name):
        return operands[node.id]
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    assert isinstance(node, ast.BinOp)
    left, right = _whole_value(node.left, operands), _whole_value(node.right, operands)
    if left is None or right is None:
        return None
    if isinstance(node.op, ast.Add):
        return left + right
    if isinstance(node.op, ast.Mult):
        return left * right
    if isinstance(node.op, ast.Sub):
        return left - right if left > right else None
    return left // right if left % right == 0 else None
