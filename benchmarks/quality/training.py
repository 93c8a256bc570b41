"""Training as the experiments need it: any number of Copilots beside one Pilot, and Copilots that learn from other
mistakes than those of the Pilot they belong to.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

from copilot import MistakeLog
from copilot.loss import PilotPass, copilot_loss, pilot_loss
from copilot.pair import PilotCopilotModel

Collate = Callable[[list[Any]], dict[str, Tensor]]


def precision(pair: PilotCopilotModel) -> str:
    """bfloat16 where the Pilot has weights of it (see `models.add_lora`), else float32."""
    return "bfloat16" if any(p.dtype == torch.bfloat16 for p in pair.pilot.parameters()) else "float32"


def autocast(pair: PilotCopilotModel) -> torch.autocast:
    """To the Pilot's precision, in training and in measuring."""
    return torch.autocast(pair.device.type, torch.bfloat16, enabled=precision(pair) == "bfloat16")


@dataclass
class Teacher:
    """A Pilot whose mistakes go into the logs.

    Attributes:
        pair: what it belongs to; only its Pilot matters here.
        learns: rows it is trained on; None leaves it as it is.
        shows: rows whose mistakes are logged, without training on them; None logs those of `learns`.
    """

    pair: PilotCopilotModel
    learns: Any | None = None
    shows: Any | None = None


@dataclass
class Student:
    """A Copilot in training.

    Attributes:
        pair: what it belongs to; only its Copilot is trained.
        learning_rate: the highest of its schedule.
        weight_decay: of its AdamW.
        updates: steps it takes a round.
        draws: rounds drawn from its log for each of these steps.
        log_rounds: how many rounds its log holds.
    """

    pair: PilotCopilotModel
    learning_rate: float
    weight_decay: float = 0.0
    updates: int = 1
    draws: int = 1
    log_rounds: int = 128


@dataclass
class Optimizer:
    """AdamW on the trainable parameters of a model, and one cosine schedule."""

    model: nn.Module
    learning_rate: float
    steps: int
    warmup_steps: int
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        decay = self.weight_decay
        self.adam = torch.optim.AdamW(self.parameters, lr=self.learning_rate, weight_decay=decay, fused=True)
        self.schedule = get_cosine_schedule_with_warmup(self.adam, self.warmup_steps, self.steps)

    def step(self) -> None:
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.adam.step()
        self.schedule.step()
        self.adam.zero_grad()


def warmup_steps(warmup: float, steps: int) -> int:
    """Of a share of the steps, or from 1 on of their number, as transformers has it."""
    return round(warmup if warmup >= 1 else warmup * steps)


def now() -> float:
    """Seconds, after all work given to a GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


@dataclass
class Stopwatch:
    """Seconds by name and step."""

    spent: dict[str, list[float]] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str, step: int) -> Iterator[None]:
        started = now()
        yield
        by_step = self.spent.setdefault(name, [])
        by_step += [0.0] * (step + 1 - len(by_step))
        by_step[step] += now() - started

    def totals(self) -> dict[str, float]:
        """Of all steps at their median: what a step takes beside compiling and the machine's other work."""
        return {name: statistics.median(by_step) * len(by_step) for name, by_step in self.spent.items()}


