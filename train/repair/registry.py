"""The ways of repairing a LoRA, from the cheapest on."""
from rotescope.train.repair.base_anchored import BaseAnchored
from rotescope.train.repair.leak_directed import LeakDirected
from rotescope.train.repair.strength import Strength
from rotescope.train.repair.unlearning import Unlearning
from rotescope.train.repair.weight_repair import WeightRepair

WAYS: dict[str, type[WeightRepair]] = {way.name: way for way in (Strength, BaseAnchored, LeakDirected, Unlearning)}
