from __future__ import annotations

from batch_llm.stores.seen_ids import SeenIds


def test_an_id_that_was_noted_is_always_known():
    seen = SeenIds()
    for n in range(20_000):
        seen.add(f"row-{n}")

    assert all(seen.add(f"row-{n}") for n in range(20_000))


def test_hardly_a_new_id_is_taken_for_a_known_one():
    seen = SeenIds()

    assert sum(seen.add(f"row-{n}") for n in range(100_000)) < 200