def length_grouped(lengths: list[int], batch_size: int, generator: torch.Generator) -> list[list[int]]:
    """Shuffled batches of rows of like length, so that little is padding."""
    order = torch.randperm(len(lengths), generator=generator).tolist()
    window = batch_size * 16
    batches = []
    for start in range(0, len(order), window):
        part = sorted(order[start : start + window], key=lambda index: lengths[index])
        batches += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def endless(rows: Any, collate: Collate, batch_size: int, seed: int) -> Iterator[dict[str, Tensor]]:
    """Epoch after epoch of batches, each in another order."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [len(row) for row in rows["input_ids"]]
    while True:
        for batch in length_grouped(lengths, batch_size, generator):
            yield collate([rows[index] for index in batch])


def train(
    teachers: list[Teacher],
    students: dict[str, Student],
    collate: Collate,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    warmup: float,
    seed: int,
    weight_decay: float = 0.0,
) -> dict[str, float]:
    """Algorithm 1 of the paper, for several Copilots at once; the teachers take turns.

    Args:
        steps: rounds in all.
        batch_size: rows a round.
        learning_rate: of the teachers, at most.
        warmup: share of the steps in which every learning rate rises; from 1 on their number.
        seed: of the order of the rows, of dropout and of what is drawn from the logs.
        weight_decay: of the teachers.

    Returns:
        Seconds spent on the teachers ("pilot") and on each student; see `Stopwatch.totals`.
    """
    torch.manual_seed(seed)  # whatever has been built before
    own_steps = [len(range(index, steps, len(teachers))) for index in range(len(teachers))]
    pilots, learned, shown = [], [], []
    for index, (teacher, count) in enumerate(zip(teachers, own_steps, strict=True)):
        teacher.pair.train()
        learns, shows = teacher.learns, teacher.shows
        learned.append(None if learns is None else endless(learns, collate, batch_size, seed + index))
        shown.append(None if shows is None else endless(shows, collate, batch_size, seed + index))
        rising = warmup_steps(warmup, count)
        pilot = teacher.pair.pilot
        pilots.append(None if learns is None else Optimizer(pilot, learning_rate, count, rising, weight_decay))
    copilots = {}
    for name, student in students.items():
        count = steps * student.updates
        rising = warmup_steps(warmup, count)
        copilots[name] = Optimizer(student.pair.copilot, student.learning_rate, count, rising, student.weight_decay)
        student.pair.train()
        student.pair.mistake_log = MistakeLog(student.log_rounds, seed=seed)
    stopwatch = Stopwatch()

    def forward(pair: PilotCopilotModel, batches: Iterator[dict[str, Tensor]]) -> PilotPass:
        batch = {name: value.to(pair.device) for name, value in next(batches).items()}
        with autocast(pair):
            return pair.pilot_pass(**batch)

    bar = tqdm(range(steps), desc=f"seed {seed}", mininterval=10)
    for step in bar:
        index = step % len(teachers)
        pair, pilot = teachers[index].pair, pilots[index]
        with stopwatch("pilot", step):
            if shown[index]:
                pair.pilot.eval()
                with torch.no_grad():
                    passed = forward(pair, shown[index])
                pair.pilot.train()
            if learned[index]:
                own = forward(pair, learned[index])
                with autocast(pair):
                    loss = pilot_loss(own.logits, own.supervision, 1)[0].mean()
                passed = passed if shown[index] else own
        rounds = {}
        for name, student in students.items():
            with stopwatch(name, step), autocast(student.pair), torch.no_grad():
                rounds[name] = student.pair.round_of(passed)[1]
        if pilot:
            with stopwatch("pilot", step):
                loss.backward()
                pilot.step()
            bar.set_postfix(ce=loss.item(), refresh=False)
        for name, round_ in rounds.items():
            # Dropout of a Copilot takes no random numbers from the Pilot, which trains alike whatever stands beside it.
            with stopwatch(name, step), torch.random.fork_rng():
                learn(students[name], round_, copilots[name])
    for student in students.values():
        student.pair.mistake_log = None
    return stopwatch.totals()


def learn(student: Student, round_: Any, copilot: Optimizer) -> None:
    """Log a round, then draw rounds and take steps on them."""
    pair = student.pair
    assert pair.mistake_log is not None
    pair.mistake_log.append(round_)
    for _ in range(student.updates):
        for _ in range(student.draws):
            drawn = pair.mistake_log.draw(pair.device)
            with autocast(pair):
                loss = copilot_loss(pair.copilot, drawn.mistakes, pair.predict(drawn))
            (loss / student.draws).backward()
        copilot.step()
