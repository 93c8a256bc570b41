"""Tiny random models of every supported family, and dense float64 truths written like the equations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from copilot import PilotCopilotForCausalLM, PilotCopilotForSeq2SeqLM
from copilot.config import DECODER_ONLY, ENCODER_DECODER

FAMILIES = DECODER_ONLY + ENCODER_DECODER
BOTH_KINDS = ("llama", "t5")
VOCAB_SIZE = 97
WIDTH = 32
PAD, EOS, FIRST_WORD = 0, 1, 3

DECODER_FIELDS = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": PAD,
    "eos_token_id": EOS,
    "bos_token_id": 2,
    "initializer_range": 0.2,  # far from uniform, so that every part of the model shows in the logits
}
FAMILY_FIELDS: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 6},
    "gemma2": {"query_pre_attn_scalar": 8, "sliding_window": 6},
    "gemma3_text": {"query_pre_attn_scalar": 8, "sliding_window": 6},
}
T5_FIELDS = {
    "vocab_size": VOCAB_SIZE,
    "d_model": WIDTH,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 4,
    "num_heads": 4,
    "dropout_rate": 0.0,
    "decoder_start_token_id": PAD,
    "pad_token_id": PAD,
    "eos_token_id": EOS,
}


def tiny_pilot(kind: str = "llama", *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random Pilot of a family, in eval mode; `changes` are fields of its configuration."""
    torch.manual_seed(seed)
    if kind in ENCODER_DECODER:
        return AutoModelForSeq2SeqLM.from_config(CONFIG_MAPPING[kind](**T5_FIELDS | changes)).eval()
    fields = DECODER_FIELDS | FAMILY_FIELDS.get(kind, {}) | changes
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**fields)).eval()


def pair_class(kind: str) -> type[PilotCopilotForCausalLM] | type[PilotCopilotForSeq2SeqLM]:
    return PilotCopilotForSeq2SeqLM if kind in ENCODER_DECODER else PilotCopilotForCausalLM


def fresh_pair(
    kind: str = "llama", *, pilot: PreTrainedModel | None = None, seed: int = 0, **config: Any
) -> PilotCopilotForCausalLM | PilotCopilotForSeq2SeqLM:
    """A pair as `from_pilot` makes it, in eval mode: its Copilot changes nothing yet."""
    pilot = tiny_pilot(kind, seed=seed) if pilot is None else pilot
    torch.manual_seed(seed + 1)
    return pair_class(kind).from_pilot(pilot, **{"layers": 3, "candidates": 8} | config).eval()


def random_pair(kind: str = "llama", **config: Any) -> PilotCopilotForCausalLM | PilotCopilotForSeq2SeqLM:
    """A pair whose Copilot changes much: its head and its attention are random."""
    pair = fresh_pair(kind, **config)
    randomize(pair.copilot)
    return pair


@torch.no_grad()
def randomize(copilot: torch.nn.Module, seed: int = 7) -> None:
    """Random weights where a fresh Copilot has zeros or small ones: the head, the mistake input's bias, all norms."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in copilot.named_parameters():
        if "norm" in name:
            parameter += torch.empty_like(parameter).uniform_(-0.3, 0.3, generator=generator)
        elif name.startswith("head."):
            parameter.normal_(std=0.4 if name == "head.weight" else 0.2, generator=generator)
        elif name.startswith("error_in."):
            parameter.normal_(std=0.6, generator=generator)


def random_ids(*shape: int, seed: int = 3) -> Tensor:
    """Words, neither padding nor end."""
    return torch.randint(FIRST_WORD, VOCAB_SIZE, shape, generator=torch.Generator().manual_seed(seed))


def prompts(padding: int = 3) -> dict[str, Tensor]:
    """Two prompts of 6 tokens; the first is left-padded."""
    ids = random_ids(2, 6)
    mask = torch.ones_like(ids)
    mask[0, :padding] = 0
    return {"input_ids": ids.masked_fill(mask == 0, PAD), "attention_mask": mask}


def batch_of(kind: str, *, prompt: int = 5, answer: int = 6, rows: int = 2, seed: int = 3) -> dict[str, Tensor]:
    """A supervised batch without padding: for a decoder-only Pilot the labels of the prompt are -100."""
    prompts, answers = random_ids(rows, prompt, seed=seed), random_ids(rows, answer, seed=seed + 1)
    if kind in ENCODER_DECODER:
        return {"input_ids": prompts, "attention_mask": torch.ones_like(prompts), "labels": answers}
    ids = torch.cat([prompts, answers], dim=1)
    labels = ids.clone()
    labels[:, :prompt] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


# Three rows of (prompt, answer), all of different lengths.
ROWS = [(random_ids(p, seed=p), random_ids(a, seed=20 + a)) for p, a in ((5, 2), (2, 5), (3, 4))]


def batch_of_rows(kind: str, rows: list[tuple[Tensor, Tensor]], side: str = "right") -> dict[str, Tensor]:
    """A supervised batch, padded on one side; the decoder's labels of an encoder-decoder are always padded right."""
    if kind == "t5":
        ids, labels = [prompt for prompt, _ in rows], [answer for _, answer in rows]
    else:
        ids = [torch.cat(row) for row in rows]
        labels = [torch.cat([torch.full_like(prompt, -100), answer]) for prompt, answer in rows]
    return {
        "input_ids": padded(ids, PAD, side),
        "attention_mask": padded([torch.ones_like(row) for row in ids], 0, side),
        "labels": padded(labels, -100, "right" if kind == "t5" else side),
    }


