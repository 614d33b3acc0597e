"""Where a language model keeps its blocks, and how a function is attached between them.

A *site* is a place in the stream of hidden states [B, S, D]:

- `"input"`: the embeddings, as they enter block 0;
- a block's number k: the hidden states that enter block k (0 is the same place as `"input"`);
- `"output"`: what enters the LM head, after the final norm.

`attach` lets a function replace the hidden states at sites. `prefix_states` computes the states that reach a
site without running what lies above it, and `resume` continues from such states without running what lies
below. `gather` lets the head see only some positions. All of them go through the model's own forward call, so
embeddings, masks, positions, scaling and capping of logits stay the model's business, and all leave no trace
when they end.

Within one forward call the order is: `resume`, then `attach`, then `gather`, however they were nested.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from ..errors import BackboneError, ConfigurationError, ModelInputError

if TYPE_CHECKING:
    from types import TracebackType

    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedModel

Site = int | Literal["input", "output"]
SiteFunction = Callable[[Site, Tensor], Tensor]


# --- finding


@dataclass(frozen=True)
class BlockLayout:
    """Where a causal language model keeps what climafuse attaches to.

    Attributes:
        path: Name of the list of blocks inside the model, such as `model.layers`.
        blocks: The blocks, in order.
        head: The module that turns hidden states into logits.
        hidden_size: Width D of the hidden states between blocks.
    """

    path: str
    blocks: nn.ModuleList
    head: nn.Module
    hidden_size: int

    @property
    def num_blocks(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    def width(self, site: Site) -> int:
        """Return the width D of the hidden states at a site; OPT-350M is narrower at the output."""
        if site != "output":
            return self.hidden_size
        weight = self.head.weight  # [V, D]
        assert isinstance(weight, Tensor)
        return int(weight.shape[1])

    def entrance(self, site: Site) -> nn.Module:
        """Return the module that the hidden states enter at a site."""
        if site == "output":
            return self.head
        return self.blocks[0 if site == "input" else site]


# Of each model, while it lives: to walk through all modules of a model takes as long as some of its blocks.
_LAYOUTS: weakref.WeakKeyDictionary[nn.Module, BlockLayout] = weakref.WeakKeyDictionary()


def find_blocks(model: PreTrainedModel) -> BlockLayout:
    """Find the blocks of a causal language model: the one ModuleList as long as `num_hidden_layers`.

    Args:
        model: Any causal language model of transformers.

    Raises:
        BackboneError: There is no such list or more than one, or the model has no head.
    """
    found = _LAYOUTS.get(model)
    if found is None or not _still_there(model, found):
        found = _LAYOUTS[model] = _search(model)
    return found


def _still_there(model: PreTrainedModel, layout: BlockLayout) -> bool:
    try:
        blocks = model.get_submodule(layout.path)
    except AttributeError:
        return False
    return blocks is layout.blocks and model.get_output_embeddings() is layout.head


def _search(model: PreTrainedModel) -> BlockLayout:
    config = model.config.get_text_config()
    num_blocks = getattr(config, "num_hidden_layers", None)
    found: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        nested = any(name.startswith(f"{outer}.") for outer in found)  # a block may hold lists of its own
        if isinstance(module, nn.ModuleList) and len(module) == num_blocks and not nested:
            found[name] = module
    if len(found) != 1:
        raise BackboneError(
            type(model).__name__,
            expected=f"one list of num_hidden_layers = {num_blocks} blocks",
            received=f"{len(found)}: {', '.join(found)}" if found else "none",
            remedy="Use a decoder-only model of transformers; this one keeps its blocks in another way.",
        )
    head = model.get_output_embeddings()
    if head is None:
        raise BackboneError(
            type(model).__name__,
            expected="a causal language model with a head",
            received="a model without output embeddings",
            remedy="Load it with AutoModelForCausalLM.",
        )
    path, blocks = next(iter(found.items()))
    return BlockLayout(path, blocks, head, int(config.hidden_size))


def resolve_sites(sites: object, num_blocks: int) -> tuple[Site, ...]:
    """Translate the ways to write sites into their places, from input to output.

    Args:
        sites: `"input"`, `"output"`, a block's number (negative counts from the end), `{"last": n}` (the last
            n
            blocks), `{"every": n}` (blocks 0, n, 2n, …), or a list of these.
        num_blocks: Number of blocks of the model.

    Returns:
        The sites in the order in which the hidden states pass them.

    Raises:
        ConfigurationError: A site is unknown, outside the model, named twice, or there is none.
    """
    parts = list(sites) if isinstance(sites, Sequence) and not isinstance(sites, str) else [sites]
    resolved = [site for part in parts for site in _resolve_part(part, num_blocks)]
    resolved.sort(key=lambda site: _depth(site, num_blocks))
    if not resolved:
        raise _wrong_sites("at least one site", repr(sites))
    depths = [_depth(site, num_blocks) for site in resolved]
    for site, depth in zip(resolved, depths, strict=True):
        if depths.count(depth) > 1:
            raise _wrong_sites(
                "every site once ('input' and block 0 are one place)", f"{site!r} more than once in {sites!r}"
            )
    return tuple(resolved)


def num_blocks_below(site: Site, num_blocks: int) -> int:
    """Return how many blocks the hidden states have passed before a site: none at the input."""
    return num_blocks if site == "output" else 0 if site == "input" else site


def _depth(site: Site, num_blocks: int) -> int:
    """Order sites; the output lies above the last block's entrance and is no block."""
    return num_blocks_below(site, num_blocks)


