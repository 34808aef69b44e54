"""The batch order: a permutation, a pure function of (lengths, seed, epoch), even in length where grouped."""

import random

import pytest
import torch

from lora_hf.data.sampler import CHUNK, EpochSampler

DRAW = random.Random(1)
LENGTHS = [DRAW.randrange(5, 500) for _ in range(1_003)]


def order(epoch=0, seed=1, lengths=LENGTHS, batch_size=4):
    sampler = EpochSampler(len(LENGTHS), seed, batch_size, lengths)
    sampler.set_epoch(epoch)
    return list(sampler)


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("batch_size", [1, 4, 16, 2_000])
def test_every_row_occurs_once_per_epoch(lengths, batch_size):
    assert sorted(order(3, lengths=lengths, batch_size=batch_size)) == list(range(len(LENGTHS)))
    assert len(EpochSampler(len(LENGTHS), 1, batch_size, lengths)) == len(LENGTHS)


@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_the_order_depends_only_on_seed_and_epoch(lengths):
    torch.manual_seed(5)
    first = order(2, lengths=lengths)
    torch.manual_seed(6)
    random.seed(6)
    walked = EpochSampler(len(LENGTHS), 1, 4, lengths)
    for epoch in (0, 1, 2):  # a run that came here through the epochs before, not by resuming
        walked.set_epoch(epoch)
        last = list(walked)
    assert last == first
    state = torch.get_rng_state()
    assert torch.equal(
        state, (order(2, lengths=lengths), torch.get_rng_state())[1]
    )  # and draws from no other
    assert len({tuple(order(e, s, lengths)) for e in range(3) for s in (1, 2, 42)}) == 9


def test_adjacent_seeds_share_no_epoch_order():
    assert order(epoch=1, seed=0) != order(epoch=0, seed=1)


@pytest.mark.parametrize("batch_size", [4, 16])
def test_batches_have_rows_of_similar_length_and_are_shuffled(batch_size):
    def padding(rows):
        batches = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
        longest = sum(max(LENGTHS[row] for row in batch) * len(batch) for batch in batches)
        return 1 - sum(LENGTHS) / longest

    grouped, plain = order(batch_size=batch_size), order(batch_size=batch_size, lengths=None)
    assert padding(grouped) < 0.05 < 0.3 < padding(plain)
    longest = [max(LENGTHS[row] for row in grouped[i : i + batch_size]) for i in range(0, 960, batch_size)]
    falls = sum(a > b for a, b in zip(longest, longest[1:], strict=False))
    assert 0.3 < falls / len(longest) < 0.7


def test_a_smaller_last_batch_stays_last():
    grouped = order(batch_size=8)  # 1003 = 125 * 8 + 3
    chunk = 8 * CHUNK
    ordered = [LENGTHS[row] for row in grouped[:1000]]
    batches = [ordered[i : i + 8] for i in range(0, 1000, 8)]
    assert all(batch == sorted(batch, reverse=True) for batch in batches)
    assert chunk < len(LENGTHS)


def test_accelerate_passes_the_epoch_to_the_sampler():
    from accelerate import Accelerator
    from torch.utils.data import DataLoader

    loader = DataLoader(
        list(range(len(LENGTHS))), batch_size=4, sampler=EpochSampler(len(LENGTHS), 1, 4, LENGTHS)
    )
    prepared = Accelerator(cpu=True).prepare(loader)
    prepared.set_epoch(7)
    assert [int(row) for batch in prepared for row in batch] == order(7)