def rows_of(kind: str) -> list[dict[str, list[int]]]:
    """`ROWS` as a dataset."""
    if kind == "t5":
        return [{"input_ids": p.tolist(), "labels": a.tolist()} for p, a in ROWS]
    return [{"input_ids": [*p.tolist(), *a.tolist()], "labels": [-100] * len(p) + a.tolist()} for p, a in ROWS]


# Fourteen prompts with completions of one to four words of the tokenizer fixture.
TEXT_ROWS = [
    {"prompt": f"w{i} w{i + 1}", "completion": " ".join(f"w{3 * j % 100}" for j in range(i, i + 1 + i % 4))}
    for i in range(14)
]


def padded(rows: list[Tensor], value: int, side: str) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value, padding_side=side)


def layer_outputs(pilot: PreTrainedModel, **inputs: Any) -> tuple[Any, Tensor, list[Tensor]]:
    """(the model's output, input of the first decoder layer, raw output of every decoder layer) of one forward."""
    decoder = pilot.get_decoder()
    layers = decoder.block if hasattr(decoder, "block") else decoder.layers
    first: list[Tensor] = []
    outputs: list[Tensor] = []

    def keep_input(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        first.append(args[0] if args else kwargs["hidden_states"])

    def keep_output(_module: Any, _args: Any, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    handles = [layers[0].register_forward_pre_hook(keep_input, with_kwargs=True)]
    handles += [layer.register_forward_hook(keep_output) for layer in layers]
    with torch.no_grad():
        output = pilot(**inputs)
    for handle in handles:
        handle.remove()
    return output, first[0], outputs


def dense(delta: Tensor, index: Tensor | None, vocab_size: int) -> Tensor:
    """delta (N, k) of the tokens `index` (N, k) as (N, V), zero elsewhere."""
    return delta if index is None else delta.new_zeros(len(delta), vocab_size).scatter(1, index, delta)


def onehot(target: Tensor, vocab_size: int) -> Tensor:
    return torch.nn.functional.one_hot(target, vocab_size).double()


def dense_loss(logits: Tensor, target: Tensor, delta: Tensor, rectifier: str = "simplex", loss: str = "rmse") -> Tensor:
    """The Copilot's loss of every row (N,) in float64: logits, delta (N, V), written like the equations."""
    z, delta = logits.double(), delta.double()
    p, y = z.softmax(-1), onehot(target, z.shape[-1])
    log_q = (z + delta).log_softmax(-1)
    q = log_q.exp()
    mistake = y - p  # Eq. 4
    if loss == "rmse":
        f = q - p if rectifier == "simplex" else delta
        return (f - mistake).square().sum(-1)  # under the mean and root of Eq. 7
    if loss == "ce":
        return -(y * log_q).sum(-1)
    truth = p + mistake / 2
    return torch.special.xlogy(truth, truth).sum(-1) - (truth * log_q).sum(-1)


def dense_rectified(
    logits: Tensor, delta: Tensor, strength: float, rectifier: str = "simplex", fusion: str = "probability"
) -> Tensor:
    """p~ (N, V) of Eq. 8 in float64."""
    z, delta = logits.double(), delta.double()
    if fusion == "logit":
        return (z + strength * delta).softmax(-1)
    p = z.softmax(-1)
    if rectifier == "simplex":
        return (1 - strength) * p + strength * (z + delta).softmax(-1)
    rectified = (p + strength * delta).clamp(min=0)
    total = rectified.sum(-1, keepdim=True)
    return torch.where(total > 0, rectified / total, p)


def dense_mistakes(logits: Tensor, target: Tensor) -> Tensor:
    """l (N, V) of Eq. 4 in float64."""
    return onehot(target, logits.shape[-1]) - logits.double().softmax(-1)