def _resolve_part(part: object, num_blocks: int) -> list[Site]:
    if part == "input" or part == "output":
        return [part]
    if isinstance(part, int) and not isinstance(part, bool):
        if not -num_blocks <= part < num_blocks:
            raise _wrong_sites(f"blocks from {-num_blocks} to {num_blocks - 1}", str(part))
        return [part % num_blocks]
    if isinstance(part, Mapping) and len(part) == 1:
        (key, number), *_ = part.items()
        if key in ("last", "every"):
            if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= num_blocks:
                raise _wrong_sites(f"{key}: a number from 1 to {num_blocks}", repr(number))
            return list(
                range(num_blocks - number, num_blocks) if key == "last" else range(0, num_blocks, number)
            )
    raise _wrong_sites(
        "'input', 'output', block numbers, {'last': n}, {'every': n}, or a list of these", repr(part)
    )


def _wrong_sites(expected: str, received: str) -> ConfigurationError:
    return ConfigurationError(
        "sites", expected=expected, received=received, remedy="Correct the sites of the fusion."
    )


# --- attaching


class Attachment:
    """A function attached to sites of a model, until `remove()` or the end of a `with` block.

    Made by `attach`.
    """

    def __init__(self, model: PreTrainedModel, sites: tuple[Site, ...], function: SiteFunction) -> None:
        layout = find_blocks(model)
        self.sites = sites
        self._function = function
        self._passed: set[Site] = set()
        self._handles: list[RemovableHandle] = []
        try:
            for site in sites:
                entrance = layout.entrance(site)
                if isinstance(vars(entrance).get("forward"), _PassThrough):
                    raise _below_resume(site)
                self._handles.append(
                    entrance.register_forward_pre_hook(_SiteHook(self, site), with_kwargs=True)
                )
            self._handles.append(model.register_forward_pre_hook(self._start))
            self._handles.append(model.register_forward_hook(self._finish))
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Detach the function; the model is as it was before."""
        while self._handles:
            self._handles.pop().remove()

    def __enter__(self) -> Attachment:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def _apply(self, site: Site, hidden: Tensor) -> Tensor:
        self._passed.add(site)
        fused = self._function(site, hidden)
        if fused.shape != hidden.shape or fused.dtype != hidden.dtype:
            raise ModelInputError(
                f"hidden states at site {site!r}",
                expected=f"a function that keeps shape {tuple(hidden.shape)} and type {hidden.dtype}",
                received=f"{tuple(fused.shape)}, {fused.dtype}",
                remedy="Return hidden states of the backbone's shape and type.",
            )
        return fused

    def _start(self, model: nn.Module, args: object) -> None:
        self._passed.clear()

    def _finish(self, model: nn.Module, args: object, output: object) -> None:
        # A function that is never called would leave the bare language model, which looks like success.
        missed = [site for site in self.sites if site not in self._passed]
        if missed:
            raise BackboneError(
                type(model).__name__,
                expected="hidden states passing every site in a forward call",
                received=f"none at {missed}",
                remedy="This architecture does not call its blocks or head as modules; choose other sites.",
            )


def attach(model: PreTrainedModel, sites: object, function: SiteFunction) -> Attachment:
    """Let a function replace the hidden states at sites in every forward call.

    Args:
        model: A causal language model.
        sites: As for `resolve_sites`.
        function: Called as `function(site, hidden [B, S, D])`, returns hidden states of the same shape and
            type.
            While text is generated it sees one position a step.

    Returns:
        A handle: `remove()` detaches the function, and so does the end of a `with` block.

    Raises:
        ConfigurationError: The sites are malformed or outside the model.
        BackboneError: The model's blocks or head are not found.
    """
    return Attachment(model, resolve_sites(sites, find_blocks(model).num_blocks), function)


class _SiteHook:
    """Pre-hook of the module at a site; a class so that `resume` can recognize it."""

    def __init__(self, attachment: Attachment, site: Site) -> None:
        self.attachment = attachment
        self.site = site

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden = _hidden(args, kwargs)
        return _replace_hidden(args, kwargs, self.attachment._apply(self.site, hidden))


def _hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return the hidden states among a block's or head's arguments: first, or named."""
    hidden = args[0] if args else kwargs.get("hidden_states", kwargs.get("input"))
    if not isinstance(hidden, Tensor):
        raise BackboneError(
            "backbone",
            expected="blocks that take hidden states first or as hidden_states",
            received=type(hidden).__name__,
            remedy="Use a decoder-only model of transformers; this one calls its blocks in another way.",
        )
    return hidden


