"""Configuration of a climate-text model: which backbone, which encoder, which fusion at which sites.

Everything needed to build the model again is here, the statistics of the fields included: absolute values
could otherwise not be recovered, and a text with degrees in it not be learned.
"""

# No `from __future__ import annotations` here: @strict checks values by annotations, and skips those that are texts.
import copy
from typing import Any

import xarray as xr
from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from climafuse.data.normalization import moments, statistics_from_dict
from climafuse.encoders import Channels
from climafuse.errors import ConfigurationError
from climafuse.facts import SPOKEN_VARIABLES


@strict
class ClimateTextConfig(PreTrainedConfig):
    """Configuration of `ClimateTextForCausalLM`.

    Args:
        text_config: Configuration of the backbone, as transformers knows it.
        backbone: Identity of the backbone: id, revision, content hash, architecture, number of parameters.
        backbone_dtype: Type of the frozen weights.
        backbone_quantization: Bits in which its blocks were held (`int8`, `int4`); None for that type.
        backbone_quantize_head: Whether its head was, too.
        variables: Canonical names of the V channels, in order.
        statistics: Mean and standard deviation of each over the training times, as `statistics_to_dict`
            writes them.
        history: Time steps of a window the model was trained on.
        box_degrees: Side of the boxes the model was trained on, in degrees, or height and width.
        encoder: Registered name of the encoder; of one that is not registered, where it is defined.
        encoder_options: Its arguments.
        fusion: Registered name of the fusion; of one that is not registered, where it is defined.
        fusion_options: Its arguments.
        sites: Where fusion sits: "input", "output", block indices, {"last": n}, {"every": n}, or a list of
            these.
        lora: Options of the adapters in the backbone's blocks, see `backbones.with_lora`; None for none.
        backbone_trainable: Which of its own weights are trained, see `backbones.with_trained_weights`; None for none.
        weights_sha256: Checksum of the trained weights beside a saved configuration.
    """

    model_type = "climate_text"
    sub_configs_defaults = {"text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama")}  # noqa: RUF012

    text_config: dict | PreTrainedConfig | None = None
    backbone: dict | None = None
    backbone_dtype: str = "bfloat16"
    backbone_quantization: str | None = None
    backbone_quantize_head: bool = False
    variables: list | tuple = ()
    statistics: dict | None = None
    history: int = 1
    box_degrees: float | int | list | tuple = 16.0
    encoder: str = "grid_transformer"
    encoder_options: dict | None = None
    fusion: str = "cross_attention"
    fusion_options: dict | None = None
    sites: Any = "output"
    lora: dict | None = None
    backbone_trainable: Any = None
    weights_sha256: str | None = None
    tie_word_embeddings: bool = False  # the backbone ties its own; nothing of it is saved here

    def __post_init__(self, **kwargs: Any) -> None:
        """Take a copy of the backbone's configuration.

        What is set on a composite configuration, transformers sets on its parts too: without a copy the kind of
        attention would be set to none in the very configuration a living backbone reads it from, and its words
        would see those after them. Where the backbone was loaded from is told by its identity alone.
        """
        self.text_config = copy.deepcopy(self.text_config)
        if isinstance(self.text_config, dict):
            self.text_config.pop("_name_or_path", None)
        elif self.text_config is not None:
            self.text_config._name_or_path = ""
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Read a configuration; objects for the model pass through.

        The Auto classes let keyword arguments that are named as a key replace its value. Of these, the model
        takes objects: they must reach it, and leave the names in the configuration alone.
        """
        objects = {name: kwargs.pop(name) for name in ("backbone", "encoder", "fusion") if name in kwargs}
        returned = super().from_dict(config_dict, **kwargs)
        if not kwargs.get("return_unused_kwargs"):
            return returned
        config, unused = returned
        return config, {**unused, **objects}

    @property
    def box_size(self) -> tuple[float, float]:
        """Height and width of the boxes the model was trained on, degrees."""
        sides = self.box_degrees if isinstance(self.box_degrees, list | tuple) else [self.box_degrees] * 2
        if len(sides) != 2 or not all(isinstance(side, int | float) and side > 0 for side in sides):
            raise ConfigurationError(
                "box_degrees",
                expected="a number above 0, or two: height and width",
                received=self.box_degrees,
                remedy="Correct the configuration of the model.",
            )
        height, width = sides
        return float(height), float(width)

    @property
    def spelled_box(self) -> str:
        """The same in words: "16", or "11 by 52"."""
        height, width = (f"{side:g}" for side in self.box_size)
        return height if height == width else f"{height} by {width}"

    def normalization(self) -> xr.Dataset:
        """Return the statistics of the channels, in the order of `variables`.

        Raises:
            ConfigurationError: A variable has no statistics.
        """
        held = (self.statistics or {}).get("variables", {})
        missing = [name for name in self.variables if name not in held]
        if missing or not self.variables:
            raise ConfigurationError(
                "statistics",
                expected="mean and standard deviation of each of one or more variables",
                received=f"none of {', '.join(missing) or 'any variable'}",
                remedy="Take them from the training store, or from compute_statistics.",
            )
        # JSON sorts the keys; the order of the channels is that of the list.
        return statistics_from_dict(
            {**(self.statistics or {}), "variables": {name: held[name] for name in self.variables}}
        )

    def channels(self) -> Channels:
        """Return the channels with their natural units, see `channels_of`.

        Raises:
            ConfigurationError: A variable has no statistics.
        """
        return channels_of(self.normalization())


def channels_of(statistics: xr.Dataset) -> Channels:
    """Return the channels of fields normalized with some statistics, for making an encoder.

    Args:
        statistics: From `compute_statistics`; its variables are the channels, in their order.

    Returns:
        The channels with their natural units: those a variable is spoken in, else SI.
    """
    names, means, stds = moments(statistics)
    scale, offset = [], []
    for name, mean, std in zip(names, means, stds, strict=True):
        spoken = SPOKEN_VARIABLES.get(name)
        factor, shift = (1.0, 0.0) if spoken is None else (spoken.scale, spoken.offset)
        scale.append(float(std) * factor)
        offset.append(float(mean) * factor + shift)
    return Channels(names, tuple(scale), tuple(offset))


AutoConfig.register(ClimateTextConfig.model_type, ClimateTextConfig)
