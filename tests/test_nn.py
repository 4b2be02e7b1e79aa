"""Modules: torch.nn.MultiheadAttention's state and results, positional encodings, word order."""

import io
import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import torch_ext
from torch_ext.nn import MultiheadAttention, RotaryEmbedding, SinusoidalPositionalEncoding

NEAR = {"rtol": 1e-9, "atol": 1e-10}  # float64 throughout
F64 = torch.float64

on_device = pytest.mark.usefixtures("on_device")


def pair(**options: float) -> tuple[nn.MultiheadAttention, MultiheadAttention]:
    """torch's module with random parameters, and ours with its state."""
    theirs = nn.MultiheadAttention(12, 3, batch_first=True, dtype=F64, **options)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.5)
    ours = MultiheadAttention(12, 3, dtype=F64, **options)
    assert str(ours.load_state_dict(theirs.state_dict())) == "<All keys matched successfully>"
    return theirs, ours


def assert_same_with_gradients(output: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    assert_close(output, expected, **NEAR)
    grad = torch.randn_like(expected)
    assert_close(
        torch.autograd.grad(output, inputs, grad),
        torch.autograd.grad(expected, inputs, grad),
        **NEAR,
    )


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"embed_dim": 12, "num_heads": 5}, "num_heads to divide embed_dim = 12, but got 5"),
        ({"embed_dim": 12, "num_heads": 0}, "num_heads"),
        ({"embed_dim": 12, "num_heads": 4, "num_kv_heads": 3}, "num_kv_heads to divide.*got 3"),
        ({"embed_dim": 12, "num_heads": 3, "rotary": RotaryEmbedding(6)}, "size 4 .*got 6"),
    ],
)
def test_module_refuses_heads_that_do_not_divide(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiheadAttention(**arguments)


OPTIONS: dict[str, dict[str, Any]] = {
    "window": {"window_left": 2, "window_right": 1},
    "bottom_right": {"bottom_right": True},
    "softcap": {"softcap": 0.5},
    "fixed slopes": {"alibi": "fixed"},
    "learned slopes": {"alibi": "learned"},
    "sink": {"sink": True},
}
OPTIONS["everything"] = {
    name: value
    for options in OPTIONS.values()
    for name, value in options.items()
    if value != "fixed"
}


@on_device
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_options_reach_the_operator(options: dict[str, Any]) -> None:
    module = MultiheadAttention(12, 3, dtype=F64, **options)
    x, memory = torch.randn(2, 5, 12, dtype=F64), torch.randn(2, 7, 12, dtype=F64)
    q, k, v = (
        projection(y).unflatten(-1, (3, 4)).transpose(1, 2)
        for projection, y in ((module.q_proj, x), (module.k_proj, memory), (module.v_proj, memory))
    )
    passed = {name: value for name, value in options.items() if name not in ("alibi", "sink")}
    if "alibi" in options:
        passed["slopes"] = torch_ext.alibi_slopes(3, dtype=F64)
    if "sink" in options:
        passed["sink"] = torch.zeros(3, dtype=F64)
    output = torch_ext.attention(q, k, v, is_causal=True, **passed)
    expected = module.out_proj(output.transpose(1, 2).flatten(2))
    assert_close(module(x, memory, is_causal=True), expected, **NEAR)
    plain = MultiheadAttention(12, 3, dtype=F64)
    plain.load_state_dict(module.state_dict(), strict=False)
    assert (plain(x, memory, is_causal=True) - expected).abs().max() > 1e-3


@on_device
def test_dropout_is_active_in_training_only() -> None:
    theirs, ours = pair(dropout=0.5)
    x = torch.randn(2, 5, 12, dtype=F64)
    assert_close(ours.eval()(x), theirs.eval()(x, x, x)[0], **NEAR)
    ours.train()

    def draw(seed: int) -> Tensor:
        torch.manual_seed(seed)
        output: Tensor = ours(x)
        return output

    assert torch.equal(draw(1), draw(1))
    assert (draw(1) - draw(2)).abs().max() > 1e-3
    assert (draw(1) - ours.eval()(x)).abs().max() > 1e-3


@on_device
def test_dropout_of_a_module_keeps_the_mean() -> None:
    # The mean of 2000 outputs is known to five standard deviations, in torch's module and in ours.
    theirs, ours = pair(dropout=0.3)
    x = torch.randn(1, 5, 12, dtype=F64).expand(2000, -1, -1)
    expected = ours.eval()(x[0])
    for samples in (ours.train()(x), theirs.train()(x, x, x, need_weights=False)[0]):
        far = (samples.mean(0) - expected).abs() / samples.std(0) * 2000**0.5
        assert far.max() < 5


@on_device
def test_learned_slopes_and_sinks_have_gradients() -> None:
    module = MultiheadAttention(12, 3, alibi="learned", sink=True, dtype=F64)
    x = torch.randn(2, 5, 12, dtype=F64)
    names = ("slopes", "sink")
    leaves = [module.get_parameter(name).detach().requires_grad_() for name in names]

    def run(*values: Tensor) -> Tensor:
        output: Tensor = torch.func.functional_call(
            module, dict(zip(names, values, strict=True)), (x,)
        )
        return output

    assert torch.autograd.gradcheck(run, leaves)
    module(x).square().sum().backward()
    assert module.slopes.grad.ne(0).all()
    assert module.sink.grad.ne(0).all()


@on_device
def test_gradients_of_each_sample() -> None:
    module = MultiheadAttention(12, 3, alibi="learned", sink=True, dtype=F64)
    parameters = {name: x.detach() for name, x in module.named_parameters()}
    x = torch.randn(4, 5, 12, dtype=F64)

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        output: Tensor = torch.func.functional_call(module, parameters, (x,))
        return output.square().sum()

    grads = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for i in range(4):
        expected = torch.func.grad(loss)(parameters, x[i])
        assert_close({name: grad[i] for name, grad in grads.items()}, expected, **NEAR)


@on_device
def test_gradient_penalty_trains_every_parameter() -> None:
    module = MultiheadAttention(12, 3, alibi="learned", sink=True, dtype=F64)
    x = torch.randn(2, 5, 12, dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)
    slope.square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad.abs().max() > 1e-3, name


@on_device
def test_only_what_is_learned_is_part_of_the_state() -> None:
    plain = set(MultiheadAttention(12, 3).state_dict())
    fixed = MultiheadAttention(12, 3, alibi="fixed", window_left=3, dropout=0.1, softcap=5.0)
    assert set(fixed.state_dict()) == plain
    fixed.load_state_dict(nn.MultiheadAttention(12, 3).state_dict())
    learned = MultiheadAttention(12, 3, alibi="learned", sink=True)
    assert set(learned.state_dict()) == plain | {"slopes", "sink"}
    with torch.no_grad():
        learned.slopes.fill_(3.0)
        learned.sink.fill_(2.0)
    other = MultiheadAttention(12, 3, alibi="learned", sink=True)
    other.load_state_dict(learned.state_dict())
    x = torch.randn(2, 5, 12)
    assert_close(other(x), learned(x), rtol=0.0, atol=0.0)
    with pytest.raises(RuntimeError, match=r"Missing.*(slopes.*sink|sink.*slopes)"):
        learned.load_state_dict(nn.MultiheadAttention(12, 3).state_dict())


@on_device
@pytest.mark.parametrize("alibi", ["fixed", "learned"])
def test_slopes_and_sink_move_and_reset_with_the_module(alibi: str, device: torch.device) -> None:
    module = MultiheadAttention(12, 4, alibi=alibi, sink=True, device="meta")
    module = module.to_empty(device=device)
    module.reset_parameters()
    assert module.slopes.tolist() == [2.0**-h for h in (2, 4, 6, 8)]
    assert module.sink.tolist() == [0.0] * 4
    assert [module.to(F64).slopes.dtype, module.sink.dtype] == [F64, F64]
    exact = MultiheadAttention(12, 6, alibi=alibi, dtype=F64).slopes
    assert torch.equal(exact, torch_ext.alibi_slopes(6, dtype=F64))
    assert module(torch.randn(2, 5, 12, dtype=F64)).isfinite().all()
    half = module.to(torch.bfloat16)
    assert half(torch.randn(2, 5, 12, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"dropout": 1.0}, "dropout to be at least 0 and below 1, but got 1.0"),
        ({"dropout": -0.1}, "dropout"),
        ({"dropout": math.nan}, "dropout"),
        ({"window_left": -1}, "window_left to be at least 0, or None, but got -1"),
        ({"window_right": -3}, "window_right"),
        ({"softcap": 0.0}, "softcap to be above 0 and finite, or None, but got 0.0"),
        ({"softcap": math.inf}, "softcap"),
        ({"alibi": "learnt"}, 'alibi to be "fixed", "learned" or None, but got \'learnt\''),
        ({"alibi": True}, "alibi"),
    ],
)
def test_options_out_of_range_are_refused(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiheadAttention(12, 3, **option)


def test_module_shows_the_options_that_were_chosen() -> None:
    assert MultiheadAttention(12, 3).extra_repr() == "12, 3, num_kv_heads=3"
    module = MultiheadAttention(
        12, 3, dropout=0.1, window_left=0, softcap=5, alibi="learned", sink=True
    )
    assert module.extra_repr() == (
        "12, 3, num_kv_heads=3, dropout=0.1, window_left=0, softcap=5.0, alibi='learned', sink=True"
    )


@on_device
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_module_drops_in_training_only() -> None:
    module = MultiheadAttention(12, 3, dropout=0.5, dtype=F64)
    scripted = torch.jit.script(module)
    x = torch.randn(2, 5, 12, dtype=F64)
    torch.manual_seed(1)
    expected = module(x)
    for _ in range(3):
        torch.manual_seed(1)
        assert_close(scripted(x), expected, **NEAR)
    assert_close(scripted.eval()(x), module.eval()(x), **NEAR)


@on_device
@pytest.mark.parametrize(
    "key_mask",
    [torch.ones(2, 5), torch.ones(2, 4, dtype=torch.bool), torch.ones(5, dtype=torch.bool)],
    ids=["dtype", "length", "rank"],
)
def test_key_mask_that_does_not_fit_is_refused(key_mask: Tensor, device: torch.device) -> None:
    key_mask = key_mask.to(device)
    with pytest.raises(RuntimeError, match=r"key_mask to be bool .2, 5."):
        MultiheadAttention(12, 3)(torch.randn(2, 5, 12), key_mask=key_mask)


@on_device
@pytest.mark.parametrize("key_mask", [None, torch.ones(2, 5, dtype=torch.bool)])
def test_additive_mask_is_not_taken_for_a_bool_one(
    key_mask: Tensor | None, device: torch.device
) -> None:
    key_mask = None if key_mask is None else key_mask.to(device)
    x = torch.randn(2, 5, 12)
    with pytest.raises(RuntimeError, match=r"mask to .*bool.*additive masks are called bias"):
        MultiheadAttention(12, 3)(x, mask=torch.zeros(5, 5), key_mask=key_mask)


NOT_INPUTS = {
    "vector": torch.zeros(8),
    "size 1": torch.zeros(3, 1),
    "size": torch.zeros(2, 3, 9),
    "int64": torch.ones(3, 8, dtype=torch.int64),
    "complex": torch.ones(3, 8, dtype=torch.complex64),
}


@on_device
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("scripted", [False, True])
@pytest.mark.parametrize("x", NOT_INPUTS.values(), ids=NOT_INPUTS.keys())
def test_inputs_that_do_not_fit_are_refused_by_name(
    x: Tensor, scripted: bool, device: torch.device
) -> None:
    x = x.to(device)
    good = torch.randn(3, 8)
    mix, wide = MultiheadAttention(8, 2), MultiheadAttention(4, 2, kdim=8, vdim=8)
    cases: list[tuple[nn.Module, tuple[Tensor, ...], str]] = [
        (SinusoidalPositionalEncoding(8), (x,), "expected x .* embed_dim = 8"),
        (RotaryEmbedding(8), (x,), "expected x .* head_size = 8"),
        (RotaryEmbedding(8, interleaved=False), (x,), "expected x .* head_size = 8"),
        (mix, (x,), "expected query .* embed_dim = 8"),
        (mix, (x, good, good), "expected query .* embed_dim = 8"),
        (wide, (good[:, :4], x, good), "expected key .* kdim = 8"),
        (wide, (good[:, :4], good, x), "expected value .* vdim = 8"),
    ]
    for module, inputs, expected in cases:
        module = torch.jit.script(module) if scripted else module
        shape = re.escape(f"shape {list(x.shape)}")
        dtype = r"\d+" if scripted else str(x.dtype)  # TorchScript knows dtypes by number
        message = f"{expected}, but got dtype {dtype} and {shape}"
        with pytest.raises((RuntimeError, torch.jit.Error), match=message):
            module(*inputs)


@on_device
def test_self_attention_names_the_key_that_query_cannot_be() -> None:
    with pytest.raises(RuntimeError, match="expected key .* kdim = 5, but got .*2, 3, 8"):
        MultiheadAttention(8, 2, kdim=5)(torch.randn(2, 3, 8))


@on_device
@pytest.mark.parametrize("shape", [(4,), (1, 2, 3), (3, 3), (5, 1)])
def test_positions_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    # Broadcasting x to the positions would give a result of another shape than x's.
    positions, message = torch.zeros(shape), re.escape(f"to [2, 3], but got shape {list(shape)}")
    for module in (SinusoidalPositionalEncoding(8), RotaryEmbedding(8)):
        with pytest.raises(RuntimeError, match=f"expected positions to broadcast {message}"):
            module(torch.randn(2, 3, 8), positions)


@on_device
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_module_runs_under_autocast(dtype: torch.dtype, device: torch.device) -> None:
    module = MultiheadAttention(12, 3, rotary=RotaryEmbedding(4))
    x = torch.randn(2, 5, 12, requires_grad=True)
    with torch.autocast(device.type, dtype):
        output = module(x, bias=torch.randn(5, 5), is_causal=True)
    assert output.dtype == dtype
    output.float().sum().backward()
    assert x.grad.dtype == torch.float32
    assert x.grad.isfinite().all()


def modules() -> list[tuple[nn.Module, tuple[Tensor, ...]]]:
    x = torch.randn(2, 5, 12, dtype=F64)
    return [
        (MultiheadAttention(12, 3, dtype=F64), (x,)),
        (MultiheadAttention(12, 3, num_kv_heads=1, bias=False, dtype=F64), (x, x[:, :3])),
        (MultiheadAttention(12, 3, rotary=RotaryEmbedding(4), alibi="fixed", dtype=F64), (x,)),
        (MultiheadAttention(12, 3, dtype=F64, **OPTIONS["everything"]), (x, x[:, :3])),
        (SinusoidalPositionalEncoding(12), (x,)),
        (RotaryEmbedding(12), (x,)),
        (RotaryEmbedding(12, interleaved=False), (x, torch.tensor([3, 1, 4, 1, 5]))),
    ]


class Block(nn.Module):
    """The options of forward, as a model would pass them."""

    def __init__(self) -> None:
        super().__init__()
        self.order = SinusoidalPositionalEncoding(12)
        self.mix = MultiheadAttention(
            12, 3, rotary=RotaryEmbedding(4), alibi="learned", sink=True, dtype=F64
        )

    def forward(self, x: Tensor, key_mask: Tensor, bias: Tensor) -> Tensor:
        x = self.order(x, offset=2)
        mixed: Tensor = self.mix(x, key_mask=key_mask, bias=bias, is_causal=True)
        return mixed


def block_inputs() -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(2, 5, 12, dtype=F64, requires_grad=True)
    return x, torch.tensor([[True] * 5, [True] * 3 + [False] * 2]), torch.randn(5, 5, dtype=F64)


@on_device
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_modules_script_save_and_load() -> None:
    for module, inputs in [*modules(), (Block(), block_inputs())]:
        archive = io.BytesIO()
        torch.jit.save(torch.jit.script(module), archive)
        archive.seek(0)
        loaded = torch.jit.load(archive)
        for _ in range(3):  # profiling, optimised, and as optimised
            assert_close(loaded(*inputs), module(*inputs), **NEAR)


@on_device
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_module_trains() -> None:
    block, inputs = Block(), block_inputs()
    scripted = torch.jit.script(block)
    for _ in range(3):
        expected = torch.autograd.grad(block(*inputs).square().sum(), list(block.parameters()))
        grads = torch.autograd.grad(scripted(*inputs).square().sum(), list(scripted.parameters()))
        assert_close(grads, expected, **NEAR)


@pytest.mark.parametrize("dynamic", [False, True])
def test_block_compiles_in_one_graph(
    fresh_dynamo: None, dynamic: bool, device: torch.device
) -> None:
    with device:  # only here: the compiler traces such a context into the block
        block, inputs = Block(), block_inputs()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    assert_same_with_gradients(compiled(*inputs), block(*inputs), [inputs[0]])


def test_modules_compile_in_one_graph(fresh_dynamo: None, device: torch.device) -> None:
    with device:
        pairs = modules()
    for module, inputs in pairs:
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        assert_close(compiled(*inputs), module(*inputs), **NEAR)


@on_device
def test_heads_are_split_and_joined_without_copies() -> None:
    # The only new memory of size N x embed_dim: four projections and the operator's output.
    from torch.utils._python_dispatch import TorchDispatchMode

    class Recorder(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.names: list[str] = []

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.names.append(function.name())
            return function(*args, **(kwargs or {}))

    module = MultiheadAttention(12, 3, dtype=F64)
    x = torch.randn(2, 5, 12, dtype=F64)
    with Recorder() as recorder, torch.no_grad():
        module(x)
    copies = {"aten::clone", "aten::copy_", "aten::_to_copy", "aten::contiguous"}
    assert "torch_ext::attention_forward" in recorder.names
    assert not copies & set(recorder.names)


@on_device
def test_sinusoidal_values() -> None:
    encoding = SinusoidalPositionalEncoding(6)(torch.zeros(50, 6, dtype=F64))
    for p in (0, 1, 7, 49):
        for i in range(3):
            angle = p / 10000 ** (2 * i / 6)
            assert encoding[p, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-12)
            assert encoding[p, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-12)


@on_device
def test_sinusoidal_is_added_and_takes_positions() -> None:
    module, x = SinusoidalPositionalEncoding(6), torch.randn(2, 50, 6)
    encoding = module(torch.zeros(50, 6))
    assert_close(module(x), x + encoding)
    assert_close(module(x[:, 10:], offset=10), module(x)[:, 10:])
    positions = torch.stack((torch.arange(50), torch.arange(50).flip(0)))
    assert_close(module(x, positions)[1], x[1] + encoding.flip(0))


@pytest.mark.parametrize("size", [0, -2, 3])
def test_encodings_refuse_odd_sizes(size: int) -> None:
    for module in (SinusoidalPositionalEncoding, RotaryEmbedding):
        with pytest.raises(ValueError, match=f"even, but got {size}"):
            module(size)


@on_device
@pytest.mark.parametrize("interleaved", [True, False])
def test_rotary_turns_pairs(interleaved: bool) -> None:
    x = torch.randn(4, 6, dtype=F64)
    turned = RotaryEmbedding(6, base=100.0, interleaved=interleaved)(x)
    for p in range(4):
        for i in range(3):
            first, second = (2 * i, 2 * i + 1) if interleaved else (i, i + 3)
            turn = complex(math.cos(p * 100 ** (-i / 3)), math.sin(p * 100 ** (-i / 3)))
            expected = complex(x[p, first], x[p, second]) * turn
            assert turned[p, first].item() == pytest.approx(expected.real, abs=1e-12)
            assert turned[p, second].item() == pytest.approx(expected.imag, abs=1e-12)


@on_device
@pytest.mark.parametrize("interleaved", [True, False])
def test_rotary_products_depend_on_relative_positions_only(interleaved: bool) -> None:
    rotary = RotaryEmbedding(8, interleaved=interleaved)
    query, key = torch.randn(2, 3, 5, 8, dtype=F64), torch.randn(2, 3, 7, 8, dtype=F64)
    near = torch_ext.attention_weights(rotary(query), rotary(key))
    far = torch_ext.attention_weights(rotary(query, offset=100_000), rotary(key, offset=100_000))
    assert_close(far, near, rtol=1e-8, atol=1e-8)
    shifted = torch_ext.attention_weights(rotary(query, offset=1), rotary(key))
    assert (shifted - near).abs().max() > 1e-3


@on_device
def test_rotary_keeps_lengths_and_position_zero() -> None:
    x = torch.randn(2, 3, 50, 8, dtype=F64)
    turned = RotaryEmbedding(8)(x)
    assert_close(turned.norm(dim=-1), x.norm(dim=-1), **NEAR)
    assert_close(turned[..., 0, :], x[..., 0, :], rtol=0.0, atol=0.0)
    assert (turned - x)[..., 1:, :].abs().amax(-1).min() > 1e-3


@on_device
def test_rotary_decodes_one_position_at_a_time() -> None:
    rotary, x = RotaryEmbedding(8), torch.randn(2, 3, 50, 8, dtype=F64)
    whole = rotary(x)
    for p in (0, 1, 49):
        assert_close(rotary(x[:, :, p : p + 1], offset=p), whole[:, :, p : p + 1], **NEAR)
        assert_close(rotary(x[:, :, p : p + 1], torch.tensor([p])), whole[:, :, p : p + 1], **NEAR)


@on_device
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_encodings_are_exact_far_out_in_low_precision(dtype: torch.dtype) -> None:
    # Frequencies or positions kept in x's dtype would be wrong by whole turns here.
    x = torch.randn(3, 8).to(dtype)
    tolerance = 4 * torch.finfo(dtype).eps
    for module in (RotaryEmbedding(8).to(dtype), SinusoidalPositionalEncoding(8).to(dtype)):
        output, exact = module(x, offset=100_000), module(x.double(), offset=100_000)
        assert output.dtype == dtype
        assert_close(output.double(), exact, rtol=tolerance, atol=tolerance)


@on_device
@pytest.mark.parametrize("interleaved", [True, False])
def test_rotary_keeps_the_order_of_dimensions(interleaved: bool) -> None:
    x = torch.randn(2, 5, 3, 8).transpose(1, 2)  # (B, H, N, D) stored as (B, N, H, D)
    assert RotaryEmbedding(8, interleaved=interleaved)(x).stride() == x.stride()


# "Dog bites man", "Man bites dog": the second is the first in the order ORDER.
WORDS = {"dog": 0, "bites": 1, "man": 2}
ORDER = [2, 1, 0]


def two_sentences() -> tuple[Tensor, Tensor]:
    embedding = torch.randn(3, 12, dtype=F64)
    sentences = (["dog", "bites", "man"], ["man", "bites", "dog"])
    first, second = ([WORDS[word] for word in sentence] for sentence in sentences)
    return embedding[first], embedding[second]


@on_device
def test_without_positions_word_order_only_permutes_the_outputs() -> None:
    first, second = two_sentences()
    module = MultiheadAttention(12, 3, dtype=F64)
    assert_close(module(second), module(first)[ORDER], **NEAR)
    assert (module(first)[0] - module(first)[2]).abs().max() > 1e-3


@on_device
@pytest.mark.parametrize("kind", ["sinusoidal", "rotary"])
def test_with_positions_word_order_changes_the_outputs(kind: str) -> None:
    first, second = two_sentences()
    if kind == "sinusoidal":
        order = SinusoidalPositionalEncoding(12)
        module = MultiheadAttention(12, 3, dtype=F64)
        first, second = order(first), order(second)
    else:
        module = MultiheadAttention(12, 3, rotary=RotaryEmbedding(4), dtype=F64)
    assert (module(second) - module(first)[ORDER]).abs().amax(-1).min() > 1e-3
