"""What a run will cost, before anything is loaded."""

from climafuse.planning.backbones import Architecture, find_architecture
from climafuse.planning.devices import DEVICES, Device, device, memory_of, this_gpu, this_machine
from climafuse.planning.memory import Footprint, measure
from climafuse.planning.planner import Change, Plan, plan
from climafuse.planning.probe import Pace
from climafuse.planning.workload import Workload

__all__ = [
    "DEVICES",
    "Architecture",
    "Change",
    "Device",
    "Footprint",
    "Pace",
    "Plan",
    "Workload",
    "device",
    "find_architecture",
    "measure",
    "memory_of",
    "plan",
    "this_gpu",
    "this_machine",
]
