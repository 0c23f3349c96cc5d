"""Take keywords of older versions and of Ollama's options whose meaning is clear, each with one warning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from sollol.core.types import RoutingMode
from sollol.errors import BadInput
from sollol.pool.keywords import OPTIONS, RENAMED_OPTIONS, in_options, warn_once
from sollol.workload.call_options import CallOptions
from sollol.workload.validation import check_flag, check_mode, short

ROUTING: Final = frozenset(["routing_mode", "prefer_cpu", "min_success_rate"])


def take_former(
    verb: str, call: CallOptions, given: Mapping[str, Any], known: frozenset[str]
) -> tuple[CallOptions, Mapping[str, Any]]:
    """Return the call and its fields in the words of today. `known`: the fields of the verb.

    Raises:
        BadInput: A value cannot be used, or an option is given twice.
    """
    if not given or given.keys() <= known:
        return call, given
    fields = dict(given)
    options: dict[str, Any] = {}
    for name in given.keys() - known:
        option = name if name in OPTIONS else RENAMED_OPTIONS.get(name)
        if option is not None and "options" in known:
            options[option] = fields.pop(name)
            warn_once(f"{verb}({name}=...) is taken; {in_options(option, ...)}")
    if options:
        present = fields.get("options")
        if present is not None and not isinstance(present, Mapping):
            raise BadInput(f"{verb}: {', '.join(options)} beside options={short(present)}; set them there")
        twice = options.keys() & (present or {}).keys()
        if twice:
            raise BadInput(f"{verb}: {', '.join(sorted(twice))} is given twice, also in options=; expected it once")
        fields["options"] = {**(present or {}), **{k: v for k, v in options.items() if v is not None}}
    return _routed(verb, call, fields), fields


def _routed(verb: str, call: CallOptions, fields: dict[str, Any]) -> CallOptions:
    """Return the call with the mode that former keywords describe, and remove these from `fields`."""
    former = {name: fields.pop(name) for name in ROUTING & fields.keys()}
    if not former:
        return call
    mode = check_mode(former.get("routing_mode"))
    if mode is not None:
        warn_once(f"{verb}(routing_mode=...) is taken; it is mode={mode.value!r} today")
    prefers_cpu = check_flag("prefer_cpu", former.get("prefer_cpu") or False)
    if prefers_cpu and mode in (None, RoutingMode.ASYNC):
        warn_once(f"{verb}(prefer_cpu=True) is taken; it is mode='async' today: fast nodes stay free")
        mode = RoutingMode.ASYNC
    elif prefers_cpu:
        raise BadInput(f"{verb}: prefer_cpu=True with routing_mode={mode!r}; expected only one: mode='async'")
    least = former.get("min_success_rate") or 0.0
    if isinstance(least, bool) or not isinstance(least, (int, float)) or not 0 <= least <= 1:
        raise BadInput(f"{verb}: min_success_rate={short(least)}; expected a share from 0 to 1")
    if least and mode in (None, RoutingMode.RELIABLE):
        warn_once(f"{verb}(min_success_rate=...) is taken; it is mode='reliable' today: failures count")
        mode = RoutingMode.RELIABLE
    elif least:
        raise BadInput(
            f"{verb}: min_success_rate={least} with routing_mode={mode!r}; expected only one: mode='reliable'"
        )
    return call if mode is None else call._replace(mode=mode)
