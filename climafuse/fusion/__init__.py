"""Fusions: how text states look at climate tokens."""

from climafuse.fusion.base import Fusion
from climafuse.fusion.cross_attention import CrossAttentionFusion
from climafuse.fusion.film import FiLMFusion
from climafuse.fusion.gated import GatedAdditionFusion
from climafuse.fusion.prefix import PrefixFusion

__all__ = ["CrossAttentionFusion", "FiLMFusion", "Fusion", "GatedAdditionFusion", "PrefixFusion"]
