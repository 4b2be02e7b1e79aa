"""What is measured: attention as its user calls it, its derivatives, a whole training step."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import torch_ext
from benchmarks.cases import Case, Inputs

LANGUAGE_MODEL = Path(__file__).parents[1] / "examples" / "language_model"

Attention = Callable[[Tensor, Tensor, Tensor, "Tensor | None"], Tensor]  # query, key, value, bias


def ours(case: Case, inputs: Inputs) -> Attention:
    """torch_ext.attention with the case's options."""

    def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
        return torch_ext.attention(
            query,
            key,
            value,
            mask=inputs.mask,
            bias=bias,
            is_causal=case.causal,
            dropout_p=case.dropout_p,
        )

    return attend


def sdpa(case: Case, inputs: Inputs) -> Attention:
    """scaled_dot_product_attention as a user calls it: it chooses its own path."""
    grouped = case.sizes[1] != case.sizes[2]

    def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=inputs.mask if bias is None else bias,
            dropout_p=case.dropout_p,
            is_causal=case.causal,
            enable_gqa=grouped,
        )

    return attend


def backend(chosen: SDPBackend, case: Case, inputs: Inputs) -> Attention:
    """One of SDPA's paths; it raises where that one cannot."""
    attend = sdpa(case, inputs)

    def attend_by_it(*tensors: Tensor) -> Tensor:
        with sdpa_kernel(chosen):
            return attend(*tensors)

    return attend_by_it


def flex(case: Case, inputs: Inputs) -> Attention:
    """torch's flex_attention, compiled; of masks it gets causal ones and biases alone."""
    from torch.nn.attention import flex_attention as module

    block_mask = None
    if case.causal:
        block_mask = module.create_block_mask(
            lambda b, h, i, j: i >= j,
            None,
            None,
            *case.sizes[3:5],
            device=inputs.query.device.type,
        )
    compiled = torch.compile(module.flex_attention, dynamic=False)

    def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
        def with_bias(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return score if bias is None else score + bias[0, h, i, j]

        result: Tensor = compiled(
            query,
            key,
            value,
            score_mod=None if bias is None else with_bias,
            block_mask=block_mask,
            enable_gqa=case.sizes[1] != case.sizes[2],
        )
        return result

    return attend


# "math", of matmul, softmax, matmul, can be differentiated in every mode.
ATTENTIONS = {"torch_ext": ours, "SDPA": sdpa, "math": partial(backend, SDPBackend.MATH)}


def _tensors(inputs: Inputs) -> list[Tensor]:
    return [x for x in (inputs.query, inputs.key, inputs.value, inputs.bias) if x is not None]


def forward(attend: Attention, inputs: Inputs) -> Callable[[], Tensor]:
    """The output, of tensors that need no gradient."""
    return partial(attend, *(x.detach() for x in _tensors(inputs)))


def backward(attend: Attention, inputs: Inputs) -> Callable[[], tuple[Tensor, ...]]:
    """The gradients, of an output that is there already."""
    output = attend(*_tensors(inputs))
    return partial(
        torch.autograd.grad,
        output,
        inputs.differentiable(),
        inputs.grad_output,
        retain_graph=True,
    )


def forward_and_backward(attend: Attention, inputs: Inputs) -> Callable[[], list[Tensor]]:
    """Output and gradients."""

    def run() -> list[Tensor]:
        output = attend(*_tensors(inputs))
        gradients = torch.autograd.grad(output, inputs.differentiable(), inputs.grad_output)
        return [output, *gradients]

    return run


def double_backward(attend: Attention, inputs: Inputs) -> Callable[[], list[Tensor]]:
    """Output, gradients, and the gradients of their product with a direction."""
    tensors = inputs.differentiable()
    directions = [torch.randn_like(x) for x in tensors]

    def run() -> list[Tensor]:
        output = attend(*_tensors(inputs))
        gradients = torch.autograd.grad(output, tensors, inputs.grad_output, create_graph=True)
        return [output, *gradients, *torch.autograd.grad(gradients, tensors, directions)]

    return run


def jvp(attend: Attention, inputs: Inputs) -> Callable[[], list[Tensor]]:
    """Output and its tangent along a direction."""
    primals = tuple(x.detach() for x in _tensors(inputs))
    directions = tuple(torch.randn_like(x) for x in primals)
    return lambda: list(torch.func.jvp(attend, primals, directions))


def hessian_vector_product(attend: Attention, inputs: Inputs) -> Callable[[], list[Tensor]]:
    """Output and gradients, and their tangents along a direction: forward over reverse."""
    primals = tuple(x.detach() for x in _tensors(inputs))
    directions = tuple(torch.randn_like(x) for x in primals)

    def output_and_gradients(*tensors: Tensor) -> tuple[Tensor, ...]:
        output, pull_back = torch.func.vjp(attend, *tensors)
        return (output, *pull_back(inputs.grad_output))

    def run() -> list[Tensor]:
        first, second = torch.func.jvp(output_and_gradients, primals, directions)
        return [*first, *second]

    return run


WORK: dict[str, Callable[[Attention, Inputs], Callable[[], object]]] = {
    "forward": forward,
    "backward": backward,
    "forward + backward": forward_and_backward,
    "double backward": double_backward,
    "jvp": jvp,
    "Hessian-vector product": hessian_vector_product,
}


LAYERS = 4  # of the language model, as train.py has it by default


def training_steps(case: Case) -> dict[str, Callable[[], float]]:
    """Steps of the example's language model on both attentions and on none, from equal weights.

    Args:
        case: the attention of one of its LAYERS: as many sequences as batch elements, as many bytes
            in each as queries. Of another dtype than float32 under autocast.

    Returns:
        The steps by name of attention.
    """
    if str(LANGUAGE_MODEL) not in sys.path:
        sys.path.insert(0, str(LANGUAGE_MODEL))
    model, train = importlib.import_module("model"), importlib.import_module("train")
    batch, heads, _, context, _, size, _ = case.sizes
    text = torch.randint(256, (batch, context + 1))
    build = {"context": context, "width": heads * size, "heads": heads, "layers": LAYERS}
    first = model.LanguageModel(**build)
    steps: dict[str, Callable[[], float]] = {}

    def none(query: Tensor, key: Tensor, value: Tensor, **options: object) -> Tensor:
        return query + key + value  # so that all have gradients

    attentions = {
        "torch_ext": torch_ext.attention,
        "SDPA": F.scaled_dot_product_attention,
        "none": none,
    }
    for name, attention in attentions.items():
        network = model.LanguageModel(**build, attention=attention)
        network.load_state_dict(first.state_dict())
        optimizer = train.make_optimizer(network, betas=(0.9, 0.95), weight_decay=0.1)
        dtype = getattr(torch, case.dtype)
        steps[name] = partial(train.update, network, optimizer, text, clip=1.0, dtype=dtype)
    return steps
