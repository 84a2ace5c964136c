"""The order of the data is a function of position alone."""

import numpy as np
import pytest

from diffkit.data import order


@pytest.mark.parametrize("n", [1, 2, 17, 1000])
def test_every_epoch_is_a_permutation_and_no_two_are_alike(n):
    plan = order.Order(n, seed=5)
    positions, epochs = plan.slice(0, 3 * n)
    assert np.array_equal(epochs, np.repeat([0, 1, 2], n))
    for k in range(3):
        assert np.array_equal(np.sort(positions[k * n : (k + 1) * n]), np.arange(n))
    if n > 2:
        assert not np.array_equal(positions[:n], positions[n : 2 * n])
        assert not np.array_equal(positions[:n], order.Order(n, seed=6).slice(0, n)[0])


def test_any_slice_is_what_the_whole_says():
    whole, epochs = order.Order(13, seed=1).slice(0, 100)
    for start in (0, 5, 12, 13, 14, 60):
        for count in (1, 13, 40):
            part, part_epochs = order.Order(13, seed=1).slice(start, count)
            assert np.array_equal(part, whole[start : start + count])
            assert np.array_equal(part_epochs, epochs[start : start + count])


def test_going_back_gives_the_same():
    plan = order.Order(7, seed=0)
    first = plan.slice(0, 7)[0]
    plan.slice(70, 7)
    assert np.array_equal(plan.slice(0, 7)[0], first)


def test_hash_is_the_published_generator():
    # The first three outputs of SplitMix64 started at 0 are the finalizer at 0, gamma and 2 gamma.
    gamma = 0x9E3779B97F4A7C15
    known = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    states = [np.asarray([k * gamma % 2**64], dtype=np.uint64) for k in range(3)]
    assert [int(order._scramble(state)[0]) for state in states] == known


def test_hash_separates_its_parts():
    values = {int(order.hashed(a, b, c)[0]) for a in range(10) for b in range(10) for c in range(10)}
    assert len(values) == 1000
    assert order.hashed(1, 2)[0] != order.hashed(2, 1)[0]
    assert np.array_equal(order.hashed(4, np.arange(5)), [order.hashed(4, k)[0] for k in range(5)])


def test_uniform_is_uniform():
    values = order.uniform(order.FLIP, 0, 0, np.arange(20_000))
    assert values.min() >= 0
    assert values.max() < 1
    counts = np.histogram(values, bins=20, range=(0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 44  # chi-square, 19 degrees of freedom, p about 0.001
