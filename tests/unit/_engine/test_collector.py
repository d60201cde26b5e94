from __future__ import annotations

import gc
import threading
import weakref

import pytest

from batch_llm import ParallelBatchProcessor
from batch_llm._engine.collector import YOUNG_OBJECTS, collecting_less
from fakes import Script, item


@pytest.fixture(autouse=True)
def usual_collector():
    """Start from what an interpreter comes with, whatever other tests have left."""
    threshold, was_enabled = gc.get_threshold(), gc.isenabled()
    gc.enable()
    gc.unfreeze()
    gc.set_threshold(700, 10, 10)
    yield
    gc.unfreeze()
    gc.set_threshold(*threshold)
    if not was_enabled:
        gc.disable()


def state():
    return gc.isenabled(), gc.get_threshold(), gc.get_freeze_count() > 0


def test_within_the_block_it_looks_less_often_and_not_at_what_was_there():
    with collecting_less():
        assert state() == (True, (YOUNG_OBJECTS, 10, 10), True)
    assert state() == (True, (700, 10, 10), False)


def test_it_is_put_back_after_an_error():
    with pytest.raises(RuntimeError), collecting_less():
        raise RuntimeError
    assert state() == (True, (700, 10, 10), False)


def test_of_overlapping_blocks_the_last_one_puts_it_back():
    first, second = collecting_less(), collecting_less()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert state() == (True, (YOUNG_OBJECTS, 10, 10), True)

    ended = threading.Thread(target=second.__exit__, args=(None, None, None))
    ended.start()
    ended.join()

    assert state() == (True, (700, 10, 10), False)


@pytest.mark.parametrize("threshold", [(50_000, 20, 100), (0, 10, 10), (701, 10, 10)])
def test_whoever_has_tuned_it_is_left_alone(threshold):
    gc.set_threshold(*threshold)
    with collecting_less():
        assert state() == (True, threshold, False)
    assert state() == (True, threshold, False)


def test_whoever_has_switched_it_off_is_left_alone():
    gc.disable()
    with collecting_less():
        assert state() == (False, (700, 10, 10), False)
    assert state() == (False, (700, 10, 10), False)


def test_whoever_has_frozen_objects_keeps_them_frozen():
    gc.freeze()
    with collecting_less():
        assert gc.get_threshold() == (700, 10, 10)
    assert gc.get_freeze_count() > 0


def test_who_tunes_it_within_the_block_keeps_that():
    with collecting_less():
        gc.set_threshold(9, 9, 9)
    assert state() == (True, (9, 9, 9), False)


def test_rubbish_from_within_the_block_is_collected():
    class Node:
        pass

    with collecting_less():
        node = Node()
        node.itself = node
        seen = weakref.ref(node)
        del node
        gc.collect()
        assert seen() is None


async def test_a_run_collects_less_and_puts_it_back():
    seen = []

    class Looks(Script):
        async def __call__(self, *args):
            seen.append(state())
            return await super().__call__(*args)

    await ParallelBatchProcessor().process([item("a", Looks())])

    assert seen == [(True, (YOUNG_OBJECTS, 10, 10), True)]
    assert state() == (True, (700, 10, 10), False)
