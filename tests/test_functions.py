"""The Python functions: options as documented, seeds, slopes, logsumexp."""

import inspect
from collections.abc import Callable

import pytest
import torch
from functions import NEAR, ours, qkv, random_mask, sdpa
from torch import Tensor
from torch.testing import assert_close

import torch_ext

on_device = pytest.mark.usefixtures("on_device")


@pytest.mark.parametrize(
    ("function", "operator"),
    [
        (torch_ext.attention, "attention"),
        (torch_ext.attention_with_logsumexp, "attention_forward"),
        (torch_ext.attention_weights, "attention_weights"),
    ],
)
def test_functions_have_the_arguments_of_their_operators(
    function: Callable[..., object], operator: str
) -> None:
    arguments = getattr(torch.ops.torch_ext, operator).default._schema.arguments
    parameters = inspect.signature(function).parameters.values()
    assert [p.name for p in parameters] == [a.name for a in arguments]
    optional = [p.default for p in parameters if p.default is not inspect.Parameter.empty]
    assert optional == [a.default_value for a in arguments][-len(optional) :]


@on_device
def test_attention_takes_mask_bias_and_is_causal_together() -> None:
    q, k, v = qkv((2, 4, 5, 8), (2, 2, 7, 8), (2, 2, 7, 8))
    mask, bias = random_mask(2, 1, 5, 7), torch.randn(4, 5, 7, dtype=torch.float64)
    together = bias.masked_fill(~(mask & torch.ones(5, 7).tril().bool()), -torch.inf)
    output = torch_ext.attention(q, k, v, mask=mask, bias=bias, is_causal=True, scale=0.7)
    assert_close(output, sdpa(q, k, v, together, scale=0.7, enable_gqa=True), **NEAR)


def distances(bottom_right: bool) -> Tensor:
    """j - i - offset of 5 queries and 7 keys."""
    return torch.arange(7) - torch.arange(5)[:, None] - (2 if bottom_right else 0)


OPTIONS: dict[str, dict] = {
    "is_causal": {"is_causal": True},
    "bottom_right": {"is_causal": True, "bottom_right": True},
    "window_left": {"window_left": 1},
    "window_right": {"window_right": 2},
    "window of one": {"window_left": 0, "window_right": 0},
    "softcap": {"softcap": 1.5},
    "slopes": {"slopes": torch.tensor([0.5, 0.2, -0.3, 0.0], dtype=torch.float64)},
    "slopes per sample": {"slopes": torch.randn(2, 1, dtype=torch.float64)},
    "sink": {"sink": torch.tensor([0.5, 2.0, -1.0, -torch.inf], dtype=torch.float64)},
}

OPTIONS["everything"] = {
    **OPTIONS["bottom_right"],
    **OPTIONS["window_left"],
    **OPTIONS["softcap"],
    **OPTIONS["slopes"],
    **OPTIONS["sink"],
    "mask": torch.rand(2, 1, 5, 7) > 0.3,
    "bias": torch.randn(4, 1, 7, dtype=torch.float64),
    "scale": 0.7,
}


def moved(options: dict, device: torch.device) -> dict:
    """The options with their tensors on the device."""
    return {name: x.to(device) if isinstance(x, Tensor) else x for name, x in options.items()}


def formula(query: Tensor, key: Tensor, options: dict) -> tuple[Tensor, Tensor]:
    """Weights and logsumexp as the documentation of `attention` has them, (2, 4, 5, 7)."""
    scores = query @ key.mT * options.get("scale", 8**-0.5)
    softcap = options.get("softcap", torch.inf)
    scores = scores if softcap == torch.inf else softcap * torch.tanh(scores / softcap)
    distance = distances(options.get("bottom_right", False))
    zero = torch.zeros((), dtype=torch.float64)
    scores = scores + options.get("bias", zero)
    scores = scores - options.get("slopes", zero)[..., None, None] * distance.abs()
    visible = options.get("mask", torch.tensor(True))
    visible = visible & (distance >= -options.get("window_left", 99))
    visible = visible & (distance <= options.get("window_right", 99))
    if options.get("is_causal", False):
        visible = visible & (distance <= 0)
    scores = scores.masked_fill(~visible, -torch.inf)
    sink = options.get("sink", zero - torch.inf)[..., None, None].expand(2, 4, 5, 1)
    logsumexp = torch.logsumexp(torch.cat((scores, sink), -1), -1)
    safe = logsumexp.masked_fill(logsumexp == -torch.inf, 0.0)
    return torch.exp(scores - safe[..., None]), logsumexp


@on_device
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_options_mean_what_the_documentation_says(options: dict, device: torch.device) -> None:
    options = moved(options, device)
    query, key, value = qkv((2, 4, 5, 8), (2, 4, 7, 8), (2, 4, 7, 3))
    weights, expected_logsumexp = formula(query, key, options)
    assert_close(torch_ext.attention_weights(query, key, **options), weights, **NEAR)
    assert_close(torch_ext.attention(query, key, value, **options), weights @ value, **NEAR)
    output, logsumexp = torch_ext.attention_with_logsumexp(query, key, value, **options)
    assert_close(output, weights @ value, **NEAR)
    assert_close(logsumexp, expected_logsumexp, **NEAR)
    seed = torch.tensor([1, 2])
    dropped = weights * torch.ops.torch_ext._dropout_mask(seed, 4, 5, 7, 0.25) / 0.75
    for result in (
        torch_ext.attention(query, key, value, dropout_p=0.25, seed=seed, **options),
        torch_ext.attention_with_logsumexp(query, key, value, dropout_p=0.25, seed=seed, **options),
    ):
        output = result if isinstance(result, Tensor) else result[0]
        assert_close(output, dropped @ value, **NEAR)


