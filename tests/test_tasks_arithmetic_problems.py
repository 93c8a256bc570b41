"""Generated word problems: distinct, disjoint, solvable, balanced and the same for the same seed."""

import re
from collections import Counter
from itertools import combinations

import pytest

from copilot.tasks import TASKS, ArithmeticProblems, Example, evaluate_equation, generate_problems
from copilot.tasks.arithmetic_problems import STORIES

GRADES = (1, 2, 3, 4)


@pytest.fixture(scope="module")
def problems() -> ArithmeticProblems:
    return generate_problems(train=4000, validation=1000, test=1000, seed=0)


def splits(problems: ArithmeticProblems) -> list[list[Example]]:
    return [problems.train, problems.validation, problems.test]


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text))


def operands(example: Example) -> tuple[int, ...]:
    """The numbers of the equation that the question also tells, ascending; so not the 2 of a half."""
    told = numbers(example.prompt)
    return tuple(sorted({number for number in numbers(example.completion) if number in told}))


def shape(wording: str) -> re.Pattern[str]:
    """Matches every question made from a wording."""
    return re.compile(
        "".join(".+?" if part.startswith("{") else re.escape(part) for part in re.split(r"(\{\w+\})", wording))
    )


def test_each_split_has_the_number_asked_for(problems: ArithmeticProblems) -> None:
    assert [len(split) for split in splits(problems)] == [4000, 1000, 1000]


def test_no_prompt_occurs_twice(problems: ArithmeticProblems) -> None:
    prompts = [example.prompt for split in splits(problems) for example in split]
    assert len(set(prompts)) == len(prompts)


def test_no_operands_occur_twice_in_any_order(problems: ArithmeticProblems) -> None:
    drawn = Counter(operands(example) for split in splits(problems) for example in split)
    assert drawn.most_common(1)[0][1] == 1


def test_no_wording_is_told_in_two_splits() -> None:
    for story in STORIES:
        for first, second in combinations((story.train, story.validation, story.test), 2):
            assert not set(first) & set(second), story.equation


def test_no_test_question_could_have_been_made_from_a_training_wording(problems: ArithmeticProblems) -> None:
    question = re.compile(r"Question: (.*)\nEquation:")
    trained = [shape(wording) for story in STORIES for wording in story.train]
    for example in problems.test[:200] + problems.validation[:200]:
        match = question.fullmatch(example.prompt)
        assert match
        assert not any(pattern.fullmatch(match.group(1)) for pattern in trained), example.prompt


def test_every_completion_evaluates_to_the_answer(problems: ArithmeticProblems) -> None:
    for split in splits(problems):
        for example in split:
            assert evaluate_equation(example.completion) == int(example.answer) > 0
            assert TASKS[example.task].is_correct(example.completion, example.answer)


def test_every_intermediate_result_is_a_whole_number_above_zero(problems: ArithmeticProblems) -> None:
    for example in problems.train:
        equation = example.completion.removeprefix(" X=")
        opened = []
        equation = f"({equation})"
        for position, character in enumerate(equation):
            if character == "(":
                opened.append(position)
            elif character == ")":
                value = evaluate_equation(f"X={equation[opened.pop() : position + 1]}")
                assert value is not None
                assert value > 0
                assert value == int(value), equation


def test_equations_have_one_form_and_are_short(problems: ArithmeticProblems) -> None:
    for split in splits(problems):
        for example in split:
            assert re.fullmatch(r" X=[\d()+\-*/]+", example.completion)
            assert len(example.completion) <= 25
            assert example.completion.count("(") == len(re.findall(r"[+\-*/]", example.completion)) - 1


def test_every_operand_of_the_equation_is_told_in_the_question(problems: ArithmeticProblems) -> None:
    constants = {2, 3}  # "twice", "half", "triple"
    for split in splits(problems):
        for example in split:
            assert set(numbers(example.completion)) <= set(numbers(example.prompt)) | constants


def test_questions_are_short_and_fully_filled_in(problems: ArithmeticProblems) -> None:
    for split in splits(problems):
        for example in split:
            assert len(example.prompt.split()) <= 50
            assert not set("{}") & set(example.prompt)


def test_grades_are_balanced_in_every_split(problems: ArithmeticProblems) -> None:
    for split in splits(problems):
        counts = Counter(example.grade for example in split)
        assert sorted(counts) == list(GRADES)
        assert max(counts.values()) - min(counts.values()) <= 1


def test_higher_grades_take_more_operations_on_average(problems: ArithmeticProblems) -> None:
    def mean_operations(grade: int) -> float:
        counts = [example.completion.count("(") + 1 for example in problems.train if example.grade == grade]
        return sum(counts) / len(counts)

    means = [mean_operations(grade) for grade in GRADES]
    assert means[0] == 1.0
    assert means == sorted(means)
    assert means[3] == 3.0


def test_harder_grades_tell_numbers_that_are_not_needed(problems: ArithmeticProblems) -> None:
    with_extra = Counter(
        example.grade for example in problems.train if set(numbers(example.prompt)) - set(numbers(example.completion))
    )
    assert set(with_extra) == {3, 4}


def test_grades_are_mixed_from_the_start(problems: ArithmeticProblems) -> None:
    for split in splits(problems):
        assert {example.grade for example in split[:40]} == set(GRADES)


def test_every_story_has_several_wordings_in_each_split() -> None:
    for story in STORIES:
        assert [len(set(wordings)) for wordings in (story.train, story.validation, story.test)] == [8, 3, 3]
    assert Counter(story.grade for story in STORIES) == dict.fromkeys(GRADES, 6)


def test_the_same_seed_gives_the_same_problems_and_another_seed_others() -> None:
    assert generate_problems(200, 50, 50, seed=1) == generate_problems(200, 50, 50, seed=1)
    assert generate_problems(200, 50, 50, seed=1) != generate_problems(200, 50, 50, seed=2)


def test_a_split_may_be_empty() -> None:
    assert generate_problems(train=0, validation=0, test=4).train == []


def test_only_the_grades_asked_for_are_told() -> None:
    problems = generate_problems(train=30, validation=6, test=6, grades=(1, 3))
    assert [{problem.grade for problem in split} for split in vars(problems).values()] == [{1, 3}] * 3
    assert sum(problem.grade == 1 for problem in problems.train) == 15


@pytest.mark.parametrize("grades", [(), (1, 5)])
def test_an_unknown_grade_is_refused(grades: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"grades is .*accepted are some of \[1, 2, 3, 4\]"):
        generate_problems(grades=grades)


def test_a_negative_number_is_refused() -> None:
    with pytest.raises(ValueError, match="validation is -1; accepted is 0 or more"):
        generate_problems(validation=-1)


def test_more_problems_than_there_are_operands_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no unused operands are left .* ask for fewer problems than \d+"):
        generate_problems(train=50_000)
