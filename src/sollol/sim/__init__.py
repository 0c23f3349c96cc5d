"""Simulate Ollama nodes, time and faults, to test code that uses SOLLOL or any client of Ollama.

In simulated time: `run`, `World`, `SimTransport`. Over real HTTP: `serve`, `sim_cluster`, `spawn`, and on the command
line `sollol sim --nodes 4`.
"""

from __future__ import annotations

from sollol.sim.check import fluid_bound, percentile
from sollol.sim.faults import FaultEvent, Faults
from sollol.sim.loop import OutsideSimulation, SimLoop, SimulationDeadlock, run
from sollol.sim.models import ModelSpec, NodeSpec
from sollol.sim.node import SimNode
from sollol.sim.serve import Cluster, Served, free_port, serve, sim_cluster
from sollol.sim.spawn import SpawnedNode, spawn, spawn_many
from sollol.sim.world import SimTransport, World

__all__ = [
    "Cluster",
    "FaultEvent",
    "Faults",
    "ModelSpec",
    "NodeSpec",
    "OutsideSimulation",
    "Served",
    "SimLoop",
    "SimNode",
    "SimTransport",
    "SimulationDeadlock",
    "SpawnedNode",
    "World",
    "fluid_bound",
    "free_port",
    "percentile",
    "run",
    "serve",
    "sim_cluster",
    "spawn",
    "spawn_many",
]
