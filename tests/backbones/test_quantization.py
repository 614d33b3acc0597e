"""Quantized layers against plain ones: what they hold, what they make, what they let through, what they take."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from climafuse.backbones import (
    QuantizedLinear,
    attach,
    compact_linear,
    find_blocks,
    gather,
    hash_parameters,
    load_backbone,
    prefix_states,
    quantize_model,
    resume,
)
from climafuse.backbones.compact_linear import buffer_bytes
from climafuse.backbones.head import head_logits, narrowed
from climafuse.backbones.mapped_files import MappedFiles
from climafuse.backbones.quantization import stored_bytes
from climafuse.errors import BackboneError, ConfigurationError
from tests.tiny import ARCHITECTURES, tiny_model, tiny_tokenizer

KINDS = ("int8", "int4")
SHAPES = ((64, 96), (7, 33), (3, 64), (101, 40), (1, 1))


def _weight(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows))


def _by_hand(weight: torch.Tensor, kind: str) -> torch.Tensor:
    """The weights that the definitions in the module's docstring give, one by one."""
    back = torch.empty_like(weight)
    for n, row in enumerate(weight.tolist()):
        if kind == "int8":
            scale = max(map(abs, row)) / 127
            back[n] = torch.tensor([round(w / scale) * scale for w in row])
            continue
        for start in range(0, len(row), 32):
            group = row[start : start + 32]
            low = torch.tensor(min(group)).bfloat16().item()
            step = torch.tensor((max(group) - min(group)) / 15).bfloat16().item()
            back[n, start : start + 32] = torch.tensor(
                [min(max(round((w - low) / step), 0), 15) * step + low if step else low for w in group]
            )
    return back


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_it_multiplies_by_the_weights_of_its_definition(kind, shape):
    weight, bias = _weight(*shape), torch.randn(shape[0])
    layer = QuantizedLinear(weight, bias, kind)
    held = _by_hand(weight, kind)
    numbers = torch.arange(shape[0]).flip(0)
    torch.testing.assert_close(layer.rows(numbers, torch.float32), held.flip(0), atol=1e-6, rtol=1e-5)
    x = torch.randn(2, 5, shape[1], requires_grad=True)
    grad = torch.randn(2, 5, shape[0])
    out = layer(x)
    out.backward(grad)
    torch.testing.assert_close(out, functional.linear(x.detach(), held, bias), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(x.grad, grad @ held, atol=1e-4, rtol=1e-4)
    assert layer.weight.grad is None
    assert not any(parameter.requires_grad for parameter in layer.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_the_rows_make_the_whole(kind, monkeypatch):
    """Where a matrix is turned back in many parts, the last of them smaller."""
    weight = _weight(101, 64)
    layer = QuantizedLinear(weight, None, kind)
    x = torch.randn(3, 64, requires_grad=True)
    whole = layer(x)
    (whole_grad,) = torch.autograd.grad(whole.square().sum(), x)
    monkeypatch.setitem(compact_linear.CHUNK_BYTES, "cpu", 9 * 64 * 4)
    parts = layer(x)
    (parts_grad,) = torch.autograd.grad(parts.square().sum(), x)
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(parts_grad, whole_grad, atol=1e-3, rtol=1e-5)
    again = QuantizedLinear(weight, None, kind)  # made in parts, too
    assert torch.equal(again.weight, layer.weight)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_were_read_are_let_go_of_before_the_next(kind, monkeypatch):
    """Each once, ten at a time, and none that is read later: what is let go of is overwritten here."""
    monkeypatch.setattr("climafuse.backbones.quantization._QUANTIZED_AT_ONCE", 10 * 64 * 4)
    whole, weight = _weight(101, 64), _weight(101, 64)
    gone: list[int] = []

    def let_go(rows: torch.Tensor) -> None:
        gone.extend(range(rows.storage_offset() // 64, rows.storage_offset() // 64 + len(rows)))
        assert len(rows) <= 10
        rows.fill_(float("nan"))

    layer, expected = QuantizedLinear(weight, None, kind, let_go), QuantizedLinear(whole, None, kind)
    assert sorted(gone) == list(range(101))
    assert torch.equal(layer.weight, expected.weight)
    assert torch.equal(layer.scale, expected.scale)


@pytest.mark.parametrize("kind", KINDS)
def test_it_takes_what_is_foretold(kind):
    for shape in SHAPES:
        layer = QuantizedLinear(_weight(*shape), None, kind)
        tensors = [layer.weight, layer.scale, *([] if layer.minimum is None else [layer.minimum])]
        assert sum(tensor.nbytes for tensor in tensors) == stored_bytes(*shape, kind)
    assert stored_bytes(4096, 4096, "int8") == 4096 * 4096 + 4 * 4096
    assert stored_bytes(4096, 4096, "int4") == 4096 * 4096 * 5 // 8
    assert buffer_bytes(14_336, 4096) == 512 * 4096 * 2
    assert buffer_bytes(100, 4096) == 100 * 4096 * 2


@pytest.mark.parametrize("kind", KINDS)
def test_the_type_of_the_activations_is_that_of_the_product(kind):
    layer = QuantizedLinear(_weight(64, 96), torch.randn(64), kind)
    exact = layer(x := torch.randn(4, 96))
    for dtype in (torch.bfloat16, torch.float16):
        assert layer(x.to(dtype)).dtype == dtype
        assert (layer(x.to(dtype)).float() - exact).norm() / exact.norm() < 0.02
    with torch.autocast("cpu", torch.bfloat16):
        inside = layer(x.requires_grad_())
    assert inside.dtype == torch.bfloat16
    inside.float().sum().backward()
    assert x.grad.dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_float16_that_is_native_neither_overflows_nor_underflows(kind, monkeypatch):
    """A sum of q alone would exceed 65,504, and a gradient times s fall below what float16 holds."""
    monkeypatch.setattr(compact_linear, "product_dtype", lambda dtype, device: dtype)  # as on a GPU
    weight = 0.02 * torch.randn(8, 4096)
    layer = QuantizedLinear(weight, None, kind)
    x = (8 * weight[:1].sign()).half().requires_grad_()
    found = layer(x)
    exact = x.detach().float() @ weight.t()
    assert exact.max() > 65_504 * 0.02 * 3 / 127  # what overflows, if q is summed as it is
    torch.testing.assert_close(found.float(), exact, atol=0.02 * exact.max().item(), rtol=0)
    (found * 1e-4).float().sum().backward()
    back = 1e-4 * weight.sum(0, keepdim=True)
    assert (x.grad.float() - back).norm() / back.norm() < (0.03 if kind == "int8" else 0.2)


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_after_it_was_asked_in_inference_mode(kind, monkeypatch):
    """What is kept between products must not be bound to the mode in which it was made."""
    import threading

    monkeypatch.setattr(compact_linear, "_local", threading.local())  # nothing kept yet
    layer = QuantizedLinear(_weight(64, 96), None, kind)
    with torch.inference_mode():
        layer(torch.randn(2, 96))
    x = torch.randn(2, 96, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.norm() > 0


def _replaced_by_hand(model):
    """The same model with plain layers that hold the weights the quantized ones stand for."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, QuantizedLinear):
                plain = nn.Linear(child.in_features, child.out_features, bias=child.bias is not None)
                plain.weight.data = child.rows(torch.arange(child.out_features), torch.float32)
                if child.bias is not None:
                    plain.bias.data = child.bias.data
                setattr(module, name, plain)
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.sampled(3)
def test_a_model_of_each_family(architecture, kind):
    """Every matrix of blocks and head is small, and all that is done to blocks works as with plain ones."""
    model = tiny_model(architecture).requires_grad_(False)
    told = []
    quantize_model(model, kind, head=True, progress=lambda done, total: told.append((done, total)))
    layout = find_blocks(model)
    assert isinstance(layout.head, QuantizedLinear)
    assert not any(isinstance(m, Conv1D) or type(m) is nn.Linear for m in layout.blocks.modules())
    assert told[-1] == (len(told), len(told))
    plain = _replaced_by_hand(tiny := _copy(model))
    assert not any(isinstance(module, QuantizedLinear) for module in tiny.modules())
    ids = torch.arange(5, 25)[None]
    site = layout.num_blocks - 1
    results = []
    for one in (model, plain):
        shift = torch.zeros(1, 20, 32, requires_grad=True)
        with attach(one, site, lambda site, hidden, shift=shift: hidden + shift):
            logits = one(input_ids=ids).logits
        logits.square().sum().backward()
        states = prefix_states(one, site, input_ids=ids)
        with resume(one, site, states), gather(one, torch.ones(1, 20, dtype=torch.bool)):
            resumed = one(input_ids=ids, use_cache=False).logits[0]
        tokens = torch.tensor([3, 1, 300])
        with narrowed(one, tokens):
            few = one(input_ids=ids).logits
        at_output = head_logits(one, prefix_states(one, "output", input_ids=ids)[0])
        torch.testing.assert_close(few, logits[..., tokens], atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(at_output, logits[0], atol=1e-3, rtol=1e-3)
        results.append((logits, shift.grad, resumed))
    for quantized, by_hand in zip(*results, strict=True):
        torch.testing.assert_close(quantized, by_hand, atol=2e-3, rtol=2e-3)


def _copy(model):
    import copy

    return copy.deepcopy(model)


def test_the_head_keeps_the_embeddings_it_shares_weights_with():
    model = tiny_model("llama")
    embeddings = model.get_input_embeddings().weight.clone()
    quantize_model(model, "int4", head=True)
    assert torch.equal(model.get_input_embeddings().weight, embeddings)
    assert isinstance(model.get_output_embeddings(), QuantizedLinear)


def test_the_hash_of_frozen_weights_covers_numbers_scales_and_minima():
    model = tiny_model("llama")
    quantize_model(model, "int4")
    before = hash_parameters(model)
    layer = model.model.layers[2].mlp.up_proj
    for tensor in (layer.weight, layer.scale, layer.minimum):
        kept = tensor.data[0, 0].clone()
        tensor.data[0, 0] += 1
        assert hash_parameters(model) != before
        tensor.data[0, 0] = kept
    assert hash_parameters(model) == before


# --- loading


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_a_backbone_is_quantized_while_it_loads(stored, tmp_path):
    tiny_model("llama", dtype=stored).save_pretrained(tmp_path / "m")
    tiny_tokenizer().save_pretrained(tmp_path / "m")
    plain = load_backbone(tmp_path / "m", dtype="float32")
    small = load_backbone(tmp_path / "m", quantization="int8", quantize_head=True)
    assert small.identity == plain.identity  # the same weights, held otherwise
    assert (small.quantization, small.quantize_head, plain.quantization) == ("int8", True, None)
    assert small.model.dtype == torch.bfloat16
    layer = small.model.model.layers[1].self_attn.k_proj
    # Of the weights as they lie in the file, not of what another type makes of them.
    assert torch.equal(
        layer.weight,
        QuantizedLinear(
            tiny_model(dtype=stored).model.layers[1].self_attn.k_proj.weight, None, "int8"
        ).weight,
    )
    ids = torch.arange(5, 25)[None]
    one, other = (model(input_ids=ids).logits.float() for model in (small.model, plain.model))
    assert torch.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.99
    assert load_backbone(tmp_path / "m").quantization is None


def test_what_is_wrong_is_said(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "m")
    tiny_tokenizer().save_pretrained(tmp_path / "m")
    with pytest.raises(ConfigurationError, match="int8 or int4"):
        load_backbone(tmp_path / "m", quantization="int3")
    with pytest.raises(ConfigurationError, match="quantize_head"):
        load_backbone(tmp_path / "m", quantize_head=True)
    model = tiny_model("llama")
    for block in model.model.layers:
        block.mlp.gate_proj.weight.requires_grad_(False)
        block.experts = nn.Parameter(torch.zeros(10, 100, 100))  # as mixtures of experts keep them
    with pytest.raises(BackboneError, match="blocks of linear layers"):
        quantize_model(model, "int8")
    assert type(model.model.layers[0].mlp.up_proj) is nn.Linear  # unchanged


def _resident(kind: str) -> int:
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(kind))


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_are_not_finite_are_refused(kind, value):
    for row in (0, 6):  # int4 keeps both halves of the rows in the same bytes
        weight = _weight(7, 33)
        weight[row, 32] = value
        with pytest.raises(
            BackboneError, match=rf"^weight: expected finite .* in 1 of 7 rows, the first {row}\."
        ):
            QuantizedLinear(weight, None, kind)


@pytest.mark.parametrize("head", [False, True])
def test_the_matrix_that_is_not_finite_is_named(head):
    model = tiny_model()
    name = "lm_head.weight" if head else "model.layers.1.mlp.up_proj.weight"
    model.get_parameter(name).data[3, 4] = float("nan")
    with pytest.raises(BackboneError, match=rf"^{name}: expected finite weights"):
        quantize_model(model, "int8", head=head)


@pytest.mark.skipif(not __import__("sys").platform.startswith("linux"), reason="reads /proc")
def test_pages_of_a_file_are_let_go_of_and_come_back(tmp_path):
    from safetensors.torch import load_file, save_file

    save_file({"w": torch.arange(8_000_000, dtype=torch.float32)}, tmp_path / "w.safetensors")
    weight = load_file(tmp_path / "w.safetensors")["w"]
    before = _resident("RssFile")
    assert weight.sum() > 0
    assert _resident("RssFile") - before > 30_000_000
    MappedFiles().let_go(weight)
    assert _resident("RssFile") - before < 2_000_000
    assert torch.equal(weight, torch.arange(8_000_000, dtype=torch.float32))
    own = torch.ones(1_000_000)  # not from a file: to let go of it would lose it
    MappedFiles().let_go(own)
    assert own.sum() == 1_000_000


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_learn_on_quantized_layers(kind):
    """LoRA in 8 or 4 bits: untrained adapters change nothing, and all get a gradient."""
    from climafuse.backbones import with_lora

    model = tiny_model("llama").requires_grad_(False)
    quantize_model(model, kind, head=True)
    adapted = with_lora(model, {"rank": 4})
    ids = torch.arange(5, 25)[None]
    assert torch.equal(adapted(input_ids=ids).logits, model(input_ids=ids).logits)
    adapters = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    assert len(adapters) == 4 * 7 * 2
    adapted(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad.norm() > 0 for name, p in adapters.items() if ".lora_B." in name)
    assert hash_parameters(adapted) == hash_parameters(model)


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "head", "least"), [("int8", False, 0.99), ("int4", False, 0.95), ("int4", True, 0.95)]
)
def test_gradients_through_the_real_backbone_are_those_of_bfloat16(kind, head, least):
    """At the states that enter block 0, summed over texts of the kind that models are trained on."""
    texts = (
        "What is the mean temperature in Paris? The mean temperature is -8.4 °C.",
        "How strong is the wind? 7.2 m/s, from the northwest.",
        "What is the lowest pressure? It is 987.3 hPa, in the south of the box.",
        "Is the north warmer than the south? No, the south is warmer by 4.1 K.",
    )
    gradients = []
    for quantization in (None, kind):
        loaded = load_backbone(quantization=quantization, quantize_head=head and quantization is not None)
        for text in texts:
            ids = loaded.tokenizer(text, return_tensors="pt")["input_ids"]
            shift = torch.zeros(1, ids.shape[1], loaded.model.config.hidden_size, requires_grad=True)
            with attach(loaded.model, "input", lambda _, hidden, shift=shift: hidden + shift.to(hidden)):
                loaded.model(input_ids=ids, labels=ids).loss.backward()
            gradients.append(shift.grad.flatten())
    plain, small = torch.cat(gradients[: len(texts)]), torch.cat(gradients[len(texts) :])
    cosine = torch.cosine_similarity(plain, small, dim=0).item()
    print(f"{kind}, head {head}: cosine {cosine:.4f}")
    assert cosine >= least
