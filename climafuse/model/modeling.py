"""The climate-text model: a frozen causal language model with a climate encoder and fusions at its sites.

    climate fields -> encoder -> climate tokens
    text tokens -> backbone, whose states meet the climate tokens at each site -> its own head -> logits

Nothing replaces the language model: all its blocks run, its own head makes the logits, and none of its
weights change. Before training every gate is zero and the model is the bare backbone, bit for bit; only a fusion that
puts states before the text has no such beginning.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import xarray as xr
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME, ModelOutput

from climafuse.backbones import (
    LoadedBackbone,
    Quantization,
    Site,
    adapted_layers,
    attach,
    base_name,
    check_identity,
    find_blocks,
    first_trained_site,
    gather,
    load_backbone,
    num_blocks_below,
    prefix_states,
    resolve_sites,
    resume,
    soft_prompt,
    with_lora,
    with_trained_weights,
    without_adapters,
    word_size,
)
from climafuse.backbones.head import dense_input, head_logits, headless, narrowed
from climafuse.climate_tokens import ClimateTokens
from climafuse.data.normalization import statistics_to_dict
from climafuse.encoders import ClimateEncoder
from climafuse.errors import CheckpointError, ConfigurationError, ModelInputError
from climafuse.fusion import Fusion
from climafuse.manifest import sha256
from climafuse.model.card import CARD_FILE, model_card
from climafuse.model.chunked_loss import chunked_loss, num_chunks, row_loss
from climafuse.model.configuration import ClimateTextConfig
from climafuse.model.folder import WEIGHTS_FILE, check_folder, read_weights, write_weights
from climafuse.model.generation import own_options, read_options
from climafuse.model.objective import SampledVocabulary, labeled_positions
from climafuse.model.processing import ClimateTextProcessor
from climafuse.model.publishing import local_folder, push_to_hub
from climafuse.model.reuse import PrefixStore
from climafuse.model.rows import check_rows, fuse_flat, fuse_rows, prompt_rows, select_rows
from climafuse.registry import ENCODERS, FUSIONS, Registry

CLIMATE_INPUTS = ("climate_fields", "climate_mask", "climate_latitude", "climate_longitude", "climate_time")
# Options of transformers' save_pretrained and the values under which they change nothing.
_SAVE_DEFAULTS: dict[str, tuple[Any, ...]] = {
    "is_main_process": (True,),
    "push_to_hub": (False,),
    "max_shard_size": (None, "50GB"),
    "variant": (None,),
    "token": (None,),
    "safe_serialization": (True,),
    "save_peft_format": (True,),
    "save_original_format": (True,),
    "distributed_checkpoint": (False,),
}
_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "token")
# What the Auto classes pass on and has no meaning here: no code of a repository runs, and adapters are our own.
_AUTO_OPTIONS = ("_from_auto", "trust_remote_code", "adapter_kwargs")
_HUB_FILES = [CONFIG_NAME, WEIGHTS_FILE, GENERATION_CONFIG_NAME]


@dataclass
class ClimateTextOutput(ModelOutput):
    """What a forward call returns.

    Attributes:
        loss: Cross-entropy on answer tokens, if labels were given.
        logits: [N, S, V]; with labels [P, V] of the labeled positions only, and in training with a sampled
            vocabulary of its tokens only. None in training where there are more than `chunked_loss.CHUNK` numbers of
            them, unless they are asked for.
        past_key_values: Cache of the backbone.
        hidden_states: Those of the backbone, if asked for without labels.
        attentions: Those of the backbone, if asked for without labels.
        climate_mask: [B, M], which climate tokens are valid.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Any = None
    hidden_states: Any = None
    attentions: Any = None
    climate_mask: Tensor | None = None


