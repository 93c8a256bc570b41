"""The method's operations: one public function each, specified by its plain-torch reference in `reference.py`."""

from copilot.ops.candidate_loss import candidate_loss
from copilot.ops.mistake_cross_entropy import mistake_cross_entropy
from copilot.ops.mistakes import Mistakes
from copilot.ops.pool_layers import pool_layers
from copilot.ops.rectify import rectify
from copilot.ops.rectify_sample import rectify_sample

__all__ = ["Mistakes", "candidate_loss", "mistake_cross_entropy", "pool_layers", "rectify", "rectify_sample"]
