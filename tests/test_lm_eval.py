"""A pair in the lm-evaluation-harness: every answer is that of p~, and at strength 0 that of the harness's own HFLM."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from builders import BOTH_KINDS, random_pair, tiny_pilot
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from copilot.pair import PilotCopilotModel

lm_eval = pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from copilot.lm_eval import CopilotLM, cli_evaluate  # noqa: E402

both_kinds = pytest.mark.parametrize("kind", BOTH_KINDS)

# Of all lengths; the same context with several answers; one text split in two ways; no context; trailing space.
REQUESTS = [
    ("w1 w2 w3", " w4"),
    ("w1 w2 w3", " w5"),
    ("w1 w2 w3", " w5 w6"),
    ("w1 w2", " w3 w4"),
    ("w7", " w8 w9 w10 w11 w12"),
    ("", "w3 w4"),
    ("w20 w21 w22 w23 w24 w25 w26 ", "w27"),
]
TEXTS = ["w1 w2 w3 w4 w5", "w6", " ".join(f"w{i}" for i in range(30, 50))]


def build(kind: str, **config: Any) -> PilotCopilotModel:
    return random_pair(kind, pilot=tiny_pilot(kind, vocab_size=128), **config)


def scored(model: HFLM, method: str, texts: list[Any]) -> list[Any]:
    requests = [Instance(method, {}, text if isinstance(text, tuple) else (text,), i) for i, text in enumerate(texts)]
    return getattr(model, method)(requests)


def split(model: HFLM, request: tuple[str, str]) -> tuple[list[int], list[int]]:
    """Ids of context and continuation."""
    if request[0] == "":
        return [model.prefix_token_id], model.tok_encode(request[1], add_special_tokens=False)
    return model._encode_pair(*request)


class Forced(LogitsProcessor):
    """Makes greedy decoding write given tokens."""

    def __init__(self, tokens: list[int]):
        self.tokens = iter(tokens)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([next(self.tokens)]), 0.0)


def as_generated(
    pair: PilotCopilotModel, context: list[int], continuation: list[int], strength: float
) -> tuple[float, bool]:
    """(log-likelihood, is it greedy) by the step-by-step forward: generation that is made to write the continuation."""
    written = pair.generate(
        torch.tensor([context]),
        attention_mask=torch.ones(1, len(context), dtype=torch.long),
        strength=strength,
        logits_processor=[Forced(continuation)],
        max_new_tokens=len(continuation),
        eos_token_id=None,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    steps = torch.cat(written.logits).log_softmax(-1)
    token = torch.tensor(continuation)
    return float(steps.gather(1, token[:, None]).sum()), bool((steps.argmax(1) == token).all())


def assert_same(found: list[tuple[float, bool]], expected: list[tuple[float, bool]]) -> None:
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


# ---- Log-likelihoods ----


@both_kinds
@pytest.mark.parametrize("max_length", [None, 5])
def test_at_strength_0_log_likelihoods_are_those_of_hflm_on_the_pilot(kind, max_length, tokenizer):
    pair = build(kind)
    ours = CopilotLM(pair, strength=0, tokenizer=tokenizer, batch_size=3, max_length=max_length)
    # With its cache of logits it confuses the two ways in which one of the texts is split.
    theirs = HFLM(pair.pilot, tokenizer=tokenizer, max_length=max_length, logits_cache=False)
    for method, texts in (("loglikelihood", REQUESTS), ("loglikelihood_rolling", TEXTS)):
        found, expected = scored(ours, method, texts), scored(theirs, method, texts)
        torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), atol=1e-4, rtol=1e-5)


@both_kinds
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"candidates": None},
        {"feedback": "predicted"},
        {"rectifier": "linear"},
        {"fusion": "logit"},
    ],
    ids=str,
)
def test_log_likelihoods_are_those_of_the_steps_of_a_generation(kind, config, tokenizer):
    pair = build(kind, **config)
    model = CopilotLM(pair, strength="0.5", tokenizer=tokenizer, batch_size=4)
    expected = [as_generated(pair, *split(model, request), 0.5) for request in REQUESTS]
    assert_same(scored(model, "loglikelihood", REQUESTS), expected)
    without = scored(CopilotLM(pair, strength=0, tokenizer=tokenizer), "loglikelihood", REQUESTS)
    assert all(abs(a - b) > 1e-3 for (a, _), (b, _) in zip(without, expected, strict=True))


@both_kinds
def test_what_generation_writes_is_greedy_and_another_last_token_is_not(kind, tokenizer):
    pair = build(kind)
    model = CopilotLM(pair, strength=1.0, tokenizer=tokenizer)
    ids = model.tok_encode("w1 w2 w3")
    written = pair.generate(torch.tensor([ids]), max_new_tokens=3, do_sample=False, strength=1.0)[0, -3:].tolist()
    other = [*written[:-1], 20 if written[-1] != 20 else 21]
    answers = model._loglikelihood_tokens([(None, ids, written), (None, ids, other)])
    assert [greedy for _, greedy in answers] == [True, False]


@both_kinds
def test_a_rolling_log_likelihood_continues_the_prefix_token(kind, tokenizer):
    pair = build(kind)
    model = CopilotLM(pair, strength=1.0, tokenizer=tokenizer, batch_size=2)
    expected = [as_generated(pair, [model.prefix_token_id], model.tok_encode(text), 1.0)[0] for text in TEXTS]
    assert scored(model, "loglikelihood_rolling", TEXTS) == pytest.approx(expected, abs=1e-4)


def test_windows_of_a_long_text_continue_the_end_of_the_window_before(tokenizer):
    pair = build("llama")
    model = CopilotLM(pair, strength=1.0, tokenizer=tokenizer, max_length=4)
    a, b, c, d, e, f = model.tok_encode("w1 w2 w3 w4 w5")
    windows = [([model.prefix_token_id], [a, b, c, d]), ([b, c, d], [e, f])]
    expected = sum(as_generated(pair, context, continuation, 1.0)[0] for context, continuation in windows)
    assert scored(model, "loglikelihood_rolling", ["w1 w2 w3 w4 w5"]) == pytest.approx([expected], abs=1e-4)


@both_kinds
@pytest.mark.parametrize("strength", [0, 1.0])
def test_the_pilots_head_sees_the_continuations_only(kind, strength, tokenizer):
    pair, seen = build(kind), []
    model = CopilotLM(pair, strength=strength, tokenizer=tokenizer, batch_size=8)
    pair.get_output_embeddings().register_forward_hook(lambda _module, _args, output: seen.append(output.shape[:-1]))
    scored(model, "loglikelihood", [("w1 w2 w3", " w5 w6"), ("w7", " w8")])
    assert [shape.numel() for shape in seen] == [len(split(model, ("w1 w2 w3", " w5 w6"))[1]) + 1]


def test_a_token_that_is_all_but_impossible_keeps_its_log_likelihood_at_strength_0(tokenizer):
    pair = build("llama", rectifier="linear", candidates=None)
    with torch.no_grad():
        pair.pilot.lm_head.weight.mul_(80)
    ours, theirs = CopilotLM(pair, strength=0, tokenizer=tokenizer), HFLM(pair.pilot, tokenizer=tokenizer)
    (expected,) = scored(theirs, "loglikelihood", [("w1", " w5")])
    assert expected[0] < -110  # 0 as a float32 probability
    assert_same(scored(ours, "loglikelihood", [("w1", " w5")]), [expected])


def test_strength_is_that_of_the_pair_unless_given(tokenizer):
    pair = build("llama")
    pair.config.strength = 0.3
    own, given = (CopilotLM(pair, strength=s, tokenizer=tokenizer) for s in (None, 0.3))
    assert scored(own, "loglikelihood", REQUESTS) == scored(given, "loglikelihood", REQUESTS)
    assert own.get_model_info()["strength"] == 0.3


@pytest.mark.parametrize(
    ("kind", "fields", "limit"),
    [
        ("llama", {"max_position_embeddings": 9}, 9),
        ("t5", {"n_positions": 9}, 9),
        ("t5", {"n_positions": 9, "max_position_embeddings": 11}, 9),
        ("t5", {}, HFLM._DEFAULT_MAX_LENGTH),
    ],
    ids=str,
)
def test_the_length_allowed_is_the_pilots_as_hflm_reads_it(kind, fields, limit, tokenizer):
    pair = random_pair(kind, pilot=tiny_pilot(kind, vocab_size=128, **fields))
    ours, theirs = CopilotLM(pair, strength=0, tokenizer=tokenizer), HFLM(pair.pilot, tokenizer=tokenizer)
    assert ours.max_length == theirs.max_length == limit
    request = [(" ".join(f"w{i}" for i in range(20)), " w5 w6")]
    assert_same(scored(ours, "loglikelihood", request), scored(theirs, "loglikelihood", request))


def test_answers_fill_the_harness_cache_except_the_windows_of_a_rolling_one(tokenizer):
    model, kept = CopilotLM(build("llama"), strength=1.0, tokenizer=tokenizer, batch_size=4), {}
    model.set_cache_hook(
        SimpleNamespace(add_partial=lambda method, texts, answer: kept.update({(method, texts): answer}))
    )
    answers = scored(model, "loglikelihood", REQUESTS)
    assert kept == {("loglikelihood", texts): answer for texts, answer in zip(REQUESTS, answers, strict=True)}
    kept.clear()
    rolling = scored(model, "loglikelihood_rolling", TEXTS)
    assert kept == {("loglikelihood_rolling", (text,)): answer for text, answer in zip(TEXTS, rolling, strict=True)}


# ---- Generation ----


@both_kinds
def test_at_strength_0_generations_are_those_of_hflm_on_the_pilot(kind, tokenizer):
    pair = build(kind)
    texts = [(context, {"until": ["w9"], "max_gen_toks": 6}) for context in TEXTS]
    plain, ours, corrected = (
        scored(model, "generate_until", texts)
        for model in (
            HFLM(pair.pilot, tokenizer=tokenizer, batch_size=2),
            CopilotLM(pair, strength=0, tokenizer=tokenizer, batch_size=2),
            CopilotLM(pair, strength=1.0, tokenizer=tokenizer, batch_size=2),
        )
    )
    assert ours == plain
    assert corrected != plain


# ---- What is refused ----


def test_a_score_without_a_boundary_is_refused(tokenizer):
    model = CopilotLM(build("llama"), strength=0, tokenizer=tokenizer)
    with pytest.raises(NotImplementedError, match="where the context ends"):
        model._model_call(torch.tensor([[3, 4, 5]]))


@pytest.mark.parametrize(("context", "continuation"), [([], [3]), ([3], []), ([3], [4] * 6)])
def test_a_request_without_context_or_of_a_wrong_length_is_refused(context, continuation, tokenizer):
    model = CopilotLM(build("llama"), tokenizer=tokenizer, max_length=5)
    with pytest.raises(ValueError, match=f"got {len(context)} and {len(continuation)} tokens"):
        model._loglikelihood_tokens([(None, [3], [5]), (None, context, continuation)])


def test_wrong_arguments_are_refused(tokenizer):
    pair = build("llama")
    with pytest.raises(ValueError, match=r"batch_size.*'auto'"):
        CopilotLM(pair, tokenizer=tokenizer, batch_size="auto")
    with pytest.raises(ValueError, match="tokenizer must be given"):
        CopilotLM(pair)
    with pytest.raises(
        ValueError, match=f"pilot and dtype must be None; got {type(tokenizer).__name__}, 'other' and None"
    ):
        CopilotLM(pair, tokenizer=tokenizer, pilot="other")
    with pytest.raises(ValueError, match=f"dtype must be None; got {type(tokenizer).__name__}, None and 'bfloat16'"):
        CopilotLM(pair, tokenizer=tokenizer, dtype="bfloat16")


# ---- Whole evaluations, of a saved pair ----


CHOICES = ["w4", "w5 w6", "w7 w8 w9"]
QUESTIONS = ["w1 w2 w3", "w10", "w11 w12", "w13 w14 w15 w16", "w17 w18"]


@pytest.fixture
def folder(tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> str:
    """A saved pair."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    build("llama").save_pretrained(tmp_path / "pair", save_pilot=True)
    tokenizer.save_pretrained(tmp_path / "pair")
    return str(tmp_path / "pair")


