"""CopilotConfig: every choice of the method, its default and its equation."""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig

from copilot.ops.candidate_loss import check_loss
from copilot.ops.pool_layers import POOLINGS
from copilot.ops.rectify import FUSIONS, RECTIFIERS, check_choice, check_strength

DECODER_ONLY = ("llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text", "smollm3")
ENCODER_DECODER = ("t5",)

FEEDBACKS = ("observed", "predicted")
VISIBILITIES = ("current", "previous")
CONTEXT_LAYERS = ("even", "every", "first_half", "second_half", "last")
TABLES = ("own", "tied", "factored")
# The fields of CopilotConfig that say what a Copilot's output means and what it reads, whatever its weights.
DESIGN = (
    *("candidates", "rectifier", "fusion", "feedback", "visibility", "loss", "pooling", "context_layers"),
    *("context_norm", "head", "error_in", "rank"),
)


class UnsupportedArchitectureError(ValueError):
    """The Pilot's architecture has no Copilot yet."""

    def __init__(self, model_type: str):
        super().__init__(
            f"model_type {model_type!r} is not supported. Supported: {', '.join(DECODER_ONLY)} (decoder-only); "
            f"{', '.join(ENCODER_DECODER)} (encoder-decoder)"
        )


class CopilotConfig(PretrainedConfig):
    """Everything that defines a Copilot; also the configuration of the pair it belongs to.

    Defaults are in brackets; the first six have none, and follow from the Pilot.

    Args:
        decoder: configuration of the Copilot's decoder layers: the Pilot family's own class, or its dictionary.
        vocab_size: V, the size of the Pilot's output, and so of p^.
        pilot_hidden_size: d, the width of X~ and h.
        base_model_name_or_path: the Pilot this Copilot was trained beside.
        pilot_dtype: the type that Pilot had when the Copilot was saved, by its name in torch.
        pilot_checksum: of its weights then; see `copilot.building.checksum_of`.
        candidates (32): k; the correction is restricted to the Pilot's k most likely tokens. None is the paper's full
            vocabulary.
        rectifier ("simplex"): f, the predicted mistake: "simplex": softmax(z + delta) - p^; "linear" (the paper's
            text): delta.
        fusion ("probability"): p~: "probability": p^ + lambda f (Eq. 8); "logit" (the paper's figures):
            softmax(z + lambda delta).
        feedback ("observed"): what the Copilot reads at step i: "observed": the mistake of the token that was really
            emitted; "predicted" (Algorithm 2 to the letter): its own f_{i-1}.
        visibility ("current"): which of the Pilot's states it sees at step i: "current": h_1..h_i; "previous":
            h_1..h_{i-1}.
        loss ("rmse"): "rmse" (Eq. 7), or "ce" and "kl" for the ablation.
        pooling ("mean"): Pool of Eq. 6 over the Pilot's layers, "mean", "max" or "sum".
        context_layers ("even"): where the Pilot's states enter (the paper's patterns 1-4): all Pilot layers pooled into
            the Copilot's "even" layers or "every" layer; only the "first_half", the "second_half" or the "last" of the
            Pilot's layers (into even layers). An encoder-decoder Copilot cross-attends in every layer: there "even" is
            "every".
        context_norm (True): normalise X~ and h (RMSNorm, each its own) before they become keys and values. The paper's
            text has no such norm.
        head ("own"): the c -> V output, zero-initialised: "own" V x c matrix; "tied" to the Pilot's output embedding
            behind a c x d map; "factored": a V x rank table plus the tied part.
        error_in ("own"): the V -> c input; the same three, tied to the Pilot's input embedding.
        rank (64): of the factored tables.
        lora (None): fields of a `peft.LoraConfig` for the Copilot's layers; None trains the Copilot in full.
        strength (1.0): lambda of Eq. 8, the default of `generate` and `forward`; `calibrate` sets it.

    Raises:
        ValueError: an unknown or contradictory choice.
        UnsupportedArchitectureError: a decoder of another family.
    """

    model_type = "copilot"
    has_no_defaults_at_init = True  # a Copilot is defined by its Pilot
    keys_to_ignore_at_inference = ["past_key_values", "pilot_loss", "copilot_loss", "mistakes", "delta"]

    def __init__(
        self,
        decoder: PretrainedConfig | dict[str, Any] | None = None,
        vocab_size: int = 0,
        pilot_hidden_size: int = 0,
        base_model_name_or_path: str | None = None,
        pilot_dtype: str | None = None,
        pilot_checksum: str | None = None,
        candidates: int | None = 32,
        rectifier: str = "simplex",
        fusion: str = "probability",
        feedback: str = "observed",
        visibility: str = "current",
        loss: str = "rmse",
        pooling: str = "mean",
        context_layers: str = "even",
        context_norm: bool = True,
        head: str = "own",
        error_in: str = "own",
        rank: int = 64,
        lora: dict[str, Any] | None = None,
        strength: float = 1.0,
        **kwargs: Any,
    ):
        check_choice("rectifier", rectifier, RECTIFIERS)
        check_choice("fusion", fusion, FUSIONS)
        check_choice("feedback", feedback, FEEDBACKS)
        check_choice("visibility", visibility, VISIBILITIES)
        check_choice("pooling", pooling, POOLINGS)
        check_choice("context_layers", context_layers, CONTEXT_LAYERS)
        check_choice("head", head, TABLES)
        check_choice("error_in", error_in, TABLES)
        check_loss(loss, rectifier)
        check_strength(strength, rectifier, fusion)
        if rank < 1:
            raise ValueError(f"rank must be at least 1; got {rank}")
        if candidates is not None and candidates < 1:
            raise ValueError(f"candidates must be None or at least 1; got {candidates}")
        self.vocab_size = vocab_size
        self.pilot_hidden_size = pilot_hidden_size
        self.base_model_name_or_path = base_model_name_or_path
        self.pilot_dtype = pilot_dtype
        self.pilot_checksum = pilot_checksum
        self.candidates = min(candidates, vocab_size) if candidates and vocab_size else candidates
        self.rectifier = rectifier
        self.fusion = fusion
        self.feedback = feedback
        self.visibility = visibility
        self.loss = loss
        self.pooling = pooling
        self.context_layers = context_layers
        self.context_norm = context_norm
        self.head = head
        self.error_in = error_in
        self.rank = rank
        self.lora = lora
        self.strength = strength
        if isinstance(decoder, PretrainedConfig):
            decoder = decoder.to_dict()
        # A dictionary, not a live config: a live sub-config would share its attention implementation with the Pilot's.
        self.decoder_config: dict[str, Any] = decoder or kwargs.pop("decoder_config", None) or {}
        kwargs.pop("is_encoder_decoder", None)
        super().__init__(is_encoder_decoder=self.decoder_config.get("model_type") in ENCODER_DECODER, **kwargs)
        if self.decoder_config and self.decoder_config["model_type"] not in DECODER_ONLY + ENCODER_DECODER:
            raise UnsupportedArchitectureError(self.decoder_config["model_type"])

    def build_decoder_config(self) -> PretrainedConfig:
        """The family's own configuration object for the Copilot's layers."""
        fields = dict(self.decoder_config)
        fields.pop("dtype", None)  # of a Pilot in half precision; the Copilot's maps beside these layers are float32
        return CONFIG_MAPPING[fields.pop("model_type")](**fields)

    @property
    def hidden_size(self) -> int:
        """c, the Copilot's width."""
        return self.decoder_config.get("hidden_size") or self.decoder_config["d_model"]

    @property
    def num_hidden_layers(self) -> int:
        """L_C, the number of the Copilot's layers."""
        key = "num_decoder_layers" if self.is_encoder_decoder else "num_hidden_layers"
        return self.decoder_config[key]

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PretrainedConfig:
        """This configuration: the pair speaks one vocabulary, and its caches are the Pilot's own."""
        return self
