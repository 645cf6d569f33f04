"""The submanifold convolution through spconv, an optional package, with the parameters of `SubmanifoldConv3d`.

Autocast's float16 is kept, as in the official model; bfloat16 becomes float32, because without the scaling of losses that
comes with float16 small gradients would vanish in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rw3d_common.errors import UserError

if TYPE_CHECKING:
    from rw3d_train.models.ptv3.sparse_conv import Neighbours

KEY = "neighbours"  # each set of voxels has a tensor of its own, so one key is enough


def load_spconv() -> Any:
    """The module `spconv.pytorch`.

    Raises:
        UserError: it is not installed.
    """
    try:
        import spconv.pytorch
    except ImportError as error:
        raise UserError(
            f"conv: spconv cannot be used ({error}); run `pip install spconv-cu126` (for a GPU) or `pip install spconv` "
            "(for a CPU), or set conv to torch, which needs no package"
        ) from error
    return spconv.pytorch


def convolve(x: Tensor, weight: Tensor, neighbours: Neighbours) -> Tensor:
    """`x` (N, in) with `weight` (out, k, k, k, in) → (N, out); spconv finds its pairs at the first call per `neighbours`.

    Raises:
        UserError: on a CPU, gradients or several threads.
    """
    _refuse_on_cpu(x)
    spconv = load_spconv()
    if x.dtype == torch.bfloat16:
        x, weight = x.float(), weight.float()
    if neighbours.sparse is None:
        indices = torch.cat([neighbours.batch[:, None], neighbours.grid], dim=1).int()
        shape = (neighbours.grid.amax(dim=0) + 1).tolist()
        neighbours.sparse = spconv.SparseConvTensor(x, indices, shape, int(neighbours.batch[-1]) + 1)
    out_channels, kernel_size, _, _, in_channels = weight.shape
    with torch.device(
        "meta"
    ):  # only the call is spconv's: weights are ours, so that names and checkpoints do not change
        layer = spconv.SubMConv3d(in_channels, out_channels, kernel_size, bias=False, indice_key=KEY)
    with torch.autocast(x.device.type, enabled=False):
        out = torch.func.functional_call(layer, {"weight": weight}, neighbours.sparse.replace_feature(x))
    neighbours.sparse.indice_dict.update(out.indice_dict)
    return out.features


def _refuse_on_cpu(x: Tensor) -> None:
    """spconv 2.3.8 there: threads overwrite each other's sums without a word, and the backward pass asks for a GPU."""
    if x.device.type == "cpu" and (torch.get_num_threads() > 1 or torch.is_grad_enabled()):
        raise UserError(
            "conv: spconv cannot train on a CPU, nor predict there with more than one thread; set conv to torch, or run "
            "on a GPU (to predict with one thread: OMP_NUM_THREADS=1)"
        )
