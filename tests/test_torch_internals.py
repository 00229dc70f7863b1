"""Each undocumented part of torch that is used is still there, and still does what it is used for."""

import ctypes
import re
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  the name that torch's own documentation uses

from convscope import _torch_internals as internals

ROOT = Path(__file__).parents[1]


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_installed_torch_is_one_that_is_allowed():
    lines = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    [bounds] = [line for line in lines if line.startswith("torch")]
    lowest, highest = (tuple(map(int, bound.split("."))) for bound in re.findall(r"[<>]=?([\d.]+)", bounds))
    version = tuple(map(int, torch.__version__.split("+")[0].split(".")[:2]))
    assert lowest <= version < highest


A, B, C = random(2, 3), random(2, 3, seed=1), random(2, 3, seed=2).abs() + 1
IN_PLACE = {
    "add_": ((B,), {"alpha": 2.0}, A + 2 * B),
    "mul_": ((3.0,), {}, 3 * A),
    "div_": ((4.0,), {}, A / 4),
    "sub_": ((B,), {}, A - B),
    "addcmul_": ((B, C), {"value": 0.5}, A + 0.5 * B * C),
    "addcdiv_": ((B, C), {"value": 0.5}, A + 0.5 * B / C),
    "clamp_max_": ((0.1,), {}, A.clamp(max=0.1)),
    "clamp_min_": ((0.1,), {}, A.clamp(min=0.1)),
    "copy_": ((B,), {}, B),
    "sign_": ((), {}, A.sign()),
    "zero_": ((), {}, torch.zeros_like(A)),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_an_operation_on_a_list_changes_each_tensor(name):
    others, settings, expected = IN_PLACE[name]
    tensors = [A.clone(), A.clone()]
    lists = [[other, other] if isinstance(other, torch.Tensor) else other for other in others]
    getattr(internals, f"foreach_{name}")(tensors, *lists, **settings)
    assert all(torch.allclose(tensor, expected) for tensor in tensors)


def test_operations_on_lists_give_new_tensors():
    assert torch.equal(internals.foreach_add([A], 1.0)[0], A + 1)
    assert torch.equal(internals.foreach_mul([A], 2.0)[0], A * 2)
    assert torch.equal(internals.foreach_div([A], 2.0)[0], A / 2)
    assert torch.allclose(internals.foreach_norm([A])[0], A.norm())
    squares = [C.clone()]
    internals.foreach_sqrt_(squares)
    assert torch.equal(squares[0], C.sqrt())


def test_fused_adam_is_adam():
    weight = torch.nn.Parameter(A.float())
    weight.grad = B.float()
    found, moments, squares, steps = A.float(), torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(())
    torch.optim.Adam([weight], lr=0.1).step()
    internals.fused_adam_(
        [found], [B.float()], [moments], [squares], [], [steps],
        lr=0.1, beta1=0.9, beta2=0.999, weight_decay=0.0, eps=1e-8, amsgrad=False, maximize=False,
    )  # fmt: skip
    torch.testing.assert_close(found, weight.detach())
    assert torch.count_nonzero(moments) == 6


def test_backward_of_a_convolution():
    image, kernel, bias = (random(*shape).requires_grad_() for shape in ((2, 4, 6, 5), (6, 2, 3, 2), (6,)))
    settings = (2, 1), (1, 0), (1, 2)
    result = F.conv2d(image, kernel, bias, *settings, 2)
    gradient = random(*result.shape, seed=3)
    expected = torch.autograd.grad(result, (image, kernel, bias), gradient)
    found = internals.convolution_backward(
        gradient, image, kernel, bias.shape, *settings, False, (0, 0), 2, (True, True, True)
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_backward_of_a_threshold_takes_integers_too():
    result = torch.tensor([0, 3, 5], dtype=torch.int16)
    gradient = torch.tensor([7, -8, 9], dtype=torch.int16)
    assert internals.threshold_backward(gradient, result, 0).tolist() == [0, -8, 9]


def test_backward_of_a_ceiling_stops_where_the_result_is_at_a_limit():
    result = torch.tensor([0.0, 0.5, 6.0])
    assert internals.hardtanh_backward(torch.ones(3), result, 0.0, 6.0).tolist() == [0, 1, 0]


def test_backward_of_a_batch_normalization():
    image, gamma, beta = (random(*shape).requires_grad_() for shape in ((4, 3, 2, 2), (3,), (3,)))
    result = F.batch_norm(image, None, None, gamma, beta, training=True, eps=0.01)
    gradient = random(*result.shape, seed=1)
    expected = torch.autograd.grad(result, (image, gamma, beta), gradient)
    variance, mean = torch.var_mean(image.detach(), dim=(0, 2, 3), correction=0)
    deviation = (variance + 0.01).rsqrt()
    found = internals.batch_norm_backward(
        gradient, image, gamma, None, None, mean, deviation, True, 0.01, (True, True, True)
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_normalizations_take_a_single_value_for_a_channel():
    row, mean, variance = random(1, 3).float(), torch.zeros(3), torch.ones(3)
    zeros = torch.zeros(1, 3)
    normalized = internals.batch_norm(row, None, None, mean, variance, True, 1.0, 0.1, False)
    torch.testing.assert_close(normalized, zeros)
    torch.testing.assert_close(mean, row[0])
    torch.testing.assert_close(internals.group_norm(row, 3, None, None, 0.1), zeros)


def test_statistics_of_a_batch_are_written_with_a_momentum_of_one():
    rows, means, variances = random(9, 3).float(), torch.zeros(3), torch.zeros(3)
    internals.batch_norm_update_stats(rows, means, variances, 1.0)
    torch.testing.assert_close(means, rows.mean(0))
    torch.testing.assert_close(variances, rows.var(0))


def test_small_values_are_set_to_zero_in_place():
    tensor = torch.tensor([1e-3, -1e-3, 0.5])
    internals.shrink_(tensor, 1e-2)
    assert tensor.tolist() == [0.0, 0.0, 0.5]


def test_a_change_in_place_counts():
    tensor = torch.zeros(2)
    before = internals.version_of(tensor)
    tensor.add_(1)
    assert internals.version_of(tensor) == before + 1
    torch.autograd.graph.increment_version(tensor)
    assert internals.version_of(tensor) == before + 2


def test_a_tensor_is_a_key_by_what_it_is():
    key = torch.zeros(2)
    known = internals.WeakTensorKeyDictionary({key: "here"})
    assert (known[key], known.get(torch.zeros(2))) == ("here", None)
    del key
    assert len(known) == 0


def test_a_dispatch_mode_sees_every_result():
    class Seen(internals.TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.sizes = []

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            self.sizes += [value.numel() for value in internals.tree_leaves(result)]
            return result

    with Seen() as seen:
        torch.zeros(3, 4).unbind()
    assert seen.sizes == [12, 4, 4, 4]
    assert internals.TorchDispatchMode._should_skip_dynamo() in (True, False)


def test_hooks_are_kept_where_they_are_looked_for():
    module = torch.nn.Linear(1, 1)
    assert not any(vars(module)[name] for name in internals.HOOKS)
    module.register_forward_hook(lambda *_: None)
    module.register_forward_pre_hook(lambda *_: None)
    module.register_full_backward_hook(lambda *_: None)
    module.register_full_backward_pre_hook(lambda *_: None)
    assert all(vars(module)[name] for name in internals.HOOKS)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN")
def test_onednn_computes_relu_inside_a_convolution():
    convolve = internals.onednn_operation("_convolution_pointwise")
    assert convolve is not None
    image, kernel, bias = (random(*shape).float() for shape in ((2, 3, 6, 5), (4, 3, 3, 3), (4,)))
    found = convolve(image, kernel, bias, (1, 1), (2, 2), (1, 1), 1, "relu", [], "")
    torch.testing.assert_close(found, F.conv2d(image, kernel, bias, 2, 1).relu(), rtol=1e-4, atol=1e-5)
    assert internals.onednn_operation("no_such_operation") is None


def test_what_a_processor_supports_is_answered():
    assert internals.onednn_accepts_bfloat16() in (True, False)
    assert internals.cpu_supports("no_such_instruction_set") is False
    known = getattr(torch.cpu, "get_capabilities", dict)()
    if "avx2" in known:
        assert internals.cpu_supports("avx2") == known["avx2"]


@pytest.mark.skipif(sys.platform == "win32", reason="its files have other names there")
def test_the_library_of_the_operations_is_found():
    [library] = internals.cpu_libraries()
    assert ctypes.CDLL(str(library))


@pytest.mark.parametrize("register", ["register_hook", "register_post_accumulate_grad_hook"])
def test_a_hook_on_a_gradient_is_seen_until_it_is_removed(register):
    weight = torch.zeros(2, requires_grad=True)
    assert not internals.has_gradient_hooks(weight)
    handle = getattr(weight, register)(lambda _: None)
    assert internals.has_gradient_hooks(weight)
    handle.remove()
    assert not internals.has_gradient_hooks(weight)
