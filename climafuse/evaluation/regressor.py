"""A direct regressor: the same encoder with heads in place of a language model. A control.

It learns from the same examples, in the same order and for as many steps, with the same optimizer, and answers the same
questions. What it gets right and a model of the same encoder does not, the language model costs; where both fail, the
encoder or the data are the limit.

For each topic of the questions a learned query pools the climate tokens (attention of several heads); a network that
all topics share, and a linear head of the topic, give its value as `targets.py` has it, and a logit that there is none.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from climafuse.climate_tokens import ClimateTokens
from climafuse.data.batch import collate_windows
from climafuse.data.normalization import statistics_from_dict, statistics_to_dict
from climafuse.data.pairs import Pair
from climafuse.data.window import Window
from climafuse.encoders import ClimateEncoder
from climafuse.errors import CheckpointError, PairsError
from climafuse.evaluation.oracle import in_words
from climafuse.evaluation.subjects import Subjects
from climafuse.evaluation.targets import FORMS, NUM_TARGETS, Frame, Key, Topic, topics_of
from climafuse.facts import Fact, withhold
from climafuse.fusion.base import visible
from climafuse.json_file import read_object
from climafuse.manifest import verify_folder
from climafuse.model import channels_of
from climafuse.model.folder import read_weights, write_weights
from climafuse.registry import ENCODERS
from climafuse.training.config import RunConfig
from climafuse.training.dataset import Example, ExampleDataset, make_examples, open_store
from climafuse.training.identity import identify
from climafuse.training.pipeline import Say
from climafuse.training.trainer import ClimateTextTrainer

FORMAT = 1
DESCRIPTION = "regressor.json"
HEADS, HEAD_WIDTH, HIDDEN = 8, 32, 512


class Regressor(nn.Module):
    """An encoder with a head for each topic. Trained by `ClimateTextTrainer`, and asked as a model is (`answer`).

    Args:
        encoder: The encoder.
        statistics: Of the fields; its variables are the encoder's channels.
        topics: What it can answer.

    `subjects` tells what questions ask for; an evaluation sets it to what is declared of its own.
    """

    def __init__(self, encoder: ClimateEncoder, statistics: xr.Dataset, topics: Sequence[Topic]) -> None:
        super().__init__()
        self.encoder = encoder
        self.statistics = statistics
        self.topics = tuple(topics)
        self.numbers = {topic.key: number for number, topic in enumerate(self.topics)}
        self.subjects = Subjects()
        width = HEADS * HEAD_WIDTH
        sizes = [FORMS[topic.form].size(topic) for topic in self.topics]
        outputs = 1 + max(sizes)
        self.norm = nn.LayerNorm(encoder.width)
        self.key = nn.Linear(encoder.width, width, bias=False)  # the softmax would not see it
        self.value = nn.Linear(encoder.width, width)
        self.query = nn.Embedding(len(self.topics), width)
        self.hidden = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN), nn.GELU()
        )
        self.weight = nn.Parameter(torch.randn(len(self.topics), outputs, HIDDEN) / HIDDEN**0.5)
        self.bias = nn.Parameter(torch.zeros(len(self.topics), outputs))
        # Which outputs a topic has: the logit of absence, then its own.
        own = torch.arange(outputs) <= torch.tensor(sizes).unsqueeze(1)  # [topics, outputs]
        self.register_buffer("own", own, persistent=False)
        forms = torch.tensor([list(FORMS).index(topic.form) for topic in self.topics])
        self.register_buffer("forms", forms, persistent=False)  # [topics]

    # ---- What it gives

    def outputs(self, climate: Mapping[str, Tensor], index: Tensor, topics: Tensor) -> Tensor:
        """The outputs for N questions.

        Args:
            climate: Tensors of `collate_windows`, B windows.
            index: [N], which window each question is about.
            topics: [N] numbers of topics.

        Returns:
            [N, 1 + size of the largest head]: the logit of absence, then what `FORMS` says; -inf where a topic has
            fewer.
        """
        names = ("fields", "mask", "latitude", "longitude", "time")
        tokens = self.encoder(*(climate[f"climate_{name}"] for name in names))
        # In float32, whatever the encoder computes in: numbers are told to a hundredth of their spread.
        with torch.autocast(index.device.type, enabled=False):
            return self._heads(tokens, index, topics)

    def _heads(self, tokens: ClimateTokens, index: Tensor, topics: Tensor) -> Tensor:
        states = self.norm(tokens.states.float())
        key, value = (
            rearrange(layer(states), "b m (h d) -> b h m d", h=HEADS) for layer in (self.key, self.value)
        )
        # Every topic asks every window: cheaper than keys and values copied for each question.
        query = rearrange(self.query.weight, "t (h d) -> h t d", h=HEADS).expand(len(states), -1, -1, -1)
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=visible(tokens))
        found = rearrange(attended, "b h t d -> (b t) (h d)")
        found = functional.embedding(index * len(self.topics) + topics, found)  # [N, h d]
        # The query beside what it found: the network that all share must know what is asked.
        hidden = self.hidden(found + self.query(topics))
        weight = functional.embedding(topics, self.weight.flatten(1)).unflatten(1, self.weight.shape[1:])
        outputs = torch.einsum("nh,noh->no", hidden, weight) + self.bias[topics]
        return outputs.masked_fill(~self.own[topics], -torch.inf)  # type: ignore[index]

    def forward(
        self,
        labels: Tensor,
        absent: Tensor,
        targets: Tensor,
        climate_index: Tensor,
        num_items_in_batch: Tensor | int | None = None,
        **climate: Tensor,
    ) -> dict[str, Tensor]:
        """The loss of a batch of questions.

        Args:
            labels: [N, 2], the topic of each question at the second place; the trainer counts it as one label.
            absent: [N] bool, the fields hold nothing of the variable.
            targets: [N, NUM_TARGETS], the true values.
            climate_index: [N], which window each question is about.
            num_items_in_batch: Number of questions by which the sum is divided; None for those of this call.
            **climate: Tensors of `collate_windows`.
        """
        topics = labels[:, 1]
        outputs = self.outputs(climate, climate_index, topics)
        losses = functional.binary_cross_entropy_with_logits(
            outputs[:, 0], absent.to(outputs.dtype), reduction="none"
        )
        forms = self.forms[topics].masked_fill(absent, -1)  # type: ignore[index]
        for number, form in enumerate(FORMS.values()):
            rows = (forms == number).nonzero().squeeze(1)
            if len(rows):
                losses = losses.index_add(0, rows, form.loss(outputs[rows, 1:], targets[rows]))
        count = len(topics) if num_items_in_batch is None else num_items_in_batch
        return {"loss": losses.sum() / count}

    @torch.no_grad()
    def facts(
        self, windows: Sequence[Window], keys: Sequence[Key], *, index: Sequence[int] | None = None
    ) -> list[Fact]:
        """Facts of windows, as they are spoken.

        Args:
            windows: B windows.
            keys: What N facts are to be about.
            index: Which window each is about; None where fact n is about window n.

        Returns:
            N facts; that of absence where training told no value of what is asked.
        """
        rows = list(range(len(keys)) if index is None else index)
        known = [number for number, key in enumerate(keys) if key in self.numbers]
        answers = [Fact("absent", key[1], "absent") for key in keys]
        if not known:
            return answers
        self.eval()
        device = self.weight.device
        climate = {
            name: tensor.to(device) for name, tensor in collate_windows(windows, self.statistics).items()
        }
        topics = [self.numbers[keys[number]] for number in known]
        outputs = self.outputs(
            climate,
            torch.tensor([rows[number] for number in known], device=device),
            torch.tensor(topics, device=device),
        ).tolist()
        frames = [Frame.of(window) for window in windows]
        for number, topic, (absence, *values) in zip(known, topics, outputs, strict=True):
            if absence <= 0:
                answers[number] = self.topics[topic].fact(values, frames[rows[number]])
        return answers

    def answer(
        self, windows: Sequence[Window], prompts: Sequence[str], *, index: Sequence[int] | None = None
    ) -> list[str]:
        """Answer N prompts in words, as any model that is evaluated; nothing where they ask for nothing."""
        rows = range(len(prompts)) if index is None else index
        asks = [
            (number, row, key)
            for number, (row, prompt) in enumerate(zip(rows, prompts, strict=True))
            for key in self.subjects[prompt]
        ]
        facts = self.facts(windows, [key for _, _, key in asks], index=[row for _, row, _ in asks])
        said: list[list[str]] = [[] for _ in prompts]
        for (number, _, _), fact in zip(asks, facts, strict=True):
            said[number].append(in_words(fact))
        return [" ".join(texts) for texts in said]

    # ---- Saving and loading; what `ClimateTextTrainer` asks of a model

    def trainable_state_dict(self) -> dict[str, Tensor]:
        """All weights."""
        return self.state_dict()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write weights and description into a folder."""
        write_weights(Path(folder), self.state_dict())
        content = {
            "format": FORMAT,
            "encoder": {"name": ENCODERS.name_of(type(self.encoder)), "options": self.encoder.options},
            "statistics": statistics_to_dict(self.statistics),
            "topics": [topic.to_dict() for topic in self.topics],
        }
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
        (Path(folder) / DESCRIPTION).write_text(text + "\n", encoding="utf-8")

    def load_trainable(self, folder: str | Path) -> None:
        """Load weights, strictly.

        Raises:
            CheckpointError: The file is missing, damaged, or holds other weights.
        """
        self.load_state_dict(read_weights(Path(folder), self.state_dict()))

    @classmethod
    def load(cls, folder: str | Path) -> Regressor:
        """Load a saved regressor.

        Args:
            folder: `model` in the folder of a run of `train_regressor`.

        Raises:
            CheckpointError: The folder is incomplete or altered, or of another version.
        """
        path = Path(folder) / DESCRIPTION
        verify_folder(folder)
        try:
            content = read_object(path)
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']}")
            statistics = statistics_from_dict(content["statistics"])
            encoder = ENCODERS.create(
                content["encoder"]["name"], channels_of(statistics), **content["encoder"]["options"]
            )
            topics = [Topic.from_dict(topic) for topic in content["topics"]]
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise CheckpointError(
                str(path),
                expected=f"the description of a regressor of format {FORMAT}",
                received=f"{type(error).__name__}: {error}",
                remedy="Train it again.",
            ) from error
        regressor = cls(encoder, statistics, topics)
        regressor.load_trainable(folder)
        return regressor.eval()


