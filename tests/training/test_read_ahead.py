import threading

import pytest

from climafuse.data.batch import EpochSampler
from climafuse.training.read_ahead import AHEAD, ReadAheadSampler


class Asked:
    """Notes what it is asked for, and can be waited for."""

    def __init__(self):
        self.batches, self.threads, self.changed = [], set(), threading.Condition()

    def __call__(self, positions):
        with self.changed:
            self.batches.append(list(positions))
            self.threads.add(threading.current_thread())
            self.changed.notify_all()

    def until(self, batch):
        with self.changed:
            return self.changed.wait_for(lambda: batch in self.batches, timeout=10)


@pytest.mark.parametrize(("num", "size"), [(12, 4), (11, 4), (3, 4), (0, 4), (5, 1)])
def test_gives_what_the_other_sampler_gives_in_every_epoch(num, size):
    order = EpochSampler(num, seed=3)
    sampler = ReadAheadSampler(order, lambda positions: None, size)
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        assert list(sampler) == list(order)
        assert len(sampler) == num
    assert order.epoch == 0


def test_some_batches_are_asked_for_before_their_turn_by_another_thread():
    asked = Asked()
    positions = iter(ReadAheadSampler(range(3 * AHEAD + 7), asked, 3))
    assert next(positions) == 0
    last = list(range(3 * AHEAD, 3 * AHEAD + 3))
    assert asked.until(last)
    assert asked.batches[-1] == last  # and no more than that
    assert [next(positions) for _ in range(3)] == [1, 2, 3]
    assert asked.until([number + 3 for number in last])
    assert threading.current_thread() not in asked.threads
    assert list(positions) == list(range(4, 3 * AHEAD + 7))
    assert sorted(asked.batches) == asked.batches
    assert not any(thread.is_alive() for thread in asked.threads)


def test_batches_passed_over_are_not_waited_for():
    going, asked = threading.Event(), []

    def slow(positions):
        going.wait(10)
        asked.append(list(positions))

    positions = iter(ReadAheadSampler(range(40), slow, 2))
    passed = [next(positions) for _ in range(37)]
    going.set()
    assert passed + list(positions) == list(range(40))
    assert 0 < len(asked) < 8


def test_trouble_while_reading_ahead_shows_where_the_sample_is_read():
    def fail(positions):
        raise OSError("the disk is gone")

    assert list(ReadAheadSampler(range(5), fail, 2)) == [0, 1, 2, 3, 4]


def test_a_loop_that_is_left_leaves_no_thread():
    asked = Asked()
    positions = iter(ReadAheadSampler(range(100), asked, 2))
    next(positions)
    assert asked.until([2, 3])
    positions.close()
    assert not any(thread.is_alive() for thread in asked.threads)
