"""The parts of PTv3, each against a slow obvious version of itself."""

import itertools
import sys
from importlib.util import find_spec

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch.utils.flop_counter import FlopCounterMode

from rw3d_common import UserError
from rw3d_train.models.ptv3 import sparse_conv, spconv_backend, voxelize
from rw3d_train.models.ptv3.attention import WindowRows, attend, by_windows, make_windows
from rw3d_train.models.ptv3.blocks import Block
from rw3d_train.models.ptv3.chunks import by_rows, recomputed
from rw3d_train.models.ptv3.level import first_level, pool_level
from rw3d_train.models.ptv3.serialization import ORDERS, encode, needed_depth
from rw3d_train.models.ptv3.sparse_conv import Neighbours, SubmanifoldConv3d
from rw3d_train.models.ptv3.voxelize import smallest_voxel


def cloud(seed: int = 0, sizes: tuple[int, ...] = (40, 25), cells: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """(grid, batch) of unique voxels: about `sizes` per element."""
    generator = np.random.default_rng(seed)
    parts = [np.unique(generator.integers(0, cells, (n, 3)), axis=0) for n in sizes]
    parts = [part[generator.permutation(len(part))] for part in parts]
    batch = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    return torch.from_numpy(np.concatenate(parts)), torch.from_numpy(batch)


def offset_of(batch: torch.Tensor) -> torch.Tensor:
    return torch.bincount(batch).cumsum(0)


def level_of(grid, batch, depth=None, permutation=(0, 1, 2, 3)):
    return first_level(grid.float(), grid, offset_of(batch), ORDERS, depth, permutation)


# Serialization


def slow_z(cell, depth) -> int:
    bits = [(int(axis) >> bit) & 1 for bit in reversed(range(depth)) for axis in cell]
    return int("".join(map(str, bits)) or "0", 2)


def slow_hilbert(cell, depth) -> int:
    """Skilling's AxestoTranspose as printed, on Python integers."""
    x = [int(axis) for axis in cell]
    q = 1 << (depth - 1)
    while q > 1:
        for i in range(3):
            if x[i] & q:
                x[0] ^= q - 1
            else:
                t = (x[0] ^ x[i]) & (q - 1)
                x[0] ^= t
                x[i] ^= t
        q >>= 1
    x[1] ^= x[0]
    x[2] ^= x[1]
    t, q = 0, 1 << (depth - 1)
    while q > 1:
        if x[2] & q:
            t ^= q - 1
        q >>= 1
    return slow_z([axis ^ t for axis in x], depth)


@given(st.integers(1, 16), st.integers(0, 2**15 - 1), st.data())
@settings(max_examples=60)
def test_codes_are_those_of_bit_loops(depth, element, data):
    cell = data.draw(st.tuples(*[st.integers(0, 2**depth - 1)] * 3))
    codes = encode(torch.tensor([cell]), torch.tensor([element]), depth, ORDERS)[:, 0].tolist()
    swapped = (cell[1], cell[0], cell[2])
    expected = [slow_z(cell, depth), slow_z(swapped, depth), slow_hilbert(cell, depth), slow_hilbert(swapped, depth)]
    assert codes == [element << 3 * depth | code for code in expected]
    assert min(codes) >= 0


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_curves_visit_every_cell_and_hilbert_in_single_steps(depth):
    cube = torch.tensor(list(itertools.product(range(2**depth), repeat=3)))
    codes = encode(cube, torch.zeros(len(cube)), depth, ORDERS)
    assert (codes.sort(dim=1).values == torch.arange(8**depth)).all()
    for row in codes[2:]:
        assert (cube[row.argsort()].diff(dim=0).abs().sum(dim=1) == 1).all()


def test_the_official_depth():
    assert [needed_depth(n) for n in (0, 1, 2, 6, 7, 89, 65534, 65535, 65536)] == [1, 2, 2, 3, 4, 7, 16, 16, 17]


# Convolution


def slow_conv(x, grid, batch, weight, bias):
    """Straight from the formula, with a dictionary of voxels."""
    reach = weight.shape[1] // 2
    row_of = {(int(b), *map(int, cell)): row for row, (b, cell) in enumerate(zip(batch, grid, strict=True))}
    out = []
    for b, cell in zip(batch.tolist(), grid.tolist(), strict=True):
        total = bias
        for k in itertools.product(range(weight.shape[1]), repeat=3):
            row = row_of.get((b, *(c + i - reach for c, i in zip(cell, k, strict=True))))
            if row is not None:
                total = total + weight[:, k[0], k[1], k[2]] @ x[row]
        out.append(total)
    return torch.stack(out)


@pytest.mark.parametrize("function", [sparse_conv._PairwiseConv, sparse_conv._GatheredConv])
@pytest.mark.parametrize("kernel", [3, 5])
def test_convolution_and_gradients_are_those_of_a_loop(monkeypatch, function, kernel):
    monkeypatch.setattr(sparse_conv, "CPU_PAIRS", 7)
    monkeypatch.setattr(sparse_conv, "GATHERED", 3 * kernel**3 * 10)
    grid, batch = cloud()
    generator = torch.Generator().manual_seed(1)
    shapes = ((len(grid), 3), (4, kernel, kernel, kernel, 3), (4,))
    x, weight, bias = (torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes)
    out = function.apply(x, weight, Neighbours(grid, batch, kernel)) + bias
    expected = slow_conv(x, grid, batch, weight, bias)
    torch.testing.assert_close(out, expected)
    seen = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    for ours, slow in zip(
        *(torch.autograd.grad((y * seen).sum(), (x, weight, bias)) for y in (out, expected)), strict=True
    ):
        torch.testing.assert_close(ours, slow)


@pytest.mark.parametrize("function", [sparse_conv._PairwiseConv, sparse_conv._GatheredConv])
def test_convolution_gradcheck(function):
    grid, batch = cloud(sizes=(6, 5), cells=3)
    neighbours = Neighbours(grid, batch, 3)
    x = torch.randn(len(grid), 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 3, 3, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: function.apply(a, b, neighbours), (x, weight))


def test_neighbours_at_the_edges_of_the_grid():
    """Keys have room on both sides: the first and the last cell of an axis are not neighbours of the next row."""
    top = 2**16 - 1
    grid = torch.tensor([[0, 0, 0], [0, 0, top], [0, 1, 0], [0, top, top], [1, 0, 0], [top, top, top], [0, 0, 0]])
    table = Neighbours(grid, torch.tensor([0, 0, 0, 0, 0, 0, 1]), 5).table.T
    found = {(row, other) for row in range(7) for other in table[row].tolist() if other not in (row, 7)}
    assert found == {(0, 2), (2, 0), (0, 4), (4, 0), (2, 4), (4, 2)}


def test_convolution_in_bfloat16_sums_in_float32():
    grid, batch = cloud(sizes=(300,), cells=7)
    conv = SubmanifoldConv3d(8, 8, 3)
    x = torch.randn(len(grid), 8)
    expected = conv(x, Neighbours(grid, batch, 3))
    with torch.autocast("cpu", torch.bfloat16):
        out = conv(x, Neighbours(grid, batch, 3))
    assert out.dtype == torch.bfloat16
    assert (out.float() - expected).abs().max() < 0.02 * expected.abs().max()
    out.float().sum().backward()
    assert conv.weight.grad.dtype == torch.float32


def test_convolution_starts_within_its_limits():
    conv = SubmanifoldConv3d(4, 8, 3)
    limit = (27 * 4) ** -0.5
    for parameter in conv.parameters():
        assert 0.5 * limit < parameter.abs().max() <= limit


def test_spconv_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "spconv", None)
    with pytest.raises(UserError) as raised:
        SubmanifoldConv3d(4, 8, 3, backend="spconv")
    assert str(raised.value).startswith("conv: spconv cannot be used (")
    assert "; run `pip install spconv-cu126` (for a GPU) or `pip install spconv` (for a CPU), or" in str(raised.value)


