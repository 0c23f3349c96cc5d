"""`docs/compat.md` names everything that the modules for older programs have."""

from __future__ import annotations

import dataclasses
import inspect

from sollol import gpu_controller, hedging, intelligence, network_observer, routing_modes, routing_strategy
from tests.test_docs import missing, public

MODULES = (intelligence, gpu_controller, hedging, network_observer, routing_modes, routing_strategy)


def test_every_name_is_documented() -> None:
    for module in MODULES:
        own = {
            name: thing
            for name, thing in vars(module).items()
            if not name.startswith("_")
            and (inspect.isclass(thing) or inspect.isfunction(thing))
            and (thing.__module__ == module.__name__ or name in getattr(module, "__all__", ()))
        }
        assert own
        assert not missing(own, "compat.md"), module.__name__


def test_everything_that_they_have_is_documented() -> None:
    kinds = (
        intelligence.IntelligentRouter,
        gpu_controller.SOLLOLGPUController,
        hedging.AdaptiveHedging,
        hedging.HedgingStrategy,
        network_observer.NetworkObserver,
    )
    for kind in kinds:
        assert not missing(public(kind), "compat.md"), kind.__name__
    fields = [field.name for field in dataclasses.fields(intelligence.TaskContext)]
    assert not missing([*fields, *hedging.HedgeResult._fields, *network_observer.NetworkEvent._fields], "compat.md")
    assert not missing(network_observer.EventType.__members__, "compat.md")