class ClimateTextForCausalLM(PreTrainedModel, GenerationMixin):
    """A frozen causal language model that reads climate fields.

    Make one with `from_backbone` (untrained) or `from_pretrained` (a checkpoint).

    Args:
        config: Configuration.
        backbone: The frozen language model; it is not part of a checkpoint.
        encoder: An encoder of your own; None makes the one the configuration names.
        fusion: Makes a fusion of your own from (hidden_size, climate_width, **config.fusion_options); None
            makes those the configuration names.

    Raises:
        ConfigurationError: Sites, names or options do not make sense, or the encoder has other channels.

    Attributes:
        sites: Where fusion sits, from input to output.
        prefix_site: The site up to which states depend on the text and frozen weights alone, so that they can
            be stored: the first site of the fusion, or the first block that is trained or holds an adapter if that
            is lower.
        prefix_store: States of texts at `prefix_site`, used in place of the blocks below; None computes them.
        num_soft_tokens: How many states the fusion puts before each text, P; 0 for a fusion of another kind.
        sampled_vocabulary: Over which tokens the softmax of a training step is taken; None for all.
    """

    config: ClimateTextConfig
    config_class = ClimateTextConfig
    base_model_prefix = "climate_text"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(
        self,
        config: ClimateTextConfig,
        backbone: LoadedBackbone,
        *,
        encoder: ClimateEncoder | None = None,
        fusion: Callable[[int, int], Fusion] | None = None,
    ) -> None:
        super().__init__(config)
        self.backbone_identity = backbone.identity
        self.backbone = _own_backbone(backbone.model, config)
        self._fine_tuned = frozenset(
            f"backbone.{name}"
            for name, parameter in self.backbone.named_parameters()  # tied ones once
            if parameter.requires_grad and config.backbone_trainable is not None
        )
        # A copy: what is set for this model is not set for others with the same backbone.
        self.generation_config = own_options(backbone.model.generation_config, self._vocabulary)
        self.tokenizer = backbone.tokenizer
        layout = find_blocks(self.backbone)
        if encoder is None:
            encoder = ENCODERS.create(config.encoder, config.channels(), **(config.encoder_options or {}))
        _check_channels(encoder, config)
        make: Callable[..., Fusion] = partial(FUSIONS.create, config.fusion) if fusion is None else fusion
        options = config.fusion_options or {}
        self.encoder = encoder
        self.sites: tuple[Site, ...] = resolve_sites(config.sites, layout.num_blocks)
        self.fusions = nn.ModuleDict(
            {str(site): make(layout.width(site), encoder.width, **options) for site in self.sites}
        )
        # What FSDP gathers at a time, where its configuration names no classes.
        units = (*layout.blocks, self.encoder, *self.fusions.values())
        self._no_split_modules = sorted({type(unit).__name__ for unit in units})
        self.prefix_site = _prefix_site(self.sites[0], first_trained_site(self.backbone), layout.num_blocks)
        self.num_soft_tokens = _num_soft_tokens(self.fusions, self.sites)
        self.word_size = word_size(backbone.model) if self.num_soft_tokens else 0.0
        self._any_block_below = num_blocks_below(self.prefix_site, layout.num_blocks) > 0
        self.prefix_store: PrefixStore | None = None
        self.sampled_vocabulary: SampledVocabulary | None = None

    # ---- Making, saving, loading

    @classmethod
    def from_backbone(
        cls,
        backbone: LoadedBackbone | str | Path,
        *,
        statistics: xr.Dataset,
        encoder: str | ClimateEncoder = "grid_transformer",
        fusion: str | Callable[[int, int], Fusion] = "cross_attention",
        sites: Any = "output",
        dtype: str = "bfloat16",
        **options: Any,
    ) -> ClimateTextForCausalLM:
        """Make an untrained model around a language model.

        Args:
            backbone: A loaded backbone, or what `load_backbone` takes.
            statistics: Of the fields, from training times (`compute_statistics`); its variables are the
                channels.
            encoder: Registered name, or an instance of your own.
            fusion: Registered name, or a class (or function) of your own taking (hidden_size, climate_width,
                **fusion_options).
            sites: As for `resolve_sites`.
            dtype: Type of the frozen weights, where the backbone is loaded here.
            **options: Other keys of `ClimateTextConfig`: `encoder_options`, `fusion_options`, `history`, `lora`, ….

        Raises:
            ConfigurationError: Sites, names or options do not make sense.
            BackboneError: The backbone cannot be used.
        """
        if not isinstance(backbone, LoadedBackbone):
            backbone = load_backbone(backbone, dtype=dtype)
        if isinstance(encoder, ClimateEncoder):
            if options.get("encoder_options"):
                raise ConfigurationError(
                    "encoder_options",
                    expected="options of an encoder that is given by name",
                    received="options beside an encoder that is already made",
                    remedy="Make the encoder with these options.",
                )
            options["encoder_options"] = encoder.options
        config = ClimateTextConfig(
            text_config=backbone.model.config,
            backbone=dict(backbone.identity),
            backbone_dtype=str(backbone.model.dtype).removeprefix("torch."),
            backbone_quantization=backbone.quantization,
            backbone_quantize_head=backbone.quantize_head,
            variables=[str(name) for name in statistics["variable"].values],
            statistics=statistics_to_dict(statistics),
            encoder=encoder if isinstance(encoder, str) else _name(ENCODERS, type(encoder)),
            fusion=fusion if isinstance(fusion, str) else _name(FUSIONS, fusion),
            sites=sites,
            **options,
        )
        return cls(
            config,
            backbone,
            encoder=None if isinstance(encoder, str) else encoder,
            fusion=None if isinstance(fusion, str) else fusion,
        )

    def trainable_state_dict(self) -> dict[str, Tensor]:
        """Return the weights a checkpoint holds: encoder, fusions and adapters, of the backbone what is trained."""
        layers = adapted_layers(self)
        return {
            name: tensor
            for name, tensor in self.state_dict().items()
            if not name.startswith("backbone.") or name in self._fine_tuned or base_name(name, layers) is None
        }

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | Path, *, state_dict: dict[str, Tensor] | None = None, **kwargs: Any
    ) -> None:
        """Write configuration, trainable weights and card; the configuration holds the weights' checksum.

        A backbone that was loaded from a plain folder is recorded by the path of that folder, where
        `from_pretrained` finds it; `push_to_hub` writes its name alone.

        Args:
            save_directory: Folder; made if need be. `training.write_folder` around this saves all or nothing.
            state_dict: `trainable_state_dict()`, gathered where the weights are spread over processes; None for it.
            **kwargs: Options of transformers, at the values under which they change nothing.

        Raises:
            ConfigurationError: An option that this method does not have, such as shards.
        """
        for name, value in kwargs.items():
            if name not in _SAVE_DEFAULTS or value not in _SAVE_DEFAULTS[name]:
                raise ConfigurationError(
                    name,
                    expected="a folder to save to: one file of safetensors, nothing else to choose",
                    received=f"{name}={value!r}",
                    remedy="Leave it out; to publish a model, call push_to_hub.",
                )
        weights = self.trainable_state_dict()
        if state_dict is not None and state_dict.keys() != weights.keys():
            raise ConfigurationError(
                "state_dict",
                expected=f"the {len(weights)} tensors of trainable_state_dict(), gathered",
                received=f"{len(state_dict)} others",
                remedy="Leave it out.",
            )
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        write_weights(folder, weights if state_dict is None else state_dict)
        config = copy.deepcopy(self.config)
        config.architectures = [type(self).__name__]
        config.weights_sha256 = sha256(folder / WEIGHTS_FILE)
        config.save_pretrained(folder)
        own_options(self.generation_config, self._vocabulary).save_pretrained(folder)
        (folder / CARD_FILE).write_text(model_card(config, {}), encoding="utf-8")

    def push_to_hub(  # type: ignore[override]
        self, repo_id: str, **options: Any
    ) -> str:
        """Publish the model with its processor on the Hugging Face hub, see `publishing.push_to_hub`."""
        return push_to_hub(self, ClimateTextProcessor.of(self.config, self.tokenizer), repo_id, **options)

    def load_trainable(self, folder: str | Path) -> None:
        """Load trainable weights, strictly: every tensor, no other tensor, each of the right shape and type.

        Raises:
            CheckpointError: The file is missing, damaged, or holds other weights; the model is unchanged.
        """
        weights = read_weights(Path(folder), self.trainable_state_dict())
        self.load_state_dict(weights, strict=False)  # it was strict; the frozen backbone is not in it

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *args: Any,
        backbone: LoadedBackbone | str | Path | None = None,
        config: ClimateTextConfig | None = None,
        encoder: ClimateEncoder | None = None,
        fusion: Callable[[int, int], Fusion] | None = None,
        verify: bool = False,
        **kwargs: Any,
    ) -> ClimateTextForCausalLM:
        """Load a saved model onto its backbone.

        Args:
            pretrained_model_name_or_path: Folder written by `save_pretrained` or `train`, or a model on the hub.
            *args: What the Auto classes pass on; unused.
            backbone: The backbone, where it lies elsewhere than its recorded id says; the same one.
            config: Its configuration, if already read.
            encoder: The encoder it was made with, where the class is not registered.
            fusion: What made its fusions, where the class is not registered.
            verify: Hash all weights of the backbone again.
            **kwargs: For a model on the hub: `cache_dir`, `force_download`, `local_files_only`, `revision`,
                `token`.

        Raises:
            CheckpointError: The folder is incomplete or altered.
            BackboneMismatchError: The backbone is another one than the model was trained on.
            ConfigurationError: An option that this method does not have, such as another type.
        """
        for name, value in kwargs.items():
            if name not in (*_HUB_OPTIONS, *_AUTO_OPTIONS) and value is not None:
                raise ConfigurationError(
                    name,
                    expected="the options of this method",
                    received=f"{name}={value!r}",
                    remedy="Load the backbone as you want it with load_backbone, and give it as backbone=.",
                )
        hub = {name: kwargs[name] for name in _HUB_OPTIONS if name in kwargs}
        folder = local_folder(pretrained_model_name_or_path, files=_HUB_FILES, **hub)
        saved = check_folder(folder)
        identity = saved.backbone
        assert identity is not None  # check_folder has looked
        config = saved if config is None else config
        if not isinstance(backbone, LoadedBackbone):
            backbone = load_backbone(
                identity["id"] if backbone is None else backbone,
                dtype=config.backbone_dtype,
                quantization=cast("Quantization | None", config.backbone_quantization),
                quantize_head=config.backbone_quantize_head,
                verify=verify,
            )
        check_identity(identity, backbone.identity)
        if identity.get("random_weights"):  # a copy of the same weights may not say so
            backbone = replace(backbone, identity={**backbone.identity, "random_weights": True})
        try:
            model = cls(config, backbone, encoder=encoder, fusion=fusion)
        except (RuntimeError, MemoryError) as error:  # of torch, where options ask for petabytes
            raise CheckpointError(
                str(folder),
                expected="a configuration that a model can be made of",
                received=str(error),
                remedy="Copy the folder again from its source.",
            ) from error
        model.load_trainable(folder)
        options = read_options(folder, model._vocabulary)
        if options is not None:
            model.generation_config = options
        return model.eval()

    def gate_values(self) -> dict[str, float]:
        """Return the mean absolute value of each gate, by site and name; all zero before training."""
        return {
            name: float(parameter.detach().abs().mean())
            for name, parameter in self.fusions.named_parameters()
            if name.endswith("gate")
        }

    def get_input_embeddings(self) -> nn.Module:
        """Return the backbone's embeddings."""
        return self.backbone.get_input_embeddings()

    @property
    def _vocabulary(self) -> int:
        """How many tokens the backbone can read."""
        return int(cast("nn.Embedding", self.get_input_embeddings()).num_embeddings)

    def get_output_embeddings(self) -> nn.Module:
        """Return the backbone's head."""
        return cast("nn.Module", self.backbone.get_output_embeddings())

    def enable_input_require_grads(self) -> None:
        """Do nothing: transformers asks for this where activations are recomputed in the backward pass.

        The graph begins where climate is fused. One from the embeddings on would be for nothing.
        """

    def disable_input_require_grads(self) -> None:
        """Do nothing, see above."""

    def _set_gradient_checkpointing(  # type: ignore[override]
        self, enable: bool = True, gradient_checkpointing_func: Callable[..., Any] = checkpoint, **kwargs: Any
    ) -> None:
        keywords = getattr(gradient_checkpointing_func, "keywords", {})
        if enable and keywords.get("use_reentrant") is not False:
            raise ConfigurationError(
                "use_reentrant",
                expected="False",
                received=repr(keywords.get("use_reentrant")),
                remedy="Reentrant checkpointing drops the gradients of fusions in a frozen backbone.",
            )
        try:
            super()._set_gradient_checkpointing(enable, gradient_checkpointing_func, **kwargs)
        except ValueError as error:
            raise ConfigurationError(
                "checkpoint_activations",
                expected="a language model of transformers that can compute activations anew",
                received=f"{type(self.backbone).__name__}, which cannot",
                remedy="Set training.checkpoint_activations: false.",
            ) from error

    # ---- Climate

    def encode_climate(
        self,
        climate_fields: Tensor,
        climate_mask: Tensor,
        climate_latitude: Tensor,
        climate_longitude: Tensor,
        climate_time: Tensor,
    ) -> ClimateTokens:
        """Encode windows of climate fields; arguments as of `ClimateEncoder.forward`."""
        tokens: ClimateTokens = self.encoder(
            climate_fields, climate_mask, climate_latitude, climate_longitude, climate_time
        )
        return tokens

    def _climate(
        self, states: Tensor | None, states_mask: Tensor | None, *inputs: Tensor | None
    ) -> ClimateTokens:
        """Climate tokens of a call: given as states, or encoded from `CLIMATE_INPUTS`."""
        if states is not None:
            if states_mask is None:
                states_mask = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
            nowhere = states.new_full(states.shape[:2], torch.nan)
            return ClimateTokens(states, states_mask, nowhere, nowhere, nowhere)
        missing = [name for name, tensor in zip(CLIMATE_INPUTS, inputs, strict=True) if tensor is None]
        if missing:
            raise ModelInputError(
                ", ".join(missing),
                expected="the climate of each text",
                received="nothing",
                remedy="Make the inputs with ClimateTextProcessor, windows included.",
            )
        return self.encode_climate(*cast("tuple[Tensor, ...]", inputs))

    # ---- Forward

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        climate_fields: Tensor | None = None,
        climate_mask: Tensor | None = None,
        climate_latitude: Tensor | None = None,
        climate_longitude: Tensor | None = None,
        climate_time: Tensor | None = None,
        climate_index: Tensor | None = None,
        climate_states: Tensor | None = None,
        climate_states_mask: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        return_logits: bool | None = None,
        **kwargs: Any,
    ) -> ClimateTextOutput:
        """Read climate and text, predict text.

        Args:
            input_ids: [N, S].
            attention_mask: [N, S].
            labels: [N, S], the input's own tokens where they are to be predicted (the shift is made here),
                else -100.
            climate_fields: [B, T, V, H, W] normalized.
            climate_mask: [B, T, V, H, W] bool.
            climate_latitude: [B, H] degrees north.
            climate_longitude: [B, W] degrees east.
            climate_time: [B, T] days since 1970-01-01.
            climate_index: [N], which window each text is about; None where text n is about window n.
            climate_states: [B, M, C] encoded before, instead of fields.
            climate_states_mask: [B, M] bool.
            num_items_in_batch: Number of labels by which the summed loss is divided; None for those of this
                call.
            return_logits: With labels, whether their logits are wanted beside the loss. Without them those of all
                positions are never in memory together (`chunked_loss`). None: in training, only where they are few.
            **kwargs: For the backbone: `past_key_values`, `use_cache`, `position_ids`, ….

        Returns:
            Loss and logits.

        Raises:
            ModelInputError: Text and climate do not fit together, or there is nothing to predict.
        """
        climate = self._climate(
            climate_states,
            climate_states_mask,
            climate_fields,
            climate_mask,
            climate_latitude,
            climate_longitude,
            climate_time,
        )
        check_rows(len(input_ids), len(climate.states), climate_index)
        self.check_length(input_ids.shape[1])
        if labels is None:
            with self._fused(climate, climate_index):
                output = self.backbone(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
            kept = ("logits", "past_key_values", "hidden_states", "attentions")
            return ClimateTextOutput(**{name: output.get(name) for name in kept}, climate_mask=climate.mask)
        kwargs.pop("use_cache", None)  # nothing follows a call with labels
        positions, targets = labeled_positions(labels)
        sampled = self.sampled_vocabulary if self.training else None
        tokens = added = None
        if sampled is not None:
            tokens, targets = sampled.draw().to(input_ids.device), sampled.columns(targets)
            added = None if sampled.added is None else sampled.added.to(input_ids.device)
        inputs = (input_ids, attention_mask, positions, climate, climate_index)
        count = len(targets) if num_items_in_batch is None else num_items_in_batch
        columns = self._vocabulary if tokens is None else len(tokens)
        if return_logits is None:
            return_logits = not self.training or num_chunks(len(targets), columns) == 1
        head = self.get_output_embeddings()
        with contextlib.nullcontext() if tokens is None else narrowed(self.backbone, tokens):
            if return_logits:
                logits = self.labeled_logits(*inputs, **kwargs)
                loss = row_loss(logits, targets, count=count, added=added)
                return ClimateTextOutput(loss, logits, climate_mask=climate.mask)
            loss = chunked_loss(
                partial(head_logits, self.backbone),
                self._labeled(*inputs, head=False, **kwargs),
                targets,
                num_columns=columns,
                count=count,
                added=added,
                weights=[weight for weight in head.parameters() if weight.requires_grad],
            )
        return ClimateTextOutput(loss, climate_mask=climate.mask)

    def check_length(self, num_tokens: int, argument: str = "input_ids") -> None:
        """Refuse texts of more tokens than the backbone has positions, those of soft tokens before them included.

        Beyond them some models fail in the midst of a sum, and others say something that they never learned to say.

        Args:
            num_tokens: Of the longest text.
            argument: Whose texts they are, for the error.

        Raises:
            ModelInputError: There are more.
        """
        # XLNet says -1: its positions are relative.
        positions: int = getattr(self.config.get_text_config(), "max_position_embeddings", None) or -1
        if 0 < positions < num_tokens + self.num_soft_tokens:
            raise ModelInputError(
                argument,
                expected=f"texts of at most {positions - self.num_soft_tokens} tokens, for which "
                f"{type(self.backbone).__name__} has positions",
                received=f"{num_tokens} tokens",
                remedy="Shorten prompts and texts, or take a backbone that reads longer ones.",
            )

    def labeled_logits(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        positions: Tensor,
        climate: ClimateTokens,
        climate_index: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Compute logits at some positions; below `prefix_site` there is no graph, or nothing runs.

        Args:
            input_ids: [N, S].
            attention_mask: [N, S].
            positions: [N, S] bool, P of them true.
            climate: B windows.
            climate_index: As of `forward`.
            **kwargs: As of `forward`.

        Returns:
            [P, V], in row-major order.

        Raises:
            ModelInputError: States are stored, and the texts are not whole ones.
        """
        return self._labeled(input_ids, attention_mask, positions, climate, climate_index, **kwargs)

    def _labeled(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        positions: Tensor,
        climate: ClimateTokens,
        climate_index: Tensor | None,
        *,
        head: bool = True,
        **kwargs: Any,
    ) -> Tensor:
        """`labeled_logits`, or without the head what would enter it, [P, D]."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        first = self.prefix_site
        index = (
            climate_index
            if climate_index is not None
            else torch.arange(len(input_ids), device=input_ids.device)
        )
        store = self.prefix_store if self._any_block_below else None  # else there is nothing to reuse
        if store is not None and kwargs.keys() & {"position_ids", "past_key_values"}:
            raise ModelInputError(
                ", ".join(sorted(kwargs)),
                expected="whole texts from their first position on, whose states are stored",
                received="positions or a cache of the caller's own",
                remedy="Leave these arguments out, or set prefix_store to None.",
            )
        if store is not None and store.site != first:
            raise ModelInputError(
                "prefix_store.site",
                expected=f"{first!r}, up to which states depend on the text and frozen weights alone",
                received=repr(store.site),
                remedy="Make it with PrefixStore(model.backbone, model.prefix_site).",
            )
        if first == "output":
            # Nothing follows but the head, position by position: only labeled ones need be fused.
            if store is not None:
                states = store.lookup(input_ids, attention_mask)[positions]
            else:
                states = prefix_states(
                    self.backbone, first, input_ids=input_ids, attention_mask=attention_mask, **kwargs
                )[positions]  # [P, D]
            rows = index.unsqueeze(1).expand_as(positions)[positions]  # [P]
            fused = fuse_flat(cast("Fusion", self.fusions["output"]), states, climate, rows)
            return head_logits(self.backbone, fused) if head else fused
        reuse = (
            contextlib.nullcontext()
            if store is None
            else resume(self.backbone, first, store.lookup(input_ids, attention_mask))
        )
        with (
            reuse,
            self._fused(climate, climate_index),
            contextlib.nullcontext() if head else headless(self.backbone) as entered,
            gather(self.backbone, positions),
        ):
            output = self.backbone(
                input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **kwargs
            )
        found: Tensor = output.logits if entered is None else entered[0]
        return found.squeeze(0)  # not [0], whose gradient is made of zeros first, and then copied there

    def _fused(
        self, climate: ClimateTokens, index: Tensor | None
    ) -> contextlib.AbstractContextManager[object]:
        """Let the backbone's forward calls read climate; index as for `fuse_rows`."""
        if not self.num_soft_tokens:
            return attach(self.backbone, list(self.sites), fuse_rows(self.fusions, climate, index))
        fusion = cast("Fusion", self.fusions["input"])
        shape = (self.num_soft_tokens, fusion.hidden_size)
        places = torch.full(shape, self.word_size, dtype=self.backbone.dtype, device=self.backbone.device)
        return soft_prompt(self.backbone, self.num_soft_tokens, prompt_rows(fusion, climate, index, places))

    @torch.no_grad()
    def likely_tokens(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, count: int) -> Tensor:
        """Find what the bare backbone would say at labeled positions, for a `SampledVocabulary`.

        Args:
            input_ids: [N, S], padded on the right.
            attention_mask: [N, S].
            labels: [N, S].
            count: How many tokens a position.

        Returns:
            [P, count] tokens.
        """
        positions, _ = labeled_positions(labels)
        store = self.prefix_store if self._any_block_below else None
        if store is not None and store.site == "output":
            states = store.lookup(input_ids, attention_mask)
        else:
            reuse = (
                contextlib.nullcontext()
                if store is None
                else resume(self.backbone, store.site, store.lookup(input_ids, attention_mask))
            )
            with without_adapters(self.backbone), reuse:
                states = prefix_states(
                    self.backbone, "output", input_ids=input_ids, attention_mask=attention_mask
                )
        return head_logits(self.backbone, states[positions]).topk(count, dim=-1).indices

    @contextlib.contextmanager
    def conditioned(self, climate: ClimateTokens) -> Iterator[PreTrainedModel]:
        """Let the backbone itself read climate: while this lasts, it is fused in each of its forward calls.

        For whatever works with a causal language model of transformers. Row n of a call reads row n of the
        climate; a call with a multiple of its rows (beams, several answers) reads each row as often. What the
        fusions make of the climate alone is kept meanwhile, so their weights must not change.
        """
        with self._fused(replace(climate, memory={}), None), self._own_generation():
            yield self.backbone

    @contextlib.contextmanager
    def _own_generation(self) -> Iterator[None]:
        """Let the backbone generate as this model is set to."""
        before = self.backbone.generation_config
        self.backbone.generation_config = self.generation_config
        try:
            yield
        finally:
            self.backbone.generation_config = before

    @contextlib.contextmanager
    def watched(self, function: Callable[[Site, Tensor], Tensor]) -> Iterator[PreTrainedModel]:
        """Let a function of (site, hidden states) stand in the fusions' places while this lasts."""
        with attach(self.backbone, list(self.sites), function):
            yield self.backbone

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        climate_fields: Tensor | None = None,
        climate_mask: Tensor | None = None,
        climate_latitude: Tensor | None = None,
        climate_longitude: Tensor | None = None,
        climate_time: Tensor | None = None,
        climate_index: Tensor | None = None,
        climate_states: Tensor | None = None,
        climate_states_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Generate text about climate; the climate is encoded once.

        Args:
            input_ids: [N, S] prompts, padded on the left where their lengths differ.
            attention_mask: [N, S].
            climate_fields: As of `forward`, like the other climate arguments.
            climate_mask: See `forward`.
            climate_latitude: See `forward`.
            climate_longitude: See `forward`.
            climate_time: See `forward`.
            climate_index: See `forward`.
            climate_states: See `forward`.
            climate_states_mask: See `forward`.
            **kwargs: As of `generate` of transformers: `max_new_tokens`, `num_beams`, `do_sample`, ….

        Returns:
            What the backbone's `generate` returns: [N, S + new] token numbers, or a dictionary.

        Raises:
            ModelInputError: Text and climate do not fit together.
        """
        climate = self._climate(
            climate_states,
            climate_states_mask,
            climate_fields,
            climate_mask,
            climate_latitude,
            climate_longitude,
            climate_time,
        )
        check_rows(len(input_ids), len(climate.states), climate_index)
        self.check_length(input_ids.shape[1])
        if climate_index is not None:
            climate = select_rows(climate, climate_index)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        with self.conditioned(climate) as backbone, dense_input(backbone):
            return cast("Any", backbone).generate(
                input_ids=input_ids, attention_mask=attention_mask, **kwargs
            )


def _own_backbone(model: PreTrainedModel, config: ClimateTextConfig) -> PreTrainedModel:
    """The backbone with what is trained in it; the given one where nothing is."""
    if config.lora is not None and config.backbone_trainable is not None:
        raise ConfigurationError(
            "backbone.trainable",
            expected="either adapters (backbone.lora) or weights of the language model to train",
            received="both",
            remedy="Set one of them to null.",
        )
    if config.backbone_trainable is not None:
        return with_trained_weights(model, config.backbone_trainable)
    return model if config.lora is None else with_lora(model, config.lora)


def _prefix_site(first: Site, trained: Site | None, num_blocks: int) -> Site:
    """The lower of the first fusion's site and the first trained or adapted block."""
    if trained is None or num_blocks_below(first, num_blocks) <= num_blocks_below(trained, num_blocks):
        return first
    return trained


def _name(registry: Registry, part: Any) -> str:
    """Name of a part for the configuration: the registered one, else where it is defined, for the reader."""
    try:
        return registry.name_of(part)
    except (ConfigurationError, AttributeError):  # a function, or a class that loading must be given again
        return f"{part.__module__}:{getattr(part, '__qualname__', type(part).__qualname__)}"


def _num_soft_tokens(fusions: nn.ModuleDict, sites: tuple[Site, ...]) -> int:
    """How many states stand before each text; refuse a fusion that makes such states anywhere but at the input."""
    length = max(cast("Fusion", fusion).num_soft_tokens for fusion in fusions.values())
    if length and sites != ("input",):
        raise ConfigurationError(
            "sites",
            expected="input, for a fusion whose states stand before the text",
            received=", ".join(map(str, sites)),
            remedy="Set fusion.sites: input (from Python sites='input'), or choose another fusion.",
        )
    return length


def _check_channels(encoder: ClimateEncoder, config: ClimateTextConfig) -> None:
    """Refuse an encoder whose channels or units are not those of the statistics."""
    expected = config.channels()
    if encoder.channels != expected:
        raise ConfigurationError(
            "encoder.channels",
            expected=f"those of the statistics, {expected}",
            received=str(encoder.channels),
            remedy="Make the encoder with channels_of(statistics).",
        )


AutoModelForCausalLM.register(ClimateTextConfig, ClimateTextForCausalLM)