def add_task(folder: Path, name: str, rows: list[dict[str, Any]], **fields: Any) -> None:
    """A task of the harness in `folder`: its YAML (JSON is YAML too) and its data."""
    data = folder / f"{name}.json"
    data.write_text("\n".join(json.dumps(row) for row in rows))
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "doc_to_text": "{{question}}",
    }
    (folder / f"{name}.yaml").write_text(json.dumps(task | fields))


def evaluate(folder: str, tasks: Path, name: str, strength: float) -> dict[str, Any]:
    return lm_eval.simple_evaluate(
        model="copilot",
        model_args=f"pair={folder},strength={strength}",
        tasks=[name],
        batch_size=2,
        device="cpu",
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
    )


def add_choices(folder: Path) -> None:
    rows = [{"question": question, "choices": CHOICES, "answer": i % 3} for i, question in enumerate(QUESTIONS)]
    add_task(folder, "choices", rows, output_type="multiple_choice", doc_to_choice="choices", doc_to_target="answer")


def test_a_multiple_choice_task_is_scored_with_the_copilot(folder, tmp_path):
    add_choices(tmp_path)
    results = evaluate(folder, tmp_path, "choices", 0.5)
    model = CopilotLM(folder, device="cpu")
    right = []
    for sample in results["samples"]["choices"]:
        requests = [(sample["doc"]["question"], f" {choice}") for choice in CHOICES]
        expected = [as_generated(model.model, *split(model, request), 0.5) for request in requests]
        assert_same([answer for (answer,) in sample["resps"]], expected)
        right.append(max(range(3), key=lambda index: expected[index][0]) == sample["doc"]["answer"])
    assert len(right) == len(QUESTIONS)
    assert 0 < sum(right) < len(right)
    assert results["results"]["choices"]["acc,none"] == sum(right) / len(right)
    assert results["config"]["strength"] == 0.5


