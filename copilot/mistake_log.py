"""MistakeLog: the last rounds of the Pilot's mistakes, hidden states and inputs (Eq. 5)."""

from __future__ import annotations

import json
import os
from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from copilot.ops.mistakes import Mistakes
from copilot.ops.rectify import check_choice

HIDDEN_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}


@dataclass(frozen=True)
class Round:
    """One round (X~_t, h_t, l_t): B sequences with M supervised tokens and T context entries, packed without padding.

    Attributes:
        mistakes: the M mistakes.
        hidden: (M, d) pooled states h; in the log also int8, with `hidden_scale`.
        hidden_scale: (M, 1) float32, or None.
        lengths: (B,) int64, supervised tokens of each sequence; they sum to M.
        visible: (M,) int64, how many context entries of its own sequence stand before each supervised token.
        context_lengths: (B,) int64, context entries of each sequence; they sum to T.
        context_ids: (T,) int64 input ids of the context, when X~ can be recomputed from them; else None.
        context: (T, d) X~ itself; else None.
    """

    mistakes: Mistakes
    hidden: Tensor
    lengths: Tensor
    visible: Tensor
    context_lengths: Tensor
    context_ids: Tensor | None = None
    context: Tensor | None = None
    hidden_scale: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name."""
        own = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return own | {f"mistakes.{name}": value for name, value in self.mistakes.tensors().items()}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Round:
        """The inverse of `tensors`."""
        own = {name: value for name, value in tensors.items() if not name.startswith("mistakes.")}
        kept = {
            name.removeprefix("mistakes."): value for name, value in tensors.items() if name.startswith("mistakes.")
        }
        return cls(mistakes=Mistakes(top_index=kept.pop("top_index", None), **kept), **own)


def quantize_rows(values: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric int8 with one scale for each row: (M, d) -> (M, d) int8 and (M, 1) float32."""
    scale = values.float().abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
    return (values.float() / scale).round().to(torch.int8), scale


