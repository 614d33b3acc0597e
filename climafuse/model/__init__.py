"""The composite model in Hugging Face shape."""

from climafuse.model.configuration import ClimateTextConfig, channels_of
from climafuse.model.modeling import ClimateTextForCausalLM, ClimateTextOutput
from climafuse.model.objective import SampledVocabulary
from climafuse.model.processing import ClimateFeatureExtractor, ClimateTextProcessor
from climafuse.model.reuse import PrefixStore

__all__ = [
    "ClimateFeatureExtractor",
    "ClimateTextConfig",
    "ClimateTextForCausalLM",
    "ClimateTextOutput",
    "ClimateTextProcessor",
    "PrefixStore",
    "SampledVocabulary",
    "channels_of",
]
