"""Several items at a time."""

import threading
import time

import pytest
import torch

from onrw_core.threads import AHEAD, in_order


def test_results_come_in_order_and_errors_stay_with_their_item():
    def work(i: int) -> int:
        time.sleep(0.02 * (i % 3 == 0))
        if i == 4:
            raise ValueError("four")
        return i * i

    found = list(in_order(work, range(9), threads=3))
    assert [item for item, _ in found] == list(range(9))
    assert [future.result() for item, future in found if item != 4] == [i * i for i in range(9) if i != 4]
    with pytest.raises(ValueError, match="four"):
        found[4][1].result()


def test_several_at_a_time_each_with_one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        meet = threading.Barrier(2, timeout=20)
        assert [f.result() for _, f in in_order(lambda _: (meet.wait(), torch.get_num_threads())[1], range(4), 2)] == [
            1
        ] * 4
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_items_are_taken_as_they_are_needed():
    taken = []

    def items():
        for i in range(100):
            taken.append(i)
            yield i

    results = in_order(lambda i: i, items(), threads=2)
    next(results)
    assert len(taken) <= 2 * AHEAD
    results.close()  # what was not begun is not done
    assert len(taken) <= 2 * AHEAD
