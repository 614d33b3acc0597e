"""The model card, written on every save."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import yaml

from climafuse.backbones import CATALOG
from climafuse.model.configuration import ClimateTextConfig

CARD_FILE = "README.md"

_USE = """\
```python
import climafuse  # lets the Auto classes know its models
from transformers import AutoModelForCausalLM, AutoProcessor

model = AutoModelForCausalLM.from_pretrained(folder)  # loads the backbone, too; elsewhere: backbone="its folder"
processor = AutoProcessor.from_pretrained(folder)

fields = climafuse.open_climate("fields.nc", variables=model.config.variables)
box = climafuse.Box(48.9, 2.3, *model.config.box_size)
window = climafuse.select_window(fields, time=fields["time"].values[-1], box=box, history=model.config.history)
inputs = processor([window], ["What is the mean temperature?"])
generated = model.generate(**inputs, max_new_tokens=48, do_sample=False)
print(processor.decode_answers(generated, inputs["input_ids"].shape[1]))
```
"""


def model_card(config: ClimateTextConfig, facts: Mapping[str, Any], *, license: str = "unknown") -> str:
    """Write the card of a model.

    Args:
        config: Its configuration.
        facts: More to say, each as one line: what it was trained on, figures of its evaluation, ….
        license: Of the trained weights, as the hub spells it.

    Returns:
        Markdown with the metadata block of the hub.
    """
    backbone = config.backbone or {}
    name = str(backbone.get("id"))
    weights = "random weights, for capacity only" if backbone.get("random_weights") else "pretrained"
    provenance = (config.statistics or {}).get("provenance", {})
    metadata: dict[str, Any] = {
        "library_name": "climafuse",
        "pipeline_tag": "text-generation",
        "license": license,
        "tags": ["climate", "multimodal", *(["lora"] if config.lora else [])],
    }
    if backbone.get("revision") and re.fullmatch(r"[\w.-]+/[\w.-]+", name):  # a model of the hub
        metadata |= {"base_model": name, "base_model_relation": "adapter"}
    entry = CATALOG.get(name)
    lines = [
        "---",
        yaml.safe_dump(metadata, sort_keys=False).strip(),
        "---",
        "",
        "# A climate-text model",
        "",
        "A frozen language model that reads climate fields, made with climafuse. This folder holds what was trained",
        "only; the backbone is loaded by its id and checked by its hash.",
        "",
        f"- Backbone: {PurePath(name).name if PurePath(name).is_absolute() else name} "
        f"({backbone.get('architecture')}, {backbone.get('num_parameters', 0):,} parameters, frozen, {weights}), "
        f"{backbone.get('content_hash')}",
        *([] if entry is None else [f"- License of the backbone: {entry.license}"]),
        f"- Fusion: {config.fusion} at {config.sites}",
        *([f"- LoRA: {', '.join(f'{k} {v}' for k, v in config.lora.items())}"] if config.lora else []),
        f"- Encoder: {config.encoder}, windows of {config.history} times, boxes of {config.spelled_box}°",
        f"- Variables: {', '.join(config.variables)}",
        f"- Statistics from: {provenance.get('source')}, {provenance.get('first_time')} to "
        f"{provenance.get('last_time')}",
        *(
            ["- Anomalies against the same times, by " + provenance["anomalies"]]
            if "anomalies" in provenance
            else []
        ),
        *(f"- {name}: {value}" for name, value in facts.items()),
        "",
        _USE,
        "Answers are statements about the fields given, not forecasts. Check them: `climafuse infer` prints the",
        "same facts computed from the fields beside them.",
        "",
    ]
    return "\n".join(lines)
