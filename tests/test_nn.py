"""MultiheadAttention: state and results of torch.nn.MultiheadAttention, grouped heads."""

import pytest
import torch
from multihead import F64, NEAR, assert_same_with_gradients, pair
from torch import nn
from torch.testing import assert_close

from torch_ext.nn import MultiheadAttention

on_device = pytest.mark.usefixtures("on_device")


@on_device
@pytest.mark.parametrize("bias", [True, False])
def test_self_attention_agrees_with_torch_nn(bias: bool) -> None:
    theirs, ours = pair(bias=bias)
    x = torch.randn(2, 5, 12, dtype=F64, requires_grad=True)
    assert_same_with_gradients(ours(x), theirs(x, x, x)[0], [x])


@on_device
@pytest.mark.parametrize("sizes", [{}, {"kdim": 7, "vdim": 9}, {"kdim": 7}, {"vdim": 9}])
def test_cross_attention_agrees_with_torch_nn(sizes: dict[str, int]) -> None:
    theirs, ours = pair(**sizes)
    x = torch.randn(2, 5, 12, dtype=F64, requires_grad=True)
    key = torch.randn(2, 8, sizes.get("kdim", 12), dtype=F64, requires_grad=True)
    value = torch.randn(2, 8, sizes.get("vdim", 12), dtype=F64, requires_grad=True)
    assert_same_with_gradients(ours(x, key, value), theirs(x, key, value)[0], [x, key, value])


@on_device
def test_one_sequence_without_batch_agrees_with_torch_nn() -> None:
    theirs, ours = pair()
    x = torch.randn(5, 12, dtype=F64, requires_grad=True)
    assert_same_with_gradients(ours(x), theirs(x, x, x)[0], [x])


@on_device
def test_bool_masks_are_the_opposite_of_torch_nn() -> None:
    theirs, ours = pair()
    x = torch.randn(2, 5, 12, dtype=F64, requires_grad=True)
    hidden = torch.rand(5, 5) > 0.5
    padding = torch.tensor([[False] * 3 + [True] * 2, [False] * 5])
    hidden[:, 0] = False
    expected = theirs(x, x, x, attn_mask=hidden, key_padding_mask=padding)[0]
    assert_same_with_gradients(ours(x, mask=~hidden, key_mask=~padding), expected, [x])
    expected = theirs(x, x, x, key_padding_mask=padding)[0]
    assert_same_with_gradients(ours(x, key_mask=~padding), expected, [x])
    assert (ours(x, mask=hidden) - ours(x, mask=~hidden)).abs().max() > 1e-2


@on_device
def test_mask_for_each_head_agrees_with_torch_nn() -> None:
    theirs, ours = pair()
    x = torch.randn(2, 5, 12, dtype=F64, requires_grad=True)
    hidden = torch.rand(2, 3, 5, 5) > 0.5
    hidden[..., 0] = False
    expected = theirs(x, x, x, attn_mask=hidden.flatten(0, 1))[0]
    assert_same_with_gradients(ours(x, mask=~hidden), expected, [x])


@on_device
def test_float_mask_is_the_bias() -> None:
    theirs, ours = pair()
    x = torch.randn(2, 5, 12, dtype=F64, requires_grad=True)
    bias = torch.randn(5, 5, dtype=F64)
    bias[:, 3] = -torch.inf
    assert_same_with_gradients(ours(x, bias=bias), theirs(x, x, x, attn_mask=bias)[0], [x])


@on_device
def test_causal_agrees_with_torch_nn() -> None:
    theirs, ours = pair()
    x = torch.randn(2, 5, 12, dtype=F64, requires_grad=True)
    hidden = torch.ones(5, 5, dtype=torch.bool).triu(1)
    expected = theirs(x, x, x, attn_mask=hidden, is_causal=True, need_weights=False)[0]
    assert_same_with_gradients(ours(x, is_causal=True), expected, [x])


@on_device
def test_padding_of_a_whole_sequence_gives_the_bias_of_the_output() -> None:
    _, ours = pair()
    x = torch.randn(2, 5, 12, dtype=F64)
    key_mask = torch.tensor([[True] * 5, [False] * 5])
    output = ours(x, key_mask=key_mask)
    assert_close(output[0], ours(x[0]), **NEAR)
    assert_close(output[1], ours.out_proj.bias.expand(5, 12), **NEAR)