@on_device
@pytest.mark.parametrize("shape", [(5, 8), (4, 5, 8), (3, 4, 5, 8), (2, 1, 4, 5, 8)])
def test_seed_is_drawn_once_for_each_batch_element(
    shape: tuple[int, ...], device: torch.device
) -> None:
    inputs = qkv(shape, shape, shape)
    seed = torch.randint(2**63 - 1, shape[:-3], generator=torch.Generator(device).manual_seed(5))
    expected = torch_ext.attention(*inputs, dropout_p=0.5, seed=seed)
    torch.manual_seed(5)
    assert torch.equal(torch_ext.attention(*inputs, dropout_p=0.5), expected)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch_ext.attention_with_logsumexp(*inputs, dropout_p=0.5)[0], expected)
    assert torch.equal(torch.rand(1), after)
    assert not torch.equal(torch_ext.attention(*inputs, dropout_p=0.5), expected)


@on_device
@pytest.mark.parametrize("randomness", ["same", "different"])
def test_seeds_of_mapped_functions(randomness: str) -> None:
    inputs = qkv((3, 2, 4, 5, 8), (3, 2, 4, 7, 8), (3, 2, 4, 7, 8))

    def draw(function: Callable[..., Tensor]) -> Tensor:
        torch.manual_seed(5)
        mapped = torch.func.vmap(lambda *x: function(*x, dropout_p=0.5), randomness=randomness)
        result = mapped(*inputs)
        return result if isinstance(result, Tensor) else result[0]

    output = draw(torch_ext.attention)
    assert torch.equal(draw(torch_ext.attention_with_logsumexp), output)
    torch.manual_seed(5)
    shape = (3, 2) if randomness == "different" else (2,)
    seed = torch.randint(2**63 - 1, shape).expand(3, 2)
    assert_close(output, torch_ext.attention(*inputs, dropout_p=0.5, seed=seed), **NEAR)


@on_device
def test_dropout_depends_on_seed_and_position_alone() -> None:
    mask = torch.ops.torch_ext._dropout_mask
    seed = torch.tensor([3, 1 << 40, 3])
    whole = mask(seed, 4, 9, 11, 0.5)
    assert whole.shape == (3, 4, 9, 11)
    assert torch.equal(whole[0], whole[2])
    assert not torch.equal(whole[0], whole[1])
    assert torch.equal(mask(seed[1:2], 2, 5, 6, 0.5), whole[1:2, :2, :5, :6])
    assert (whole | ~mask(seed, 4, 9, 11, 0.6)).all()  # what 0.5 drops, 0.6 drops
    assert 0.4 < whole.double().mean() < 0.6


@on_device
def test_no_seed_is_drawn_without_dropout() -> None:
    inputs = qkv((4, 5, 8), (4, 7, 8), (4, 7, 8))
    torch.manual_seed(5)
    torch_ext.attention(*inputs)
    torch_ext.attention_with_logsumexp(*inputs)
    ours(*inputs)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), after)


# As published for powers of two; in between, those of the lower power and every other of the next.
ALIBI = {
    1: [2**-8.0],
    2: [2**-4.0, 2**-8.0],
    3: [2**-4.0, 2**-8.0, 2**-2.0],
    8: [2.0**-h for h in range(1, 9)],
    12: [*(2.0**-h for h in range(1, 9)), 2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5],
}


@on_device
@pytest.mark.parametrize("heads", ALIBI)
def test_alibi_slopes(heads: int) -> None:
    slopes = torch_ext.alibi_slopes(heads, dtype=torch.float64)
    assert_close(slopes, torch.tensor(ALIBI[heads], dtype=torch.float64), rtol=1e-15, atol=0.0)
    assert torch_ext.alibi_slopes(heads).dtype == torch.float32


def test_alibi_slopes_of_no_head_are_refused() -> None:
    with pytest.raises(ValueError, match="heads to be at least 1, but got 0"):
        torch_ext.alibi_slopes(0)


@on_device
def test_pieces_of_the_keys_go_together_by_the_documented_formula() -> None:
    q, k, v = qkv((2, 4, 5, 8), (2, 4, 7, 8), (2, 4, 7, 8), grad=True)
    mask = random_mask(5, 7)  # the second row sees no key of any piece
    mask[2, :3], mask[2, 3:] = False, True
    mask[0] = True  # and the first gives all weight to one piece
    with torch.no_grad():
        q[:, :, 0] = 300 * k[:, :, 0]
    names: dict = {"torch": torch}
    for piece, part in (("a", slice(0, 3)), ("b", slice(3, 7))):
        names[f"output_{piece}"], names[f"lse_{piece}"] = torch_ext.attention_with_logsumexp(
            q, k[..., part, :], v[..., part, :], mask=mask[:, part]
        )
    lines = inspect.getdoc(torch_ext.attention_with_logsumexp).splitlines()
    formula = "\n".join(line.strip() for line in lines if line.startswith("    ") and " = " in line)
    exec(formula, names)
    output, expected = names["output"], sdpa(q, k, v, mask)
    assert_close(output, expected, **NEAR)
    for lse in (names["lse_a"], names["lse_b"]):
        assert lse[..., 1].eq(-torch.inf).all()
    # Gradients come back through the logsumexps too, and so do those of the gradients.
    grad = torch.randn_like(expected)
    leaves = (q, k, v)
    expected = torch_ext.attention(*leaves, mask=mask)
    first, first_expected = (
        torch.autograd.grad(y, leaves, grad, create_graph=True) for y in (output, expected)
    )
    assert_close(first, first_expected, **NEAR)
    directions = [torch.randn_like(x) for x in leaves]
    second, second_expected = (
        torch.autograd.grad(gradients, leaves, directions) for gradients in (first, first_expected)
    )
    assert_close(second, second_expected, **NEAR)
