"""What every module asks of its inputs; compiled by TorchScript together with them."""

from torch import Tensor


def check_input(module: str, name: str, x: Tensor, size_name: str, size: int) -> None:
    """Raises a RuntimeError unless x is floating point and (..., N, size).

    Broadcasting would make a plausible result of a vector of another size, and of integers too.
    """
    if x.dim() < 2 or x.size(-1) != size or not x.is_floating_point():
        raise RuntimeError(
            f"{module}: expected {name} to be floating point and of shape (..., N, {size_name}), "
            f"{size_name} = {size}, but got dtype {x.dtype} and shape {list(x.shape)}"
        )
