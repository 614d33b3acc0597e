"""The model card, written on every save; an evaluation adds its grounding table."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

import yaml

from climafuse.backbones import CATALOG, weights_of
from climafuse.data.files import whole_file
from climafuse.errors import spelled_out
from climafuse.json_values import interval, number, table, text
from climafuse.model.configuration import ClimateTextConfig

CARD_FILE = "README.md"
_BEGIN, _END = "<!-- grounding: begin -->", "<!-- grounding: end -->"

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
    changed = config.backbone_trainable is not None
    weights = weights_of(backbone)
    provenance = (config.statistics or {}).get("provenance", {})
    metadata: dict[str, Any] = {
        "library_name": "climafuse",
        "pipeline_tag": "text-generation",
        "license": license,
        "tags": [
            "climate",
            "multimodal",
            *(["lora"] if config.lora else []),
            *(["fine-tuned"] if changed else []),
        ],
    }
    if backbone.get("revision") and re.fullmatch(r"[\w.-]+/[\w.-]+", name):  # a model of the hub
        metadata |= {"base_model": name, "base_model_relation": "finetune" if changed else "adapter"}
    entry = CATALOG.get(name)
    kept = spelled_trainable(config.backbone_trainable)
    lines = [
        "---",
        yaml.safe_dump(metadata, sort_keys=False).strip(),
        "---",
        "",
        "# A climate-text model",
        "",
        f"A {'fine-tuned' if changed else 'frozen'} language model that reads climate fields, made with climafuse. "
        "This folder holds what was trained",
        "only; the backbone is loaded by its id and checked by its hash."
        + (" Then its weights are changed." if changed else ""),
        "",
        f"- Backbone: {PurePath(name).name if PurePath(name).is_absolute() else name} "
        f"({backbone.get('architecture')}, {backbone.get('num_parameters', 0):,} parameters, {kept}, {weights}), "
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


def spelled_trainable(trainable: Any) -> str:
    """Whether the weights of the backbone were trained, and which, in words."""
    if trainable is None:
        return "frozen"
    if trainable == "all":
        return "fine-tuned in all its weights"
    if isinstance(trainable, Mapping):
        trainable = ", ".join(f"{key} {value}" for key, value in trainable.items())
    return f"fine-tuned in blocks {trainable}"


def add_grounding(folder: str | Path, evaluation: Mapping[str, Any]) -> Path:
    """Put the grounding table of an evaluation into the card of a saved model, in place of an earlier one.

    The card is no part of what the manifest of a folder answers for, so the folder still verifies.

    Args:
        folder: The saved model.
        evaluation: As `climafuse evaluate` writes it to `evaluation.json`. What it lacks is left out.

    Returns:
        The card.

    Raises:
        OutputError: It cannot be written.
    """
    path = Path(folder) / CARD_FILE
    section = f"{_BEGIN}\n{grounding_section(evaluation)}\n{_END}\n"
    with whole_file(path) as temporary:
        card = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        temporary.write_text(_with_section(card, section), encoding="utf-8")
    return path


def _with_section(card: str, section: str) -> str:
    """A card with the section in place of an earlier one."""
    begin, end = card.find(_BEGIN), card.find(_END)
    if 0 <= begin < end:
        return card[:begin] + section + card[end + len(_END) :].removeprefix("\n")
    at = card.find("```python")  # how it is used comes after what it is worth
    at = len(card) if at < 0 else at
    return f"{card[:at]}{section}\n{card[at:]}"


def whether_unseen(evaluation: Mapping[str, Any]) -> str:
    """What is said of the times that were asked about, after their number.

    Args:
        evaluation: As `climafuse evaluate` writes it. Of earlier versions it does not tell.
    """
    unseen = table(evaluation, "data").get("unseen")
    if unseen is True:
        return " that were not in training"
    if unseen is False:
        return " by which the best step was chosen"
    return "; it is not known whether they were in training"


def grounding_section(evaluation: Mapping[str, Any]) -> str:
    """Whether the words come from the fields, in Markdown.

    Args:
        evaluation: As `climafuse evaluate` writes it.
    """
    data, intervals = table(evaluation, "data"), table(evaluation, "intervals")
    counts = [
        f"{found:,.0f} {what}"
        for key, what in (
            ("num_questions", "questions"),
            ("num_windows", "windows"),
            ("num_test_times", f"times{whether_unseen(evaluation)}"),
        )
        if (found := number(data.get(key))) is not None
    ]
    grounded = table(evaluation, "verdict").get("grounded")
    verdict = "No verdict."
    if isinstance(grounded, bool):
        verdict = "**Grounded.**" if grounded else "**Not grounded.**"
    words = _cell(table(evaluation, "verdict").get("words"))
    verdict += f" The verdict in full: {words}." if words else ""
    source = (
        _cell(PurePath(str(data["source"])).name) if data.get("source") else ""
    )  # no place of this machine
    lines = [
        "## Do the words come from the fields?",
        "",
        f"{verdict} Measured with `climafuse evaluate` on {_cell(evaluation.get('date')) or 'an unknown day'}"
        f"{f', fields of {source}' if source else ''}{': ' + ', '.join(counts) if counts else ''}.",
        "",
        "| condition | fact F1 | interval | token loss |",
        "|---|---|---|---|",
    ]
    f1 = table(evaluation, "fact_f1")
    for name, found in table(evaluation, "conditions").items():
        score = number(table(found).get("f1"))
        score = number(f1.get(name)) if score is None else score
        if score is not None:
            label = _cell(table(found).get("label")) or _cell(name.replace("_", " "))
            ends, loss = interval(table(found).get("interval")), number(table(found).get("token_loss"))
            claimed = "–" if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}"
            lines.append(f"| {label} | {score:.3f} | {claimed} | {'–' if loss is None else f'{loss:.3f}'} |")
    why = _cell(intervals.get("why"))
    if intervals.get("claimed") is False:
        lines += ["", f"No interval is claimed. {why}".rstrip()]
    return "\n".join([*lines, "", "`climafuse report` shows all of it, with answers and maps."])


def _cell(value: Any) -> str:
    """A text of somebody else in a table of Markdown: nothing in it is markup."""
    words = html.escape(" ".join(spelled_out(text(value, 300)).split()), quote=False)
    return re.sub(r"([\\`*_\[\]|#!~])", r"\\\1", words)