@on_device
def test_parameters_get_the_gradients_of_torch_nn() -> None:
    theirs, ours = pair()
    x = torch.randn(2, 5, 12, dtype=F64)
    ours(x).square().sum().backward()
    theirs(x, x, x)[0].square().sum().backward()
    packed = [ours.q_proj, ours.k_proj, ours.v_proj]
    weights = torch.cat([projection.weight.grad for projection in packed])
    biases = torch.cat([projection.bias.grad for projection in packed])
    assert_close(weights, theirs.in_proj_weight.grad, **NEAR)
    assert_close(biases, theirs.in_proj_bias.grad, rtol=1e-9, atol=1e-9)
    assert_close(ours.out_proj.weight.grad, theirs.out_proj.weight.grad, **NEAR)
    assert_close(ours.out_proj.bias.grad, theirs.out_proj.bias.grad, **NEAR)


@on_device
def test_state_loads_when_it_is_part_of_a_larger_model() -> None:
    theirs = nn.ModuleDict({"block": nn.ModuleList([nn.MultiheadAttention(12, 3, dtype=F64)])})
    ours = nn.ModuleDict({"block": nn.ModuleList([MultiheadAttention(12, 3, dtype=F64)])})
    state = theirs.state_dict()
    names = list(state)
    ours.load_state_dict(state)
    assert list(state) == names  # the caller's dictionary stays as it was
    assert_close(ours["block"][0].k_proj.weight, state["block.0.in_proj_weight"][12:24])


@on_device
def test_own_state_loads_again() -> None:
    first, second = (MultiheadAttention(12, 6, num_kv_heads=2, kdim=5) for _ in range(2))
    second.load_state_dict(first.state_dict())
    x, memory = torch.randn(2, 5, 12), torch.randn(2, 4, 5)
    value = torch.randn(2, 4, 12)
    assert_close(second(x, memory, value), first(x, memory, value), rtol=0.0, atol=0.0)


@on_device
@pytest.mark.parametrize(
    "options",
    [{"bias": False}, {"kdim": 5}, {"num_kv_heads": 1}],
    ids=["no bias", "other kdim", "fewer heads"],
)
def test_state_that_does_not_fit_is_refused(options: dict[str, int]) -> None:
    state = nn.MultiheadAttention(12, 3).state_dict()
    with pytest.raises(RuntimeError, match="proj"):
        MultiheadAttention(12, 3, **options).load_state_dict(state)


@on_device
def test_state_with_learned_extra_keys_is_refused() -> None:
    state = nn.MultiheadAttention(12, 3, add_bias_kv=True).state_dict()
    with pytest.raises(RuntimeError, match="bias_k"):
        MultiheadAttention(12, 3).load_state_dict(state)


@on_device
@pytest.mark.parametrize("num_kv_heads", [1, 2, 3])
def test_grouped_heads_are_repeated_heads(num_kv_heads: int) -> None:
    grouped = MultiheadAttention(12, 6, num_kv_heads=num_kv_heads, dtype=F64)
    nn.init.normal_(grouped.k_proj.bias)
    full = MultiheadAttention(12, 6, dtype=F64)
    state = grouped.state_dict()
    for name in ("k_proj", "v_proj"):
        for kind in ("weight", "bias"):
            heads = state[f"{name}.{kind}"].unflatten(0, (num_kv_heads, 2))
            repeated = heads.repeat_interleave(6 // num_kv_heads, 0)
            state[f"{name}.{kind}"] = repeated.flatten(0, 1)
    full.load_state_dict(state)
    x = torch.randn(2, 5, 12, dtype=F64, requires_grad=True)
    assert_same_with_gradients(grouped(x, is_causal=True), full(x, is_causal=True), [x])


@on_device
def test_value_defaults_to_key_and_key_to_query() -> None:
    module = MultiheadAttention(12, 3, dtype=F64)
    x, memory = torch.randn(2, 5, 12, dtype=F64), torch.randn(2, 4, 12, dtype=F64)
    assert_close(module(x), module(x, x, x), rtol=0.0, atol=0.0)
    assert_close(module(x, memory), module(x, memory, memory), rtol=0.0, atol=0.0)
    assert (module(x) - module(x, memory)).abs().max() > 1e-3
