"""The forward of other libraries and other paths of PyTorch, beside ours and SDPA.

onnxruntime, onnx and openvino are optional: requirements-bench.txt. All run in this process on the
same number of threads, in float32, and take turns; each result is compared with ours first.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.cases import CASES, Case, Inputs
from benchmarks.measure import fastest
from benchmarks.suite import Row, Settings, Step
from benchmarks.work import ATTENTIONS, flex

Call = Callable[[], Tensor]  # the output (B, H, N, E)

NAMES = ("long", "long, causal", "one head", "short", "medium", "decode")
TURN = 0.02  # seconds, in which the threads of the library before fall asleep


def naive(case: Case, inputs: Inputs, threads: int) -> Call:
    """softmax(q k^T / sqrt(D)) v, as it is written down."""
    hidden = torch.ones(inputs.query.size(-2), inputs.key.size(-2)).triu(1).bool()

    def run() -> Tensor:
        scores = inputs.query @ inputs.key.transpose(-2, -1) * inputs.query.size(-1) ** -0.5
        if case.causal:
            scores = scores.masked_fill(hidden, float("-inf"))
        return scores.softmax(-1) @ inputs.value

    return run


def flex_attention(case: Case, inputs: Inputs, threads: int) -> Call:
    """torch's, compiled."""
    return partial(flex(case, inputs), inputs.query, inputs.key, inputs.value)


def onnx_model(case: Case, fused: bool) -> bytes:
    """One node: the standard's Attention, or the MultiHeadAttention of onnxruntime.

    The former takes (B, H, N, D), the latter (B, N, H D).
    """
    from onnx import TensorProto, helper

    b, h, _, n, m, d, e = case.sizes
    if fused:
        shapes = [(b, n, h * d), (b, m, h * d), (b, m, h * e), (b, n, h * e)]
        options = {"num_heads": h, "unidirectional": int(case.causal), "domain": "com.microsoft"}
        operator = "MultiHeadAttention"
    else:
        shapes = [(b, h, n, d), (b, h, m, d), (b, h, m, e), (b, h, n, e)]
        options = {"is_causal": int(case.causal)}
        operator = "Attention"
    names = ["query", "key", "value", "output"]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in zip(names, shapes, strict=True)
    ]
    node = helper.make_node(operator, names[:3], names[3:], **options)
    graph = helper.make_graph([node], "attention", values[:3], values[3:])
    versions = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=versions, ir_version=11)
    return model.SerializeToString()


def onnxruntime(case: Case, inputs: Inputs, threads: int, fused: bool) -> Call:
    """Inputs and output stay where they are from call to call."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Its threads wait in a loop, which would slow down whoever comes next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = ort.InferenceSession(
        onnx_model(case, fused), options, providers=["CPUExecutionProvider"]
    )

    def laid_out(x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(2).contiguous() if fused else x.contiguous()

    binding = session.io_binding()
    for name in ("query", "key", "value"):
        array = laid_out(getattr(inputs, name)).numpy()
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
    output = laid_out(torch.empty_like(inputs.grad_output))
    binding.bind_ortvalue_output("output", ort.OrtValue.ortvalue_from_numpy(output.numpy()))
    heads = inputs.query.size(1)

    def run() -> Tensor:
        session.run_with_iobinding(binding)
        return output.unflatten(2, (heads, -1)).transpose(1, 2) if fused else output

    return run


def openvino(case: Case, inputs: Inputs, threads: int) -> Call:
    """Its ScaledDotProductAttention; float32 has to be asked for where bfloat16 is native."""
    import openvino as ov
    from openvino import opset13

    names = ("query", "key", "value")
    tensors = (inputs.query, inputs.key, inputs.value)
    parameters = [
        opset13.parameter(list(x.shape), ov.Type.f32, name=name)
        for name, x in zip(names, tensors, strict=True)
    ]
    node = opset13.scaled_dot_product_attention(*parameters, causal=case.causal)
    config = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = ov.compile_model(ov.Model([node], parameters), "CPU", config)
    request = compiled.create_infer_request()
    for i, x in enumerate(tensors):
        request.set_input_tensor(i, ov.Tensor(x.contiguous().numpy(), shared_memory=True))
    output = torch.empty_like(inputs.grad_output)
    request.set_output_tensor(0, ov.Tensor(output.numpy(), shared_memory=True))

    def run() -> Tensor:
        request.infer()
        return output

    return run


def _torch(name: str, case: Case, inputs: Inputs, threads: int) -> Call:
    return partial(ATTENTIONS[name](case, inputs), inputs.query, inputs.key, inputs.value)


# What each needs besides torch.
PEERS: dict[str, tuple[Callable[..., Call], tuple[str, ...]]] = {
    "math": (partial(_torch, "math"), ()),
    "naive": (naive, ()),
    "flex_attention": (flex_attention, ()),
    "onnxruntime MHA": (partial(onnxruntime, fused=True), ("onnxruntime", "onnx")),
    "onnxruntime": (partial(onnxruntime, fused=False), ("onnxruntime", "onnx")),
    "OpenVINO": (openvino, ("openvino",)),
}


def absent() -> dict[str, str]:
    """The peers that cannot run here, and why."""
    found = {}
    for name, (_, packages) in PEERS.items():
        if os.environ.get("TORCH_EXT_ISA") and name not in ("math", "naive"):
            found[name] = "TORCH_EXT_ISA holds torch_ext back, but not it"
        for package in packages:
            try:
                importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                found[name] = f"{package} is not installed"
    return found


def calls_of(case: Case, settings: Settings) -> dict[str, Call]:
    """Ours, SDPA and the peers that can run the case, each with the right result."""
    inputs = case.inputs()
    inputs = replace(
        inputs, **{name: getattr(inputs, name).detach() for name in ("query", "key", "value")}
    )
    calls = {n: _torch(n, case, inputs, settings.threads) for n in ("torch_ext", "SDPA")}
    expected = calls["torch_ext"]()
    missing = absent()
    for name, (make, _) in PEERS.items():
        if name in missing or (settings.quick and name == "flex_attention"):  # compiles for 10 s
            continue
        try:
            call = make(case, inputs, settings.threads)
            torch.testing.assert_close(call(), expected, rtol=1e-3, atol=1e-3)
            calls[name] = call
        except Exception as error:  # of whatever kind: other people's libraries
            tqdm.write(f"{name} is left out of '{case.name}': {str(error).splitlines()[0]}")
    return calls


def peer_row(case: Case, settings: Settings) -> Row:
    """Times in ms and each time by ours."""
    times = fastest(calls_of(case, settings), 2 * settings.seconds, TURN)
    row = {"case": case.name, "torch_ext ms": f"{times['torch_ext'] * 1e3:.4g}"}
    for name in ("SDPA", *PEERS):
        known = name in times
        row[f"{name} ms"] = f"{times[name] * 1e3:.4g}" if known else ""
        row[f"ratio to {name}"] = f"{times[name] / times['torch_ext']:.2f}" if known else ""
    return row


def steps(settings: Settings) -> list[Step]:
    """The forward of some cases in float32."""
    cases = {case.name: case for case in CASES if case.dtype == "float32"}
    return [
        Step("peers", f"peers {name} float32 forward", partial(peer_row, cases[name], settings))
        for name in NAMES
    ]