@pytest.mark.parametrize(("threads", "gradients"), [(2, False), (1, True)])
def test_what_spconv_does_wrong_on_a_cpu_is_refused(monkeypatch, threads, gradients):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    grid, batch = cloud()
    with torch.set_grad_enabled(gradients), pytest.raises(UserError) as raised:
        spconv_backend.convolve(torch.zeros(len(grid), 2), torch.zeros(4, 3, 3, 3, 2), Neighbours(grid, batch, 3))
    assert str(raised.value).startswith(
        "conv: spconv cannot train on a CPU, nor predict there with more than one thread"
    )
    assert "set conv to torch" in str(raised.value)


@pytest.mark.skipif(find_spec("spconv") is None, reason="spconv is not installed (`pip install spconv`)")
@pytest.mark.parametrize("kernel", [3, 5])
def test_spconv_gives_the_same_convolution_and_gradients(monkeypatch, kernel):
    ops = pytest.importorskip("spconv.pytorch.ops")
    monkeypatch.setattr(ops, "get_current_stream", lambda: 0)  # its CPU backward asks for a GPU's stream, unused
    monkeypatch.setattr(spconv_backend, "_refuse_on_cpu", lambda x: None)
    grid, batch = cloud(sizes=(300, 90), cells=9)
    conv = SubmanifoldConv3d(5, 8, kernel, backend="spconv")
    x = torch.randn(len(grid), 5, requires_grad=True)
    seen = torch.randn(len(grid), 8)
    results, threads = [], torch.get_num_threads()
    torch.set_num_threads(1)  # more would give wrong sums
    for backend in ("torch", "spconv"):
        conv.backend, neighbours = backend, Neighbours(grid, batch, kernel)
        outs = [conv(x, neighbours), conv(2 * x, neighbours)]  # the second uses what the first found
        loss = sum((out * seen).sum() for out in outs)
        results.append([*outs, *torch.autograd.grad(loss, (x, conv.weight, conv.bias))])
    torch.set_num_threads(threads)
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


