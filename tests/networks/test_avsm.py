"""AVSM, the whole: both faces, steps, batches, directions, the model's inverse, scripts, half precision."""

import pytest
import torch

from network_cases import SHAPE, assert_moves, assert_same_gradients, images
from scripts.geometry import affine_map, apply_affine, identity_affine, identity_map, voxels_per_unit, warp
from scripts.layers import VSVF
from scripts.networks import AVSM, AffineNet, MomentumNet
from scripts.networks.momentum_net import half_shape


def network(seed=0, momentum=0.3, affine=0.02, **arguments):
    """A small network with a head scaled so that momenta and affines are not near zero."""
    torch.manual_seed(seed)
    net = AVSM(AffineNet(channels=(4, 8), hidden=8), MomentumNet((4, 6, 6, 8, 8)), **{"affine_steps": 2, **arguments})
    torch.nn.init.normal_(net.affine_net.head.weight, std=affine)
    torch.nn.init.normal_(net.momentum_net.head[1].conv.weight, std=momentum)
    return net.eval()


@pytest.fixture(autouse=True)
def no_gradients(request):
    with torch.set_grad_enabled("gradient" in request.node.name):
        yield


@pytest.mark.parametrize("integrator", ["scaling_squaring", "rk4"])
@pytest.mark.parametrize(("affine_steps", "vsvf_steps"), [(0, 0), (2, 0), (0, 2), (3, 1), (1, 3)])
def test_forward_equals_register(integrator, affine_steps, vsvf_steps):
    net = network(affine=0.1, affine_steps=affine_steps, vsvf_steps=vsvf_steps, vsvf=VSVF(integrator=integrator))
    moving, fixed = images(2), images(2, seed=1)
    result = net.register(moving, fixed)
    if affine_steps + vsvf_steps > 0:
        assert_moves(result.map)
    torch.testing.assert_close(net(torch.cat([moving, fixed], dim=1)), torch.cat([result.moved, result.map], dim=1))


@pytest.mark.parametrize("vsvf_steps", [1, 2, 4])
def test_forward_equals_register_from_coarse_to_fine(vsvf_steps):
    net = network(vsvf_steps=vsvf_steps, vsvf_factors=(4, 2, 1))
    moving, fixed = images(2), images(2, seed=1)
    result = net.register(moving, fixed)
    assert_moves(result.map)
    torch.testing.assert_close(net(torch.cat([moving, fixed], dim=1)), torch.cat([result.moved, result.map], dim=1))
    # The momenta of coarse steps lie on the same grid, so that what optimises takes them as they are.
    again = net.integrate(moving, result.affine, result.momenta)
    torch.testing.assert_close(again.map, result.map)


@pytest.mark.parametrize(("factors", "steps", "expected"), [
    ((1,), 3, [1, 1, 1]),
    ((4, 2, 1), 5, [4, 2, 1, 1, 1]),
    ((4, 2, 1), 3, [4, 2, 1]),
    ((4, 2, 1), 1, [1]),
    ((3, 2), 4, [3, 2, 2, 2]),
])  # fmt: skip
def test_factors_of_steps(factors, steps, expected):
    net, asked = network(vsvf_steps=steps, vsvf_factors=factors), []
    whole = net.momentum_net.forward
    net.momentum_net.forward = lambda moved, fixed, factor=1: asked.append(factor) or whole(moved, fixed, factor)
    net.register(images(), images(seed=1))
    assert asked == expected


def test_coarse_steps_find_what_fine_ones_do_not_reach():
    """A small blob, moved by more than windows of the fine grid reach, by untrained Gauss-Newton steps alone."""
    shape = [32, 32, 32]
    x = identity_map(shape)
    centre = torch.tensor([0.5, 0.0, 0.0]).view(1, 3, 1, 1, 1)
    fixed, moving = (torch.exp(-(x - c).square().sum(1, keepdim=True) / 0.02) for c in (0 * centre, centre))
    errors = {}
    for factors in ((1,), (4, 2, 1)):
        torch.manual_seed(0)
        momentum_net = MomentumNet((4, 6, 6, 8, 8), force_windows=(9,))
        net = AVSM(AffineNet(channels=(4, 8), hidden=8), momentum_net, affine_steps=0, vsvf_factors=factors).eval()
        errors[factors] = (net.register(moving, fixed, vsvf_steps=4).moved - fixed).square().sum().item()
    assert errors[(4, 2, 1)] < 0.6 * errors[(1,)]


def test_no_step_is_the_identity():
    moving = images(2)
    result = network().register(moving, images(2, seed=1), affine_steps=0, vsvf_steps=0)
    identity = identity_map(SHAPE).expand(2, -1, -1, -1, -1)
    for map in (result.map, result.affine_map):
        torch.testing.assert_close(map, identity)
    torch.testing.assert_close(result.moved, moving, atol=1e-5, rtol=0)
    torch.testing.assert_close(result.affine, identity_affine(2))
    assert (result.affines, result.maps, result.momenta) == ([], [], [])


