"""Generators that return their result."""

import pytest

from onrw_core.stages.progress import result_of


def counting(closed):
    try:
        yield from range(3)
        return "done"
    finally:
        closed.append(True)


def test_the_result_is_returned_and_every_state_is_passed_on():
    states, closed = [], []
    assert result_of(counting(closed), states.append) == "done"
    assert states == [0, 1, 2] and closed == [True]
    assert result_of(counting(closed)) == "done"


def test_an_error_in_the_callback_stops_the_generator():
    def cancel(state):
        if state == 1:
            raise KeyboardInterrupt("cancelled")

    closed = []
    with pytest.raises(KeyboardInterrupt, match="cancelled"):
        result_of(counting(closed), cancel)
    assert closed == [True]
