"""How many items go to a forward pass: what is asked for, what memory holds, what is left of it."""

from __future__ import annotations

import pytest
import torch

from vlmflow.errors import InputError
from vlmflow.lvlm.batch_size import MOST, BatchSize
from vlmflow.trust import passes as module
from vlmflow.trust.passes import Passes

CPU = torch.device("cpu")


def run(passes, count, tokens=10, most=1000):
    """What every pass was over, those that failed among them, and all that came out."""
    tried, done = [], []

    def work(items):
        tried.append(len(items))
        if len(items) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return list(items)

    for items, result in passes.over(count, tokens, work):
        assert list(items) == result
        done += result
    assert done == list(range(count))
    return tried


def test_as_many_as_are_asked_for():
    assert run(Passes(3, CPU), 8) == [3, 3, 2]
    assert run(Passes(3, CPU), 8, tokens=10**6) == [3, 3, 2]
    assert run(Passes(1, CPU), 2) == [1, 1]


def test_the_first_pass_says_how_many_fit_and_counts(monkeypatch):
    monkeypatch.setattr(module, "free_memory", lambda device: 10**12)
    passes = Passes("auto", CPU)
    assert run(passes, 40) == [1, MOST, MOST, 7]
    assert run(passes, 40) == [MOST, MOST, 8]  # it is known then
    assert passes.room(10) == MOST


def test_little_memory_means_few(monkeypatch):
    monkeypatch.setattr(module, "free_memory", lambda device: 0)
    assert run(Passes("auto", CPU), 3) == [1, 1, 1]


def test_where_memory_runs_out_that_pass_is_halved_and_those_to_come():
    passes = Passes(8, CPU)
    assert run(passes, 8, most=3) == [8, 4, 2, 2, 2, 2]
    assert run(passes, 4, most=3) == [2, 2]
    assert passes.room(10) == 2


def test_what_ran_out_for_a_long_prompt_leaves_short_ones_their_number():
    passes = Passes("auto", CPU)
    passes.size = BatchSize(16, 100)
    assert passes.room(200) == 4
    passes.size = passes.size.halved(4, 200)
    assert (passes.room(200), passes.room(100)) == (2, 8)
    passes.size = passes.size.halved(4, 200)  # another batch that was made before
    assert passes.room(200) == 2


@pytest.mark.parametrize("batch", [2, "auto"])
def test_at_one_item_the_error_is_raised_as_it_was(batch):
    with pytest.raises(torch.OutOfMemoryError, match=r"^CUDA out of memory\.$"):
        run(Passes(batch, CPU), 2, most=0)


def test_no_other_error_is_tried_again():
    tried = []

    def work(items):
        tried.append(len(items))
        raise ValueError("of another kind")

    with pytest.raises(ValueError, match="of another kind"):
        list(Passes(4, CPU).over(8, 10, work))
    assert tried == [4]


@pytest.mark.parametrize("batch", [0, "none", True, 1.5, None])
def test_what_is_no_number_of_items_is_refused(batch):
    with pytest.raises(InputError, match=r"batch=.*; give an integer from 1 .*, or auto"):
        Passes(batch, CPU)