def test_a_generation_task_is_written_with_the_copilot(folder, tmp_path):
    model = CopilotLM(folder, device="cpu")
    answers = {}
    for strength in (0, 1.0):
        model.strength = strength
        written = [
            model.model.generate(
                torch.tensor([model.tok_encode(question)]), strength=strength, max_new_tokens=4, do_sample=False
            )[0, -4:]
            for question in QUESTIONS
        ]
        answers[strength] = model.tokenizer.batch_decode(written, skip_special_tokens=True)
    assert answers[0] != answers[1.0]
    rows = [{"question": q, "answer": answer} for q, answer in zip(QUESTIONS, answers[1.0], strict=True)]
    add_task(
        tmp_path,
        "writing",
        rows,
        output_type="generate_until",
        doc_to_target="answer",
        generation_kwargs={"until": ["<user>"], "max_gen_toks": 4, "do_sample": False},
        metric_list=[{"metric": "exact_match"}],
    )
    assert evaluate(folder, tmp_path, "writing", 1.0)["results"]["writing"]["exact_match,none"] == 1.0
    plain = sum(a == b for a, b in zip(answers[0], answers[1.0], strict=True)) / len(QUESTIONS)
    assert evaluate(folder, tmp_path, "writing", 0)["results"]["writing"]["exact_match,none"] == plain


