"""The rows of several processes: together the batches of one, and every row of a test split once."""

import pytest

from lora_hf.data.sampler import EpochSampler
from lora_hf.distributed import shares

LENGTHS = [(7 * i) % 23 + 1 for i in range(61)]


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("n", [16, 61, 57, 58])
def test_processes_share_the_batches_that_one_would_have(n, world, lengths):
    own = lengths and lengths[:n]
    one = EpochSampler(n, seed=3, batch_size=8, lengths=own)
    several = [EpochSampler(n, 3, 8, own, rank, world) for rank in range(world)]
    for sampler in [one, *several]:
        sampler.set_epoch(2)
    order, parts, size = list(one), [list(sampler) for sampler in several], 8 // world
    assert sorted(order) == list(range(n))
    assert [len(part) for part in parts] == [len(sampler) for sampler in several]
    for at in range(0, n, 8):
        batch = order[at : at + 8]
        held = [part[at // world : at // world + size] for part in parts]
        assert all(held)  # a process with no row would leave the others waiting
        if len(batch) >= world:
            assert sorted(row for rows in held for row in rows) == sorted(batch)
        else:
            assert held == [batch] * world  # equal parts have the mean of the whole


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_every_row_is_in_one_share_and_shares_have_similar_lengths(world):
    parts = shares(LENGTHS[:5], world)
    assert sorted(row for part in parts for row in part) == list(range(5))
    tokens = [sum(LENGTHS[row] for row in part) for part in shares(LENGTHS, world)]
    assert max(tokens) - min(tokens) <= max(LENGTHS)