def _replace_hidden(
    args: tuple[Any, ...], kwargs: dict[str, Any], hidden: Tensor
) -> tuple[Any, dict[str, Any]]:
    if args:
        return (hidden, *args[1:]), kwargs
    name = "hidden_states" if "hidden_states" in kwargs else "input"
    return args, {**kwargs, name: hidden}


# --- stopping at a site, resuming from it


class _ReachedSite(Exception):
    """Ends a forward call at a site; carries the hidden states there."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


@torch.no_grad()
def prefix_states(model: PreTrainedModel, site: Site, **inputs: Any) -> Tensor:
    """Compute the hidden states that reach a site; nothing above it runs, and no graph is kept.

    Args:
        model: A causal language model.
        site: Where to stop.
        **inputs: What the model takes: `input_ids`, `attention_mask`, `past_key_values`, …

    Returns:
        Hidden states [B, S, D].

    Raises:
        ModelInputError: A function is attached below the site: the states would depend on more than the text.
    """
    layout = find_blocks(model)
    (site,) = resolve_sites(site, layout.num_blocks)
    _check_nothing_attached_below(layout, site)

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _ReachedSite(_hidden(args, kwargs))

    # First of all hooks, so that a function attached at this very site does not run.
    handle = layout.entrance(site).register_forward_pre_hook(stop, with_kwargs=True, prepend=True)
    try:
        model(**inputs, use_cache=False)
    except _ReachedSite as reached:
        return reached.hidden
    finally:
        handle.remove()
    raise BackboneError(
        type(model).__name__,
        expected=f"hidden states passing site {site!r}",
        received="a forward call that never went there",
        remedy="This architecture does not call its blocks or head as modules; choose another site.",
    )


@contextlib.contextmanager
def resume(model: PreTrainedModel, site: Site, states: Tensor) -> Iterator[None]:
    """Continue from stored hidden states: while this lasts, no block below the site runs.

    The model is called as usual, with the `input_ids` and `attention_mask` that the states were computed from
    (they give masks and positions) and `use_cache=False`. Where shapes and arithmetic are those of the full
    run, the result equals it bit for bit. Within autocast, which has some layers answer in float32, states are taken in
    the type that is expected where they enter.

    Args:
        model: A causal language model.
        site: The site that the states reached.
        states: Hidden states [B, S, D] from `prefix_states`.

    Raises:
        ModelInputError: A function is attached below the site (it would be ignored), or the states do not fit
            the
            input.
    """
    layout = find_blocks(model)
    (site,) = resolve_sites(site, layout.num_blocks)
    _check_nothing_attached_below(layout, site)

    def replace(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        arriving = _hidden(args, kwargs)
        types = arriving.dtype, states.dtype
        if arriving.shape != states.shape or (
            types[0] != types[1] and not torch.is_autocast_enabled(states.device.type)
        ):
            raise ModelInputError(
                "states",
                expected=f"hidden states of the input, {tuple(arriving.shape)} {arriving.dtype}",
                received=f"{tuple(states.shape)} {states.dtype}",
                remedy="Resume with the states that were computed from this input and model.",
            )
        return _replace_hidden(args, kwargs, states.to(arriving.dtype))

    below = layout.blocks[: num_blocks_below(site, layout.num_blocks)]
    num_outputs = _num_block_outputs(model, layout) if len(below) else None
    with contextlib.ExitStack() as stack:
        for block in below:
            stack.enter_context(replaced_forward(block, _PassThrough(num_outputs)))
        # First of all hooks: a function attached at this site receives the stored states.
        handle = layout.entrance(site).register_forward_pre_hook(replace, with_kwargs=True, prepend=True)
        stack.callback(handle.remove)
        yield


class _PassThrough:
    """Forward of a block that is not run: hands the hidden states on, in the form of the block's output.

    Put in place of the block's forward rather than of the block, because some models read attributes off a
    block.
    """

    def __init__(self, num_outputs: int | None) -> None:
        self.num_outputs = num_outputs  # None: the block returns a tensor, else a tuple of so many

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        hidden = _hidden(args, kwargs)
        return hidden if self.num_outputs is None else (hidden, *[None] * (self.num_outputs - 1))


@contextlib.contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Give one module another forward for a while."""
    before = vars(module).get("forward")  # set where another library has wrapped this instance
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before


