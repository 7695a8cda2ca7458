"""The order of the sequences: each epoch whole, shuffled and, if asked, cut elsewhere; known from a counter."""

import pytest
import torch

from textgen.training.batches import BatchOrder

SEQ_LENGTH = 4


def order(blocks: int, seed: int = 1, random_offset: bool = False) -> BatchOrder:
    return BatchOrder(seed, torch.arange(blocks * SEQ_LENGTH + 1), SEQ_LENGTH, random_offset)


def starts(batches: BatchOrder, first: int, size: int) -> list[int]:
    x_BT, y_BT = batches.take(first, size)  # a token is its own place in the stream
    assert torch.equal(x_BT + 1, y_BT) and torch.equal(x_BT[:, :1] + torch.arange(SEQ_LENGTH), x_BT)
    return x_BT[:, 0].tolist()


def test_an_epoch_takes_every_block_once_and_each_in_another_order():
    epochs = torch.tensor(starts(order(7), 0, 21)).view(3, 7).tolist()
    assert all(sorted(epoch) == list(range(0, 28, SEQ_LENGTH)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


@pytest.mark.parametrize("random_offset", [False, True])
def test_the_order_follows_from_the_seed_and_the_place_alone(random_offset):
    whole = starts(order(50, random_offset=random_offset), 0, 150)
    assert starts(order(50, random_offset=random_offset), 90, 20) == whole[90:110]
    assert starts(order(50, seed=2, random_offset=random_offset), 0, 150) != whole


def test_a_random_offset_cuts_the_stream_elsewhere_each_epoch():
    batches = order(20, random_offset=True)
    assert batches.blocks == 19  # room to move
    epochs = torch.tensor(starts(batches, 0, 30 * 19)).view(30, 19)
    offsets = set()
    for epoch in epochs:
        ordered = epoch.sort().values
        assert torch.equal(ordered.diff(), torch.full((18,), SEQ_LENGTH))
        offsets.add(int(ordered[0]))
    assert offsets == set(range(SEQ_LENGTH))


def test_a_stream_of_one_block_has_no_room_to_move():
    assert starts(order(1, random_offset=True), 0, 3) == [0, 0, 0]


def test_the_place_of_a_sample_is_its_epoch_and_its_start():
    batches = order(7)
    assert [batches.place(number) for number in (0, 6, 7)] == [
        (0, starts(batches, 0, 1)[0]), (0, starts(batches, 6, 1)[0]), (1, starts(batches, 7, 1)[0]),
    ]  # fmt: skip