def test_registration_fits_together():
    net = network(vsvf_steps=3)
    moving, fixed = images(2), images(2, seed=1)
    result = net.register(moving, fixed)
    low = half_shape(list(SHAPE))
    torch.testing.assert_close(result.affine, result.affines[-1])
    torch.testing.assert_close(result.affine_map, affine_map(result.affine, SHAPE))
    torch.testing.assert_close(result.map, result.maps[-1])
    torch.testing.assert_close(result.moved, result.moved_steps[-1])
    assert result.displacement.shape == (2, 3, *low)
    moved, u = warp(moving, result.affine_map), torch.zeros(2, 3, *low)
    for step in range(3):
        # Each step looks at the original, warped once by the map so far, and goes on from that map.
        momentum = net.momentum_net(moved, fixed)
        torch.testing.assert_close(result.momenta[step], momentum)
        u, velocity = net.vsvf(momentum, u)
        torch.testing.assert_close(result.velocities[step], velocity)
        torch.testing.assert_close(result.maps[step], net.full_map(result.affine, u, list(SHAPE)))
        moved = warp(moving, result.maps[step])
        torch.testing.assert_close(result.moved_steps[step], moved)
    torch.testing.assert_close(result.displacement, u)


def test_full_map_puts_the_affine_outside():
    affine = identity_affine(1)
    affine[0, 0, 0], affine[0, 1, 3] = 0.5, 0.25
    u = torch.zeros(1, 3, *half_shape(list(SHAPE)))
    u[:, 0], u[:, 2] = 0.2, -0.1
    map = AVSM().full_map(affine, u, list(SHAPE))
    expected = apply_affine(affine, identity_map(SHAPE) + torch.tensor([0.2, 0, -0.1]).view(1, 3, 1, 1, 1))
    torch.testing.assert_close(map, expected)


def test_a_batch_is_its_singles():
    net, moving, fixed = network(), images(2), images(2, seed=1)
    both = net.register(moving, fixed)
    for index in range(2):
        one = slice(index, index + 1)
        single = net.register(moving[one], fixed[one])
        for name in ("map", "moved", "affine", "displacement"):
            torch.testing.assert_close(getattr(both, name)[one], getattr(single, name), atol=1e-5, rtol=1e-4)


def test_gradient_reaches_every_weight():
    net = network()
    net.register(images(2), images(2, seed=1)).moved.square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("integrator", ["scaling_squaring", "rk4"])
def test_script_equals_eager(integrator):
    net = network(vsvf=VSVF(integrator=integrator))
    scripted = torch.jit.script(net)
    for shape in (SHAPE, (16, 11, 20)):
        pair = torch.cat([images(shape=shape), images(shape=shape, seed=1)], dim=1)
        eager = net(pair)
        assert_moves(eager[:, 1:])
        torch.testing.assert_close(scripted(pair), eager, atol=1e-5, rtol=1e-4)


def test_bf16_autocast_leaves_the_map_in_float32():
    net, pair = network(), torch.cat([images(2), images(2, seed=1)], dim=1)
    expected = net(pair)
    assert_moves(expected[:, 1:])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = net(pair)
        record = net.register(pair[:, :1], pair[:, 1:])
    for value in (result, record.map, record.moved, *record.momenta, *record.velocities):
        assert value.dtype == torch.float32
    scale = voxels_per_unit(list(SHAPE)).view(1, 3, 1, 1, 1)
    difference = ((result - expected)[:, 1:] * scale).norm(dim=1)
    motion = ((expected[:, 1:] - identity_map(SHAPE)) * scale).norm(dim=1)
    # Only the momentum network ran in bf16, so maps differ by percents of the motion and hold no bf16 steps.
    assert difference.max() < 0.05 * motion.max()
    torch.testing.assert_close(record.map, result[:, 1:])


@pytest.mark.parametrize("stem", ["space_to_depth", "quarter"])
def test_checkpointing_has_the_same_values_and_gradients(stem):
    found = []
    for saving in (False, True):
        net = network(affine=0.1, affine_steps=1, vsvf_steps=2, checkpointing=saving)
        torch.manual_seed(1)
        net.momentum_net = MomentumNet((4, 6, 6, 8, 8), stem=stem, head_std=0.3)
        result = net.register(images(2), images(2, seed=1))
        loss = sum(moved.square().mean() for moved in result.moved_steps) + result.maps[0].square().mean()
        found.append((loss, *torch.autograd.grad(loss, list(net.parameters()))))
    assert_same_gradients(*found)


def test_checkpointed_gradients_keep_no_features():
    kept = []
    for saving in (False, True):
        net, sizes = network(checkpointing=saving), []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, s=sizes: (s.append(x.numel()), x)[1], lambda x: x):
            net.register(images(1, (32, 32, 32)), images(1, (32, 32, 32), seed=1), 0, 2)
        kept.append(sum(sizes))
    assert kept[1] < 0.5 * kept[0]


@pytest.mark.parametrize(("call", "message"), [
    (lambda: AVSM(vsvf_factors=()), "vsvf_factors must be whole numbers from 1 on"),
    (lambda: AVSM(vsvf_factors=(0, 1)), "vsvf_factors must be whole numbers from 1 on"),
    (lambda: AVSM(vsvf_factors=(2.5,)), "vsvf_factors must be whole numbers from 1 on"),
    (lambda: AVSM(affine_steps=-1), "got -1 affine"),
    (lambda: AVSM().register(images(), images(), vsvf_steps=-1), "-1 vSVF"),
    (lambda: AVSM().register(torch.zeros(1, 1, 4, 4, 4), torch.zeros(1, 1, 4, 4, 5)), "on one grid, got"),
    (lambda: AVSM().register(torch.zeros(2, 1, 4, 4, 4), torch.zeros(1, 1, 4, 4, 4)), "on one grid, got"),
    (lambda: AVSM().register(torch.zeros(1, 2, 4, 4, 4), torch.zeros(1, 2, 4, 4, 4)), "on one grid, got"),
])  # fmt: skip
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
