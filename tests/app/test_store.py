"""What the app keeps goes when it is old or too much, and under names that nobody guesses."""

from __future__ import annotations

from vlmflow.app.store import Store


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_names_cannot_be_guessed():
    store: Store[int] = Store(10**6, 100)
    names = {store.add(number, 1) for number in range(500)}
    assert len(names) == 500
    assert min(map(len, names)) >= 32  # 24 bytes: 192 bits
    assert all(name.replace("-", "").replace("_", "").isalnum() for name in names)
    assert store.get("0") is None


def test_what_nobody_used_for_long_is_gone_and_what_was_used_stays():
    clock = Clock()
    store: Store[str] = Store(100, 10, clock)
    used, unused = store.add("used", 1), store.add("unused", 1)
    clock.now = 9
    assert store.get(used) == "used"
    clock.now = 12
    assert (store.get(used), store.get(unused)) == ("used", None)
    clock.now = 30
    assert store.get(used) is None


def test_too_much_pushes_out_what_was_used_least_recently():
    store: Store[int] = Store(30, 100, Clock())
    first, second, third = (store.add(number, 10) for number in range(3))
    assert store.get(first) == 0
    fourth = store.add(3, 10)
    assert [store.get(name) for name in (first, second, third, fourth)] == [0, None, 2, 3]
    store.resize(fourth, 25)
    assert [store.get(name) for name in (first, third, fourth)] == [None, None, 3]
    large = store.add(4, 1000)  # the newest stays, or nothing could be asked
    assert (store.get(fourth), store.get(large)) == (None, 4)
    store.drop(large)
    assert store.get(large) is None
