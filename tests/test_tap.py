"""What is read out of a Pilot is what this thread's forward computed, or an error."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from builders import batch_of, random_ids, random_pair


@pytest.fixture
def eager_threads():
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("eager_threads")
def test_threads_that_share_a_pair_write_what_they_would_write_alone():
    pair = random_pair()
    prompts = [random_ids(1, 4 + seed, seed=seed) for seed in range(8)]
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    alone = [pair.generate(ids, **options) for ids in prompts]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda ids: pair.generate(ids, **options), prompts))
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


@pytest.mark.usefixtures("eager_threads")
def test_threads_that_share_a_pair_measure_what_they_would_measure_alone():
    pair = random_pair()
    batches = [batch_of("llama", prompt=3 + seed % 3, seed=seed) for seed in range(8)]

    def measure(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():  # which is a thread's own
            return pair.losses(pair.pilot_pass(**batch), 0.5, None).loss

    alone = [measure(batch) for batch in batches]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(measure, batches))
    assert alone == together


def test_a_pilot_that_was_compiled_as_a_whole_and_has_run_alone_is_read_all_the_same():
    pair, ids = random_pair(), random_ids(1, 5)
    options = {"strength": 0.5, "max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    expected = pair.generate(ids, **options)
    pair.pilot.compile(backend="eager")
    pair.pilot.generate(ids, max_new_tokens=2)
    assert torch.equal(pair.generate(ids, **options), expected)


def test_no_more_states_are_kept_than_asked_for():
    pair = random_pair()
    with torch.no_grad(), pair.tap(tail=1) as tapped:
        pair.pilot(random_ids(2, 16))
    assert [hidden.shape[:2] for hidden in tapped.hidden] == [(2, 1)] * len(tapped.hidden) != []
    assert all(hidden.untyped_storage().nbytes() == hidden.nbytes for hidden in tapped.hidden)


def test_a_forward_whose_hooks_do_not_run_is_refused():
    pair = random_pair()
    with pytest.raises(RuntimeError, match="without the hooks"), pair.tap():
        pass


@pytest.mark.parametrize("prompt", [3, 7])  # with 7, as many supervised tokens as a row has
def test_logits_of_every_position_are_never_taken_for_those_of_the_supervised_ones(prompt):
    """As where a Pilot that is compiled as a whole was traced without the hook on its head."""
    pair, batch = random_pair(), batch_of("llama", prompt=prompt, answer=7)
    pair.pilot.compile(backend="eager")
    with torch.no_grad():
        pair(**batch)
        with pytest.raises(RuntimeError, match="without the hooks"):
            pair(**batch, return_logits=False)
