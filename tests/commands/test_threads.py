"""Several items at a time."""

import threading
import time

import pytest
import torch

from onrw_core.commands.journal import finish_all, local
from onrw_core.commands.threads import AHEAD, in_order, side_thread


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


def test_what_runs_beside_the_main_thread_has_no_team():
    """A team of its own would make more threads than cores, and the main team sleep between its operations."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)

    def team(_) -> int:
        large = torch.ones(10**6)
        (large * large).exp()  # an operation that OpenMP shares out
        return torch.get_num_threads()

    try:
        with side_thread() as thread:
            assert thread.submit(team, None).result() == 1 and torch.get_num_threads() == 3
        sides, mains = [], []
        jobs = local(range(4), lambda job: sides.append(team(job)) or job, lambda job: mains.append(team(job)))
        finish_all(jobs, lambda job, outcome: sides.append(team(job)))
        assert sides == [1] * 8 and mains == [3] * 4
    finally:
        torch.set_num_threads(before)
