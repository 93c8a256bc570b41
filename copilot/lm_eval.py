"""A pair as a model of the lm-evaluation-harness: generation and log-likelihood tasks, the Copilot included.

python -m copilot.lm_eval --model copilot --model_args pair=out,strength=0.5 --tasks hellaswag --batch_size 8
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from tqdm import tqdm
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from copilot.cli import classes_of, load_tokenizer, tokenizer_of_pair
from copilot.data import DataCollator
from copilot.loss import IGNORE_INDEX
from copilot.ops import rectify
from copilot.pair import PilotCopilotModel

logger = logging.getLogger(__name__)

# (the texts, for lm-eval's cache of answers; ids of the context; ids of the continuation)
Request = tuple[tuple[str, str] | None, list[int], list[int]]


def limit_of(config: PretrainedConfig) -> int | None:
    """Tokens that a model takes, from the fields that HFLM reads; None leaves it to the tokenizer, as there."""
    found = [getattr(config, name, None) for name in ("n_positions", "max_position_embeddings")]
    return next((limit for limit in found if limit is not None), None)


@register_model("copilot")
class CopilotLM(HFLM):
    """What lm-eval asks of a model, answered by p~; one process.

    Tokenisation, truncation and stop sequences are HFLM's: a context that is cut loses its first token, the beginning
    of a sequence, which training and calibration keep. A continuation is scored as in training: its tokens are the
    supervised ones, the context is X~. `loglikelihood_rolling` scores a text in HFLM's windows, each a continuation of
    the prefix token or of the end of the window before. At strength 0 the answers are those of HFLM on the Pilot, with
    softmax_dtype="float32" and logits_cache=False (its cache errs where one text is split in two ways).
    """

    def __init__(
        self,
        pair: PilotCopilotModel | str,
        pilot: str | None = None,
        strength: float | None = None,
        tokenizer: PreTrainedTokenizerBase | str | None = None,
        max_length: int | None = None,
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: torch.dtype | str | None = None,
        max_batch_size: int | None = None,
        trust_remote_code: bool | None = None,
    ):
        """Load a pair, or take one.

        Args:
            pair: a folder or hub id, or the pair itself.
            pilot: the Pilot to attach a loaded Copilot to; None takes the one it was trained beside.
            strength: lambda; None takes the pair's own, 0 is the Pilot alone.
            tokenizer: of the Pilot; None takes the one saved with the pair, else that of the Pilot's folder or hub id.
            max_length: tokens that context and continuation may have; None takes the Pilot's limit, as HFLM finds it.
            batch_size: texts per forward pass.
            device: None takes the GPU, when there is one, for a loaded pair and leaves another where it is. "cuda" is
                None where there is no GPU, as for HFLM: lm-eval's command line asks for "cuda:0" unless told otherwise.
            dtype: of the Pilot of a loaded pair; None takes the type it had when the pair was saved.
            max_batch_size, trust_remote_code: ignored, and there because lm-eval's command line gives them to every
                model: the one bounds a batch_size of "auto", the other is for models that transformers does not hold.

        Raises:
            ValueError: a batch_size that is no number; a pair that is not loaded, without tokenizer, with a pilot or
                with a dtype; or as `from_pretrained`.
            OSError: no such pair or tokenizer.
        """
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise ValueError(f"batch_size must be a number of at least 1; got {batch_size!r}")
        if str(device).startswith("cuda") and not torch.cuda.is_available():
            device = None
        if isinstance(pair, str):
            tokenizer = tokenizer_of_pair(pair, pilot) if tokenizer is None else tokenizer
            pair = classes_of(pair, "pair")[0].from_pretrained(pair, pilot=pilot, pilot_dtype=dtype)
            device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        elif tokenizer is None or pilot is not None or dtype is not None:
            raise ValueError(
                "with a pair that is not loaded here, tokenizer must be given, and pilot and dtype must be None; "
                f"got {type(tokenizer).__name__}, {pilot!r} and {dtype!r}"
            )
        super().__init__(
            pretrained=pair.to(device) if device else pair,
            backend="seq2seq" if pair.config.is_encoder_decoder else "causal",
            tokenizer=load_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer,
            max_length=max_length or limit_of(pair.pilot.config),
            batch_size=int(batch_size),
        )
        self.strength = pair.config.strength if strength is None else float(strength)
        self.collate = DataCollator(self.tokenizer.pad_token_id, pair.config.is_encoder_decoder)

    def get_model_info(self) -> dict[str, Any]:
        """HFLM's, and the strength."""
        return super().get_model_info() | {"strength": self.strength}

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **options: Any) -> Tensor:
        return super()._model_generate(context, max_length, stop, strength=self.strength, **options)

    def _model_call(self, *_args: Any, **_kwargs: Any) -> Tensor:
        raise NotImplementedError(
            "logits of a whole text are not p~: where the context ends must be known. Use loglikelihood"
        )

    @torch.no_grad()
    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """(log p~ of the continuation, whether each of its tokens is the argmax of p~) of each request, in order.

        Raises:
            ValueError: an empty context, or a continuation that is empty or longer than max_length.
        """
        # Continuations that differ in their last token only share a forward: p~ depends on what comes before.
        groups: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = {}
        for index, (texts, context, continuation) in enumerate(requests):
            if not context or not 0 < len(continuation) <= self.max_length:
                raise ValueError(
                    f"a request must have a context and 1 to {self.max_length} tokens of continuation; "
                    f"got {len(context)} and {len(continuation)} tokens: {texts}"
                )
            groups.setdefault((tuple(context), tuple(continuation[:-1])), []).append(index)
        ordered = sorted(groups.values(), key=lambda group: -sum(map(len, requests[group[0]][1:])))
        size = override_bs or self.batch_size
        answers: dict[int, tuple[float, bool]] = {}
        for start in tqdm(range(0, len(ordered), size), desc="Scoring", disable=disable_tqdm):
            chosen = ordered[start : start + size]
            rows = [self._row(*requests[group[0]][1:]) for group in chosen]
            batch = {name: tensor.to(self.device) for name, tensor in self.collate(rows).items()}
            lengths = [len(requests[group[0]][2]) for group in chosen]
            for group, log_prob in zip(chosen, self._log_prob(batch).split(lengths), strict=True):
                for index in group:
                    texts, _, continuation = requests[index]
                    token = torch.tensor(continuation, device=self.device)
                    answers[index] = (
                        float(log_prob.gather(1, token[:, None]).sum()),
                        bool((log_prob.argmax(1) == token).all()),
                    )
                    if texts is not None:  # None: part of a rolling log-likelihood, which is kept as a whole
                        self.cache_hook.add_partial("loglikelihood", texts, answers[index])
        return [answers[index] for index in range(len(requests))]

    def _log_prob(self, batch: dict[str, Tensor]) -> Tensor:
        """(M, V) float32 log p~ of the M supervised tokens of a batch."""
        passed = self.model.pilot_pass(**batch)
        if self.strength == 0:
            return passed.logits.float().log_softmax(-1)
        _, round_ = self.model.round_of(passed)
        delta, index, config = self.model.predict(round_), round_.mistakes.top_index, self.model.config
        return rectify(
            passed.logits, delta, self.strength, index=index, rectifier=config.rectifier, fusion=config.fusion
        )

    def _row(self, context: list[int], continuation: list[int]) -> Mapping[str, list[int]]:
        """A row for the collator; a context that does not fit loses its beginning."""
        room = self.max_length
        if self.backend == "causal":
            room += 1 - len(continuation)  # nothing is predicted from the last token: it needs no room
        if len(context) > room:
            logger.warning("A context of %d tokens is cut to its last %d.", len(context), room)
        context = context[-room:]
        if self.backend == "seq2seq":
            return {"input_ids": context, "labels": continuation}
        return {"input_ids": context + continuation, "labels": [IGNORE_INDEX] * len(context) + continuation}


if __name__ == "__main__":
    cli_evaluate()