def test_a_loaded_copilot_is_attached_to_the_pilot_given_and_takes_its_tokenizer(tmp_path, tokenizer):
    """Of a Copilot saved alone, whose own Pilot has no name."""
    build("llama").save_pretrained(tmp_path / "pair")
    other = tiny_pilot(vocab_size=128, seed=5)
    other.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    model = CopilotLM(str(tmp_path / "pair"), pilot=str(tmp_path / "other"), strength=0, device="cpu")
    assert_same(
        scored(model, "loglikelihood", REQUESTS),
        scored(HFLM(other, tokenizer=tokenizer, logits_cache=False), "loglikelihood", REQUESTS),
    )


def test_a_pilot_given_takes_the_place_of_the_one_saved_beside_the_copilot(folder, tmp_path):
    other = tiny_pilot(vocab_size=128, seed=5)
    other.save_pretrained(tmp_path / "other")
    pair = CopilotLM(folder, pilot=str(tmp_path / "other"), device="cpu").model
    assert torch.equal(pair.pilot.lm_head.weight, other.lm_head.weight)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_pilot_is_loaded_in_the_type_asked_for(folder, dtype):
    pair = CopilotLM(folder, device="cpu", dtype=dtype).model
    assert (pair.pilot.dtype, pair.copilot.dtype) == (getattr(torch, dtype), torch.float32)


def test_the_command_line_knows_the_model_and_its_own_options(folder, tmp_path, monkeypatch, capsys):
    add_choices(tmp_path)
    arguments = ["--model", "copilot", "--model_args", f"pair={folder},strength=0.5", "--tasks", "choices"]
    options = ["--include_path", str(tmp_path), "--output_path", str(tmp_path / "results")]
    options += ["--max_batch_size", "8", "--trust_remote_code"]
    monkeypatch.setattr(sys, "argv", ["lm_eval", *arguments, *options])
    monkeypatch.setattr("lm_eval.tasks.TaskManager", partial(TaskManager, include_defaults=False))  # thousands of files
    cli_evaluate()
    (saved,) = (tmp_path / "results").rglob("results*.json")
    expected = evaluate(folder, tmp_path, "choices", 0.5)["results"]["choices"]
    assert json.loads(saved.read_text())["results"]["choices"]["acc,none"] == expected["acc,none"]
    assert "|choices|" in capsys.readouterr().out
