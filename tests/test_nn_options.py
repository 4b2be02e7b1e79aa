"""MultiheadAttention: options of the constructor, dropout, what is learned, gradients."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from multihead import F64, NEAR, OPTIONS, pair
from torch import Tensor, nn
from torch.testing import assert_close

import torch_ext
from torch_ext.nn import MultiheadAttention

on_device = pytest.mark.usefixtures("on_device")


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


def by_skip_init(device: torch.device, assign: bool) -> MultiheadAttention:
    module = nn.utils.skip_init(MultiheadAttention, 12, 6, alibi="fixed", device=device)
    module.load_state_dict(MultiheadAttention(12, 6).state_dict(), assign=assign)
    return module


def by_to_empty(device: torch.device, assign: bool) -> MultiheadAttention:
    module = MultiheadAttention(12, 6, alibi="fixed", device="meta").to_empty(device=device)
    module.load_state_dict(MultiheadAttention(12, 6).state_dict(), assign=assign)
    return module


def by_assignment(_: torch.device, assign: bool) -> MultiheadAttention:
    module = nn.ModuleDict({"mix": MultiheadAttention(12, 6, alibi="fixed", device="meta")})
    state = nn.ModuleDict({"mix": MultiheadAttention(12, 6, dtype=F64)}).state_dict()
    module.load_state_dict(state, assign=True)
    return module["mix"]


@on_device
@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("make", [by_skip_init, by_to_empty, by_assignment])
def test_fixed_slopes_are_right_wherever_the_module_came_from(
    make: Callable[[torch.device, bool], MultiheadAttention], assign: bool, device: torch.device
) -> None:
    module = make(device, assign)
    weight = module.q_proj.weight
    expected = torch_ext.alibi_slopes(6, dtype=weight.dtype)
    assert torch.equal(module.slopes, expected)
    assert "slopes" not in module.state_dict()
    assert module(torch.randn(2, 5, 12, dtype=weight.dtype)).isfinite().all()
    slopes = module.slopes
    module.load_state_dict(module.state_dict())
    assert module.slopes is slopes  # where it was: a recorded graph may read it there
    exact = torch_ext.alibi_slopes(6, dtype=F64)
    assert torch.equal(module.to(torch.bfloat16).to(F64).slopes, exact)


def test_module_shows_the_options_that_were_chosen() -> None:
    assert MultiheadAttention(12, 3).extra_repr() == "12, 3, num_kv_heads=3"
    module = MultiheadAttention(
        12, 3, dropout=0.1, window_left=0, scale=2, softcap=5, alibi="learned", sink=True
    )
    assert module.extra_repr() == (
        "12, 3, num_kv_heads=3, dropout=0.1, window_left=0, scale=2.0, softcap=5.0, "
        "alibi='learned', sink=True"
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