class RegressorCollator:
    """Examples to a batch of questions. A pure function of the examples.

    Args:
        regressor: Whose topics they are about.
    """

    def __init__(self, regressor: Regressor) -> None:
        self.regressor = regressor

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Make a batch, see `Regressor.forward`; `sample` tells the sample of each climate row."""
        windows = [example.window for example in examples]
        frames = [Frame.of(window) for window in windows]
        rows: dict[tuple[int, tuple[str, ...]], int] = {}  # a window, or a window without some variables
        index, topics, absent, targets = [], [], [], []
        for number, example in enumerate(examples):
            for pair in example.pairs:
                for key, fact in asked_and_told(pair, self.regressor.subjects):
                    topic = self.regressor.numbers.get(key)
                    if topic is not None:
                        told = fact.kind != "absent"
                        index.append(rows.setdefault((number, pair.withheld), len(rows)))
                        topics.append(topic)
                        absent.append(not told)
                        known = self.regressor.topics[topic]
                        targets.append(known.targets(fact, frames[number]) if told else _NOTHING)
        views = [withhold(windows[number], withheld) for number, withheld in rows]
        return {
            **collate_windows(views, self.regressor.statistics),
            "climate_index": torch.tensor(index),
            "labels": functional.pad(torch.tensor(topics).unsqueeze(1), (1, 0)),  # [N, 2]
            "absent": torch.tensor(absent),
            "targets": torch.tensor(targets),  # [N, NUM_TARGETS]
            "sample": torch.tensor([examples[number].sample for number, _ in rows]),
        }


_NOTHING = (0.0,) * NUM_TARGETS


def asked_and_told(pair: Pair, subjects: Subjects) -> list[tuple[Key, Fact]]:
    """What a text asks for and the exact facts it tells.

    Args:
        pair: The text.
        subjects: What prompts ask for: where the answer is that there is none, its facts do not tell.
    """
    facts = [Fact.from_dict(fact) for fact in pair.facts]
    if len(facts) == 1 and facts[0].kind == "absent":
        return [(key, facts[0]) for key in subjects[pair.prompt] if key[1] == facts[0].variable]
    return [(fact.key, fact) for fact in facts]


def _declare(subjects: Subjects, examples: Iterable[Example]) -> Iterator[Example]:
    """Learn by the way what the questions of examples ask for."""
    for example in examples:
        for pair in example.pairs:
            if len(pair.facts) == 1:
                subjects.declare(pair.prompt, Fact.from_dict(pair.facts[0]).key)
        yield example


def train_regressor(config: RunConfig, *, resume: bool = False, say: Say) -> dict[str, Any]:
    """Train a regressor on what a run with this configuration is trained on.

    Args:
        config: The run; its encoder, data, texts and training settings count. It is saved in `model` of its output
            folder.
        resume: Go on from the newest checkpoint that verifies.
        say: Told one line at each stage.

    Returns:
        How many steps were done, and where the regressor is.

    Raises:
        ClimafuseError: Something does not fit, or the training texts state no fact.
    """
    store = open_store(config)
    train, validation = (make_examples(store, split, config) for split in ("train", "validation"))
    subjects = Subjects()

    def told(example: Example) -> list[tuple[Key, Fact]]:
        return [entry for pair in example.pairs for entry in asked_and_told(pair, subjects)]

    # An absence tells no topic, so that what its question asks for may be declared after it.
    topics = topics_of(entry for example in _declare(subjects, train) for entry in told(example))
    if not topics:
        raise PairsError(
            "training texts",
            expected="exact facts with some of them, which a regressor could learn",
            received="none with any",
            remedy="Evaluate without the regressor.",
        )
    keys = {topic.key for topic in topics}
    torch.manual_seed(config.training.seed)
    encoder = ENCODERS.create(
        config.encoder.name, channels_of(store.statistics), **dict(config.encoder.options)
    )
    regressor = Regressor(encoder, store.statistics, topics)
    regressor.subjects = subjects
    say(
        f"regressor: {sum(parameter.numel() for parameter in regressor.parameters()):,} trainable parameters, "
        f"{len(topics)} topics of {', '.join(dict.fromkeys(topic.kind for topic in topics))}"
    )

    def answerable(examples: Sequence[Example]) -> ExampleDataset:
        kept = [n for n, example in enumerate(examples) if any(key in keys for key, _ in told(example))]
        return ExampleDataset(examples if len(kept) == len(examples) else [examples[n] for n in kept])

    trainer = ClimateTextTrainer(
        regressor,
        config,
        train_dataset=answerable(train),
        eval_dataset=answerable(validation),
        data_collator=RegressorCollator(regressor),
        identity=identify(store, (train, validation)),
        progress=False,
    )
    trainer.train(resume_from_checkpoint=resume)
    folder = Path(config.output.directory) / "model"
    trainer.save_model(folder)
    return {"model": str(folder), "steps": trainer.state.global_step, "stopped_by": trainer.stopped_by}
