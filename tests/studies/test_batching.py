"""Batches: which prompts go together, what is prepared beforehand, and what happens on failure."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.support.families import FAMILIES
from tests.support.tiny import tiny_llava
from tests.support.tiny_family import picture
from vlmflow import LVLM
from vlmflow.errors import InputError, is_out_of_memory
from vlmflow.lvlm.batch_size import MOST, UNMEASURED, BatchSize, check_batch
from vlmflow.lvlm.memory import free_memory, watched
from vlmflow.studies.batching import batches as batching
from vlmflow.studies.batching.ahead import Prepared, Preparer, ahead
from vlmflow.studies.batching.batches import Batches, windows
from vlmflow.tasks.base import TaskSample

CPU = torch.device("cpu")


def prepared(length, key="a", error=None):
    """A sample whose prompt has so many tokens."""
    prompt = None if error else SimpleNamespace(layout=range(length))
    return Prepared(TaskSample(key, (), "?", ()), prompt, error)


def test_prompts_of_similar_length_go_together():
    assert BatchSize(2).batches([5, 9, 4, 8, 6]) == [[2, 0], [4, 3], [1]]
    assert BatchSize(8).batches([]) == []
    assert BatchSize(1).batches([3, 3]) == [[0], [1]]


def test_a_batch_of_longer_prompts_holds_fewer():
    """Memory was measured with 100 tokens; 200 count four times, and 1,000 go alone."""
    size = BatchSize(8, tokens=100)
    assert size.batches([50] * 8 + [200] * 3 + [1000] * 2) == [
        [0, 1, 2, 3, 4, 5, 6, 7], [8, 9], [10], [11], [12],
    ]  # fmt: skip


def test_automatic_sizes_follow_memory():
    assert BatchSize.measured(100, taken=1000, free=10_000) == BatchSize(6, 100)
    # Memory for 64 prompts of 100 tokens is memory for 16 of twice as many.
    assert BatchSize.measured(100, taken=600, free=64_000) == BatchSize(MOST, 200)
    assert BatchSize.measured(100, taken=1000, free=10) == BatchSize(1, 100)
    assert BatchSize.measured(100, taken=0, free=10**6).room(1000) == MOST
    for taken, free in ((None, 10), (10, None)):
        assert BatchSize.measured(100, taken, free) == BatchSize(UNMEASURED, 100)


@pytest.mark.parametrize("batch", [0, -1, 1.5, True, None, "many", "4"])
def test_sizes_that_make_no_sense_are_refused(batch):
    with pytest.raises(InputError, match="batch="):
        check_batch(batch)


def test_items_come_in_order_with_work_done_beforehand_in_one_other_thread():
    begun, drawn = [], []

    def items():
        for number in range(6):
            drawn.append((number, threading.current_thread()))
            yield number

    def work(number):
        begun.append(threading.current_thread())
        return number * number

    together = ahead(work, items(), 2)
    assert next(together) == (0, 0)
    assert len(drawn) == 3  # itself and two more
    assert list(together) == [(number, number * number) for number in range(1, 6)]
    assert {thread for _, thread in drawn} == {threading.current_thread()}
    assert len(set(begun)) == 1
    assert threading.current_thread() not in begun


def test_what_fails_ahead_is_raised_in_its_turn_and_no_thread_stays():
    def work(number):
        if number == 1:
            raise ValueError("one")
        return number

    together = ahead(work, range(5), 2)
    assert next(together) == (0, 0)
    with pytest.raises(ValueError, match="one"):
        next(together)
    stopped = ahead(work, iter([0, 0, 0, 0]), 2)
    next(stopped)
    stopped.close()
    assert not [
        thread for thread in threading.enumerate() if thread.name.startswith("vlmflow-ahead")
    ]


def test_windows_take_what_is_there():
    assert list(windows(iter(range(batching.WINDOW + 1)), "auto")) == [
        list(range(batching.WINDOW)),
        [batching.WINDOW],
    ]


def test_a_batch_without_memory_is_halved_and_so_are_those_to_come():
    sizes = []

    def work(batch):
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [item.sample.key for item in batch]

    batches = Batches(8, CPU)
    items = [prepared(5, key) for key in "abcdefgh"]
    (batch,) = batches.plan(items, work)
    assert batches.run(work, [items[place] for place in batch]) == list("abcdefgh")
    assert sizes == [8, 4, 2, 2, 4, 2, 2]
    assert batches.plan(items, work) == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_a_single_sample_without_memory_fails_alone():
    def work(batch):
        if any(item.sample.key == "c" for item in batch):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [item.sample.key for item in batch]

    results = Batches(4, CPU).run(work, [prepared(5, key) for key in "abcd"])
    assert results[:2] + results[3:] == ["a", "b", "d"]
    assert is_out_of_memory(results[2])
    assert results[2].__traceback__ is None  # it would keep the tensors


def test_another_error_is_looked_for_in_each_sample():
    sizes = []

    def work(batch):
        sizes.append(len(batch))
        if any(item.sample.key == "b" for item in batch):
            raise ValueError("b")
        return [item.sample.key for item in batch]

    broken = prepared(5, "x", error=InputError("broken"))
    batches = Batches(4, CPU)
    first, second, third, fourth = batches.run(
        work, [prepared(5), prepared(5, "b"), broken, prepared(5)]
    )
    assert (first, str(second), third, fourth) == ("a", "b", broken.error, "a")
    assert sizes == [3, 1, 1, 1]
    assert batches.size == BatchSize(4)  # it was not memory


def test_an_automatic_size_is_estimated_once_from_a_prompt_that_runs(monkeypatch):
    ran = []

    def work(batch):
        ran.append([item.sample.key for item in batch])
        return [None] * len(batch)

    monkeypatch.setattr(batching, "free_memory", lambda device: 10**12)
    batches = Batches("auto", CPU)
    items = [prepared(0, "x", error=InputError("broken")), prepared(7, "a"), prepared(5, "b")]
    assert batches.plan(items[:2], work) == [[0], [1]]
    assert ran == []  # one goes alone whatever memory holds
    assert batches.plan(items, work) == [[0], [2, 1]]
    assert ran == [["a"]]
    assert batches.size.room(7) == MOST
    assert batches.plan(items, work) == [[0], [2, 1]]
    assert ran == [["a"]]


def test_memory_that_a_block_takes_is_seen():
    with watched(CPU) as growth:
        taken = np.ones(30_000_000)  # 240 MB, touched
        del taken
    if growth.bytes is None:
        pytest.skip("this system does not tell a process how much memory it took at most")
    assert 200e6 < growth.bytes < 400e6
    free = free_memory(CPU)
    assert free is None or 0 < free < 10**13


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            True,
        ),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated"), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_of_memory_are_told_from_others(error, expected):
    assert is_out_of_memory(error) is expected


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_processor_can_be_copied_and_prepares_the_same(family):
    vlm = family.lvlm()
    preparer = Preparer(vlm)
    assert preparer.beside
    sample = TaskSample("a", (picture(0, (50, 40)),), "What is it?", ())
    [(_, own)] = preparer.ahead(preparer.prepare, [sample])
    expected = vlm.prepare(sample.pictures, sample.question)
    assert own.prompt.inputs.keys() == expected.inputs.keys()
    for name, tensor in expected.inputs.items():
        assert torch.equal(own.prompt.inputs[name], tensor)


def test_a_processor_that_cannot_be_copied_prepares_in_the_models_thread():
    model, processor = tiny_llava(7, layers=2)

    class Fixed(type(processor)):
        def __deepcopy__(self, memo):
            raise TypeError("not to be copied")

    processor.__class__ = Fixed
    preparer = Preparer(LVLM(model, processor))
    threads = []

    def work(sample):
        threads.append(threading.current_thread())
        return preparer.prepare(sample)

    samples = [TaskSample("a", (picture(0, (50, 40)),), "What is it?", ())]
    [(_, own)] = preparer.ahead(work, samples)
    assert own.error is None
    assert threads == [threading.current_thread()]