_NUM_OUTPUTS: weakref.WeakKeyDictionary[nn.ModuleList, int | None] = weakref.WeakKeyDictionary()


@torch.no_grad()
def _num_block_outputs(model: PreTrainedModel, layout: BlockLayout) -> int | None:
    """Learn what a block returns, a tensor (None) or a tuple of how many, by running block 0 on one token."""
    if layout.blocks not in _NUM_OUTPUTS:
        block = layout.blocks[0]
        original, returned = block.forward, []

        def observe(*args: Any, **kwargs: Any) -> Any:
            returned.append(original(*args, **kwargs))
            raise _ReachedSite(_hidden(args, kwargs))

        ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
        with replaced_forward(block, observe), contextlib.suppress(_ReachedSite):
            model(input_ids=ids, use_cache=False)
        output = returned[0]
        _NUM_OUTPUTS[layout.blocks] = None if isinstance(output, Tensor) else len(output)
    return _NUM_OUTPUTS[layout.blocks]


def _check_nothing_attached_below(layout: BlockLayout, site: Site) -> None:
    for block in layout.blocks[: num_blocks_below(site, layout.num_blocks)]:
        for hook in block._forward_pre_hooks.values():
            if isinstance(hook, _SiteHook):
                raise _below_resume(hook.site)


def _below_resume(site: Site) -> ModelInputError:
    return ModelInputError(
        "site",
        expected="stored states from at or below the first site with a function",
        received=f"a function at {site!r}, which lies below them",
        remedy="Store the states at the lowest site of the fusion.",
    )


# --- labeled positions


@contextlib.contextmanager
def gather(model: PreTrainedModel, positions: Tensor) -> Iterator[None]:
    """Let the head see only some positions: while this lasts, logits are [1, N, V], in row-major order.

    Args:
        model: A causal language model.
        positions: Which positions of the input, [B, S] bool, N of them true.

    Raises:
        ModelInputError: The positions do not fit the hidden states.
    """
    head = find_blocks(model).head
    forward = head.forward

    def gathered(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        if positions.dtype != torch.bool or positions.shape != hidden.shape[:-1]:
            raise ModelInputError(
                "positions",
                expected=f"a bool tensor of shape {tuple(hidden.shape[:-1])}",
                received=f"{positions.dtype} {tuple(positions.shape)}",
                remedy="Mark the positions of the same batch.",
            )
        return forward(hidden[positions].unsqueeze(0), *args, **kwargs)  # [1, N, D] -> [1, N, V]

    # Instead of its forward, not a hook: this runs after every hook, so after functions attached at the
    # output.
    with replaced_forward(head, gathered):
        yield