# Attention


def slow_windows(n: int, patch: int) -> list[tuple[list[int], list[int]]]:
    """Serialized points of each window, and those whose result the window gives: all but the borrowed."""
    if n <= patch:
        return [(list(range(n)), list(range(n)))]
    full = [(list(range(i, i + patch)),) * 2 for i in range(0, n - patch + 1, patch)]
    return full if n % patch == 0 else [*full, (list(range(n - patch, n)), list(range(n - n % patch, n)))]


@pytest.mark.parametrize("counts", [(5,), (8,), (9,), (3, 8, 20, 8, 16, 1)])
def test_attention_is_that_of_slow_windows(counts):
    n, heads, channels, patch = sum(counts), 2, 6, 8
    order = torch.cat([torch.randperm(c) + sum(counts[:i]) for i, c in enumerate(counts)])
    made = make_windows(counts, patch, torch.device("cpu"))
    at = WindowRows(order[made.pad], made.slot[order.argsort()], made.borrowed, made.runs)
    qkv = torch.randn(n, 3 * channels, dtype=torch.float64, requires_grad=True)
    out = by_windows(lambda part, length: attend(part, length, heads, None, 0.0), qkv, at)
    expected = torch.zeros(n, channels, dtype=torch.float64)
    for i, count in enumerate(counts):
        for window, results in slow_windows(count, patch):
            rows = order[torch.tensor(window) + sum(counts[:i])]
            q, k, v = qkv[rows].reshape(len(rows), 3, heads, channels // heads).permute(1, 2, 0, 3)
            seen = ((q @ k.transpose(1, 2)) * (channels // heads) ** -0.5).softmax(dim=-1) @ v
            seen = seen.transpose(0, 1).reshape(len(rows), channels)
            given = torch.tensor([window.index(point) for point in results])
            expected = expected.index_copy(0, rows[given], seen[given])
    torch.testing.assert_close(out, expected)
    weights = torch.randn_like(out)
    ours, slow = (torch.autograd.grad((y * weights).sum(), qkv)[0] for y in (out, expected))
    torch.testing.assert_close(ours, slow)


# Levels and blocks


@pytest.mark.parametrize("depth", [None, 9, 16])
def test_pooled_codes_are_those_of_the_coarser_cells(depth):
    level = level_of(*cloud(3, (200, 90), 37), depth=depth)
    for permutation in ([2, 0, 3, 1], [1, 0, 3, 2], [3, 2, 1, 0]):
        fine, level = level, pool_level(level, 1, permutation, recode=False)
        assert level.orders == [fine.orders[i] for i in permutation]
        assert torch.equal(level.codes, encode(level.grid, level.batch, level.depth, level.orders))
        assert torch.equal(level.grid[level.cluster], fine.grid >> 1)
        assert torch.equal(level.batch[level.cluster], fine.batch)
        assert level.counts == torch.bincount(level.batch).tolist()
        assert len(torch.unique(torch.cat([level.batch[:, None], level.grid], dim=1), dim=0)) == len(level.grid)
        for row in range(0, len(level.grid), 7):
            torch.testing.assert_close(level.coord[row], fine.coord[level.cluster == row].mean(dim=0))
        places = torch.arange(len(level.grid)).expand_as(level.order)
        assert torch.equal(level.rank.gather(1, level.order), places)


def test_nothing_is_merged_beyond_depth_0():
    level = level_of(torch.tensor([[0, 0, 0], [1, 1, 1], [0, 0, 0]]), torch.tensor([0, 0, 1]), depth=1)
    level = pool_level(level, 1, [0, 1, 2, 3], recode=False)
    assert (level.depth, level.grid.tolist()) == (0, [[0, 0, 0]] * 2)
    same = pool_level(level, 1, [0, 1, 2, 3], recode=False)
    assert (same.depth, same.cluster.tolist()) == (0, [0, 1])


def test_recoding_takes_the_depth_of_the_new_grid():
    grid = torch.tensor([[6, 0, 0], [5, 3, 1], [0, 2, 4]])  # 6 needs 3 bits, and so does 3 by the official rule
    level = pool_level(level_of(grid, torch.zeros(3, dtype=torch.int64)), 1, [0, 1, 2, 3], recode=True)
    assert level.depth == 3
    assert torch.equal(level.codes, encode(level.grid, level.batch, 3, ORDERS))


def test_large_strides_never_merge_elements():
    level = level_of(torch.tensor([[1, 0, 0], [0, 1, 1], [1, 0, 0]]), torch.tensor([0, 0, 1]), depth=1)
    merged = pool_level(level, 3, [0, 1, 2, 3], recode=True)
    assert (merged.batch.tolist(), merged.grid.tolist()) == ([0, 1], [[0, 0, 0]] * 2)
    assert pool_level(level, 3, [0, 1, 2, 3], recode=False).counts == [2, 1]


OPTIONS = {
    "mlp_ratio": 4, "qkv_bias": True, "qk_scale": None, "attn_drop": 0.0, "proj_drop": 0.0, "layer_scale": None,
    "fixed_windows": True, "conv": "torch",
}  # fmt: skip


def test_recomputing_changes_memory_only():
    level = level_of(*cloud(1, (60, 30)))
    x = torch.randn(len(level.grid), 16)
    results = []
    for recompute in (True, False):
        torch.manual_seed(5)
        block = Block(16, 1, 32, 1, 0.5, recompute=recompute, **{**OPTIONS, "proj_drop": 0.2}).train()
        out = block(x, level)
        out.square().sum().backward()
        results.append([out, *(parameter.grad for parameter in block.parameters())])
    for ours, kept in zip(*results, strict=True):
        torch.testing.assert_close(ours, kept)


def test_recomputing_spares_the_products_whose_results_nobody_needs():
    level = level_of(*cloud(1, (60,)))
    n, flops = len(level.grid), []
    for recompute in (False, True):
        block = Block(16, 1, 1024, 1, 0.5, recompute=recompute, **OPTIONS).train()
        with FlopCounterMode(display=False) as counter:
            block(torch.randn(n, 16), level).sum().backward()
        flops.append(counter.get_flop_counts()["Global"][torch.ops.aten.addmm])
    # Again: the linear layer after the convolution, `proj` and `fc1`; not `qkv` and `fc2`.
    assert flops[1] - flops[0] == (1 + 1 + 4) * 2 * n * 16 * 16


def test_drop_path_drops_whole_voxels_and_keeps_the_mean():
    torch.manual_seed(0)
    block = Block(16, 1, 32, 0, 0.25, recompute=False, **OPTIONS)
    kept = block._kept(torch.zeros(4000, 16))
    assert kept.shape == (4000, 1)
    torch.testing.assert_close(kept.unique(), torch.tensor([0, 1 / 0.75]))
    assert abs(kept.mean().item() - 1) < 0.05
    assert block.eval()._kept(torch.zeros(4, 16)) is None


@pytest.mark.parametrize("rows", [1, 4095, 4096, 4097, 9000])
def test_rows_in_chunks(rows):
    x, y = torch.randn(rows, 2), torch.randn(rows, 2, requires_grad=True)
    expected = x.clone() * y
    for recompute in (True, False):
        function = recomputed(torch.mul, recompute)
        assert torch.equal(by_rows(function, x, y), expected)
        with torch.no_grad():
            assert torch.equal(by_rows(function, x, y), expected)


# Voxels


@given(st.integers(0, 10**6), st.lists(st.integers(1, 60), min_size=1, max_size=4), st.sampled_from([0.05, 0.3, 2.0]))
@settings(max_examples=30)
def test_voxels_are_unique_means_of_their_points(seed, sizes, size):
    generator = torch.Generator().manual_seed(seed)
    coord = 4 * torch.rand(sum(sizes), 3, generator=generator) - 2
    feat = torch.randn(sum(sizes), 5, generator=generator)
    offset = torch.tensor(sizes).cumsum(0)
    voxels = voxelize(coord, feat, offset, size)
    batch = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    of_voxel = torch.repeat_interleave(torch.arange(len(sizes)), voxels.offset.diff(prepend=torch.zeros(1).long()))
    assert torch.equal(of_voxel[voxels.voxel_of_point], batch)
    for element in range(len(sizes)):
        cells = torch.floor(coord[batch == element] / size)
        cells = (cells - cells.min(dim=0).values).long()
        assert torch.equal(voxels.grid[voxels.voxel_of_point[batch == element]], cells)
        assert int((of_voxel == element).sum()) == len(torch.unique(cells, dim=0))
    for row in range(len(voxels.grid)):
        mine = voxels.voxel_of_point == row
        torch.testing.assert_close(voxels.feat[row], feat[mine].mean(dim=0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(voxels.coord[row], coord[mine].mean(dim=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("extent", [4000.0, 1e5])
def test_an_extent_beyond_the_codes_names_a_size_that_fits(extent):
    coord = torch.tensor([[0.0, 0, 0], [1, 1, 1], [-3, 0, 0], [-3, extent, 0]])
    with pytest.raises(UserError) as raised:
        voxelize(coord, coord, torch.tensor([2, 4]), 0.05)
    message = str(raised.value)
    assert message.startswith(f"element 1 of the batch extends over {extent:,.0f}")
    assert "more than 65,536 voxels of 0.05 m" in message
    size = float(message.split("at least ")[1].split(" m")[0])
    assert size == pytest.approx(extent / 65536, rel=0.02)
    assert len(voxelize(coord, coord, torch.tensor([2, 4]), size).grid) >= 3


@given(st.floats(1e-3, 1e7))
@settings(max_examples=50)
def test_the_smallest_voxel_always_fits(extent):
    assert extent / smallest_voxel(extent) <= 2**16 - 1
    assert smallest_voxel(extent) < 1.02 * extent / 2**16


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_coordinates_that_are_not_finite(value):
    coord = torch.zeros(4, 3)
    coord[2, 1] = value
    with pytest.raises(UserError, match=r"^element 1 of the batch has coordinates that are not finite; run"):
        voxelize(coord, coord, torch.tensor([2, 4]), 0.05)


@pytest.mark.parametrize("offset", [[], [3], [2, 2, 4], [5, 4]])
def test_offsets_that_do_not_fit(offset):
    with pytest.raises(UserError, match="for 4 points; it must rise to their number, without empty elements"):
        voxelize(torch.zeros(4, 3), torch.zeros(4, 1), torch.tensor(offset, dtype=torch.int64), 0.05)
