"""Frozen language models: found, checked, loaded, and opened at their blocks."""

from .blocks import (
    Attachment,
    BlockLayout,
    Site,
    SiteFunction,
    attach,
    find_blocks,
    gather,
    num_blocks_below,
    prefix_states,
    resolve_sites,
    resume,
)
from .cache import backbones_directory, cache_directory
from .catalog import CATALOG, DEFAULT_BACKBONE
from .fetching import BackboneListing, fetch_backbone, import_backbone, list_backbones
from .fine_tuning import first_trained_site, with_trained_weights
from .identity import BackboneIdentity, check_identity, hash_files, hash_parameters, labeled, weights_of
from .loading import LoadedBackbone, find_backbone, freeze, load_backbone
from .lora import adapted_layers, base_name, with_lora, without_adapters
from .quantization import Quantization, QuantizedLinear, quantize_model
from .soft_prompt import soft_prompt, word_size

__all__ = [
    "CATALOG",
    "DEFAULT_BACKBONE",
    "Attachment",
    "BackboneIdentity",
    "BackboneListing",
    "BlockLayout",
    "LoadedBackbone",
    "Quantization",
    "QuantizedLinear",
    "Site",
    "SiteFunction",
    "adapted_layers",
    "attach",
    "backbones_directory",
    "base_name",
    "cache_directory",
    "check_identity",
    "fetch_backbone",
    "find_backbone",
    "find_blocks",
    "first_trained_site",
    "freeze",
    "gather",
    "hash_files",
    "hash_parameters",
    "import_backbone",
    "labeled",
    "list_backbones",
    "load_backbone",
    "num_blocks_below",
    "prefix_states",
    "quantize_model",
    "resolve_sites",
    "resume",
    "soft_prompt",
    "weights_of",
    "with_lora",
    "with_trained_weights",
    "without_adapters",
    "word_size",
]