class MistakeLog:
    """A ring of the most recent rounds, on the CPU; everything the Copilot learns from comes out of it.

    Args:
        capacity: how many rounds are kept (the paper: 128).
        seed: of the draws; equal on all ranks, so that together the ranks draw the round that one process would.
        hidden_dtype: how h and X~ are kept: "bfloat16", "float32", or "int8" (h only, scaled by row; X~ as bfloat16).

    Raises:
        ValueError: a capacity below 1 or an unknown dtype.
    """

    def __init__(self, capacity: int = 128, seed: int = 0, hidden_dtype: str = "bfloat16"):
        check_choice("hidden_dtype", hidden_dtype, tuple(HIDDEN_DTYPES))
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1; got {capacity}")
        self.capacity = capacity
        self.hidden_dtype = hidden_dtype
        self.rounds: deque[Round] = deque(maxlen=capacity)
        self.rounds_seen = 0
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.rounds)

    @property
    def nbytes(self) -> int:
        """Bytes held by all tensors of the log."""
        return sum(value.nbytes for round_ in self.rounds for value in round_.tensors().values())

    def append(self, round_: Round) -> None:
        """Keep a round in compact form on the CPU, and drop the oldest one when the ring is full. O(1).

        Raises:
            ValueError: a round without a supervised token; the log is unchanged then.
        """
        if len(round_.mistakes) == 0:
            raise ValueError("round_ must hold at least one supervised token; got none")
        self.rounds.append(self._compact(round_))
        self.rounds_seen += 1

    def clear(self) -> None:
        """Forget all rounds. The draws go on from where they are."""
        self.rounds.clear()
        self.rounds_seen = 0

    def _compact(self, round_: Round) -> Round:
        tensors = round_.tensors()
        if self.hidden_dtype == "int8":
            tensors["hidden"], tensors["hidden_scale"] = quantize_rows(tensors["hidden"])
        else:
            tensors["hidden"] = tensors["hidden"].to(HIDDEN_DTYPES[self.hidden_dtype])
        if "context" in tensors:
            tensors["context"] = tensors["context"].to(
                torch.float32 if self.hidden_dtype == "float32" else torch.bfloat16
            )
        if "mistakes.top_index" not in tensors:
            tensors["mistakes.top_prob"] = tensors["mistakes.top_prob"].half()  # a whole vocabulary for each token
        narrow = {name: value.int() if value.dtype == torch.int64 else value for name, value in tensors.items()}
        # What no conversion has copied yet is copied here: the log shares nothing with its caller.
        given = round_.tensors()
        kept = {name: value.detach().to("cpu", copy=value is given.get(name)) for name, value in narrow.items()}
        return Round.from_tensors(kept)

    def draw(self, device: torch.device | str = "cpu") -> Round:
        """One of the kept rounds, each equally likely, with float32 states and int64 indices on `device`.

        Raises:
            IndexError: the log is empty.
        """
        if not self.rounds:
            raise IndexError("the log is empty: append a round before drawing one")
        choice = int(torch.randint(len(self.rounds), (), generator=self.generator))
        # Copies: nothing that a caller does to a round changes the log.
        tensors = {name: value.to(device, copy=True) for name, value in self.rounds[choice].tensors().items()}
        scale = tensors.pop("hidden_scale", None)
        wide = {name: value.long() if value.dtype == torch.int32 else value for name, value in tensors.items()}
        wide["hidden"] = wide["hidden"].float() if scale is None else wide["hidden"].float() * scale
        return Round.from_tensors(wide)

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs to go on bit for bit."""
        return {
            "rounds": [round_.tensors() for round_ in self.rounds],
            "rounds_seen": self.rounds_seen,
            "capacity": self.capacity,
            "hidden_dtype": self.hidden_dtype,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: a state of another capacity or dtype.
        """
        for name in ("capacity", "hidden_dtype"):
            if state[name] != getattr(self, name):
                raise ValueError(f"{name} of the saved log is {state[name]!r}; this log has {getattr(self, name)!r}")
        rounds = deque((Round.from_tensors(tensors) for tensors in state["rounds"]), maxlen=self.capacity)
        self.generator.set_state(state["generator"])
        self.rounds, self.rounds_seen = rounds, state["rounds_seen"]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the log to one safetensors file; an existing file is replaced only when the new one is complete."""
        state = self.state_dict()
        tensors = {f"{index}.{name}": v for index, part in enumerate(state["rounds"]) for name, v in part.items()}
        facts = {name: state[name] for name in ("rounds_seen", "capacity", "hidden_dtype")} | {"rounds": len(self)}
        unfinished = Path(f"{path}.unfinished")
        save_file(tensors | {"generator": state["generator"]}, unfinished, {"mistake_log": json.dumps(facts)})
        unfinished.replace(path)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Restore what `save` wrote; the log is unchanged when that fails.

        Raises:
            ValueError: not a Mistake Log, a truncated file, or a log of another capacity or dtype.
        """
        try:
            with safe_open(path, "pt") as file:
                facts = json.loads(file.metadata()["mistake_log"])
                parts: list[dict[str, Tensor]] = [{} for _ in range(facts.pop("rounds"))]
                for key in file.keys():  # noqa: SIM118 (not a dictionary)
                    if key != "generator":
                        index, name = key.split(".", 1)
                        parts[int(index)][name] = file.get_tensor(key)
                state = facts | {"rounds": parts, "generator": file.get_tensor("generator")}
            self.load_state_dict(state)
        except (SafetensorError, KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"path must be a complete file written by MistakeLog.save; {path}: {error}") from error

    def summary(self, tokenizer: Any, top: int = 10) -> MistakeSummary:
        """Which tokens are mistaken for which, and how the mistakes fall over the kept rounds.

        Args:
            tokenizer: anything with `convert_ids_to_tokens`.
            top: how many confusions to name.
        """
        confusions: Counter[tuple[int, int]] = Counter()
        rates, errors = [], []
        for round_ in self.rounds:
            kept = round_.mistakes
            target = kept.target.long()
            best = kept.top_prob.float().argmax(dim=1)
            if kept.top_index is not None:
                best = kept.top_index.long().gather(1, best[:, None]).squeeze(1)
            wrong = best != target
            confusions.update(zip(target[wrong].tolist(), best[wrong].tolist(), strict=True))
            rates.append(wrong.float().mean().item())
            square = kept.top_prob.float().square().sum(1) + kept.rest_square - 2 * kept.target_prob + 1
            errors.append(square.mean().item())
        named = [
            (*tokenizer.convert_ids_to_tokens([truth, guess]), count)
            for (truth, guess), count in confusions.most_common(top)
        ]
        return MistakeSummary(named, rates, errors)


@dataclass(frozen=True)
class MistakeSummary:
    """What `MistakeLog.summary` found, oldest round first.

    Attributes:
        confusions: (true token, the Pilot's most likely token, how often), most frequent first.
        error_rate: per round, the share of supervised tokens whose most likely token was wrong.
        squared_error: per round, the mean ||l||^2 (the Brier score).
    """

    confusions: list[tuple[str, str, int]]
    error_rate: list[float]
    squared_error: list[float]

    def __str__(self) -> str:
        lines = [f"{'true token':>20}   {'taken for':<20} times"]
        lines += [f"{truth!r:>20} > {guess!r:<20} {count:5d}" for truth, guess, count in self.confusions]
        if self.error_rate:
            third = max(len(self.error_rate) // 3, 1)
            for name, values in (("wrong tokens", self.error_rate), ("||l||^2", self.squared_error)):
                oldest, newest = sum(values[:third]) / third, sum(values[-third:]) / third
                lines.append(f"{name}: {oldest:.3f} in the oldest third of the log, {newest:.3f} in the newest")
        return "\n".join(lines)
