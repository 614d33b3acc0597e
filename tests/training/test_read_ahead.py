"""Batches made ahead are the batches, in their order, made by another thread while there is time for it."""

import pickle
import threading
import time

import pytest
from torch.utils.data import DataLoader

from climafuse.data.batch import EpochSampler
from climafuse.training.dataset import ExampleDataset
from climafuse.training.read_ahead import AHEAD, ReadAheadSampler


class Noting(ExampleDataset):
    """Numbers instead of examples. Notes what is made, where, and can be held up."""

    def __init__(self, num):
        super().__init__([f"example {number}" for number in range(num)])
        self.made, self.open, self.changed = [], threading.Event(), threading.Condition()
        self.open.set()

    def read(self, positions):
        here = threading.current_thread()
        if here is not threading.main_thread():
            self.open.wait(10)
        with self.changed:
            self.made.append((list(positions), here))
            self.changed.notify_all()
        return super().read(positions)

    def until(self, batch):
        with self.changed:
            return self.changed.wait_for(lambda: batch in [made for made, _ in self.made], timeout=10)


def loader(dataset, size, order=None):
    sampler = ReadAheadSampler(range(len(dataset)) if order is None else order, dataset, size)
    return DataLoader(dataset, batch_size=size, sampler=sampler, collate_fn=list)


@pytest.mark.parametrize("held_up", [True, False])
@pytest.mark.parametrize(("num", "size"), [(40, 4), (11, 4), (3, 4), (0, 4), (5, 1)])
def test_a_loader_gives_what_it_gives_without_in_every_epoch(num, size, held_up):
    dataset, order = Noting(num), EpochSampler(num, seed=3)
    plain = DataLoader(dataset.examples, batch_size=size, sampler=order, collate_fn=list)
    ahead = loader(dataset, size, order)
    for epoch in (0, 1, 0):
        ahead.sampler.set_epoch(epoch)
        assert order.epoch == epoch
        if held_up:  # the thread comes to nothing before its batches have been made without it
            dataset.open.clear()
            threading.Timer(0.05, dataset.open.set).start()
        assert list(ahead) == list(plain)
        assert len(ahead.sampler) == num


def test_some_batches_are_made_before_their_turn_by_another_thread():
    dataset = Noting(3 * AHEAD + 7)
    batches = iter(loader(dataset, 3))
    assert next(batches) == ["example 0", "example 1", "example 2"]
    last = list(range(3 * AHEAD, 3 * AHEAD + 3))
    assert dataset.until(last)
    assert dataset.made[-1][0] == last  # and no more than that
    time.sleep(0.05)
    assert dataset.made[-1][0] == last
    next(batches)
    assert dataset.until([number + 3 for number in last])
    list(batches)
    assert [made for made, _ in dataset.made[1:]] == [
        list(range(first, min(first + 3, 3 * AHEAD + 7))) for first in range(3, 3 * AHEAD + 7, 3)
    ]  # each once, but for the first, which may have been made without waiting
    assert not any(thread.is_alive() for _, thread in dataset.made if thread is not threading.main_thread())


def test_batches_passed_over_are_not_waited_for():
    dataset = Noting(400)
    dataset.open.clear()
    positions = iter(ReadAheadSampler(range(400), dataset, 2))
    assert [next(positions) for _ in range(397)] == list(range(397))
    dataset.open.set()
    assert list(positions) == [397, 398, 399]
    assert len(dataset.made) < 3 * AHEAD


def test_trouble_while_reading_ahead_is_that_of_its_batch():
    class Damaged(Noting):
        def read(self, positions):
            found = super().read(positions)
            if 5 in positions:
                raise OSError("the disk is gone")
            return found

    batches = iter(loader(Damaged(9), 2))
    assert [next(batches) for _ in range(2)] == [["example 0", "example 1"], ["example 2", "example 3"]]
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)


def test_a_loop_that_is_left_leaves_no_thread():
    dataset = Noting(100)
    positions = iter(ReadAheadSampler(range(100), dataset, 2))
    next(positions)
    assert dataset.until([2, 3])
    positions.close()
    assert not any(thread.is_alive() for _, thread in dataset.made)


def test_a_loader_worker_is_sent_nothing_of_it():
    dataset = ExampleDataset([])
    ReadAheadSampler(range(0), dataset, 2)
    dataset.expect([1], threading.Lock())  # no lock can be sent
    assert pickle.loads(pickle.dumps(dataset)).__dict__ == {"examples": [], "_expected": None}
