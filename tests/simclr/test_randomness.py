"""Random numbers depend only on their key, and initial weights only on their shape and order."""

import pytest
import torch
from torch import nn

from simclr.randomness import generator, initial_weights, permutation, subseed, uniforms


def test_numbers_depend_on_seed_and_purpose_only():
    """The values are stored, because changing them would change what every config trains."""
    assert subseed(0, "view", 3, 1, "flip") == 7268602692450376067
    assert uniforms((2,), 0, "a").tolist() == uniforms((2,), 0, "a").tolist()
    assert len({uniforms((1,), *key).item() for key in ((0, "a"), (1, "a"), (0, "b"), (0, "a", 1))}) == 4
    assert torch.equal(uniforms((3, 2), 5, "a"), torch.rand((3, 2), generator=generator(5, "a")))
    assert permutation(5, 0, "a").sort().values.tolist() == list(range(5))


@pytest.mark.parametrize(
    "fill",
    [nn.init.normal_, nn.init.uniform_, nn.init.trunc_normal_, nn.init.kaiming_normal_, nn.init.xavier_uniform_],
)
def test_initial_weights_depend_on_shape_and_order_only(fill):
    def drawn(*shapes, seed=0):
        with initial_weights(seed, "part"):
            return [fill(torch.empty(shape)) for shape in shapes]

    a, b, c = drawn((4, 4), (4, 4), (4, 5))
    torch.rand(3)
    assert torch.equal(drawn((4, 5))[0], c)
    again = drawn((9, 9), (4, 4), (3, 3), (4, 4))
    assert torch.equal(again[1], a)
    assert torch.equal(again[3], b)
    assert not torch.equal(a, b)
    assert not torch.equal(drawn((4, 4), seed=1)[0], a)


def test_initial_weights_restore_the_global_random_state():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with initial_weights(0, "part"):
        nn.Linear(3, 3)
        torch.rand(2)
    assert torch.equal(torch.get_rng_state(), before)
