"""When a load in advance pays, without a scheduler."""

from __future__ import annotations

from sollol.policies.preloading import SkiRentalPreloader


def test_a_model_is_loaded_once_the_tasks_have_waited_as_long_as_the_load_takes() -> None:
    preloader = SkiRentalPreloader()
    assert not preloader.loads(waited_us=999, load_us=1_000)
    assert preloader.loads(waited_us=1_000, load_us=1_000)


def test_the_price_is_a_knob() -> None:
    assert SkiRentalPreloader(price=0).loads(waited_us=0, load_us=1_000)
    assert not SkiRentalPreloader(price=2).loads(waited_us=1_999, load_us=1_000)
