"""The composite model in Hugging Face shape."""

from climafuse.model.configuration import ClimateTextConfig, channels_of
from climafuse.model.modeling import ClimateTextForCausalLM, ClimateTextOutput
from climafuse.model.objective import SampledVocabulary
from climafuse.model.processing import ClimateFeatureExtractor, ClimateTextProcessor
from climafuse.model.reuse import PrefixStore
from climafuse.model.stored_states import DiskStates, MemoryStates

__all__ = [
    "ClimateFeatureExtractor",
    "ClimateTextConfig",
    "ClimateTextForCausalLM",
    "ClimateTextOutput",
    "ClimateTextProcessor",
    "DiskStates",
    "MemoryStates",
    "PrefixStore",
    "SampledVocabulary",
    "channels_of",
]
