"""What a build produces: the plan, the weights, and the one file that holds both."""

from tamis.engine.check import check_plan
from tamis.engine.file import Engine, is_engine, read, replaced_file, save
from tamis.engine.inspect import Summary, describe, is_sparse, summarize
from tamis.engine.plan import (
    PLAN_VERSION,
    Accuracy,
    Buffer,
    Candidate,
    DeviceInfo,
    EngineRecord,
    Format,
    LayerRecord,
    Plan,
    Port,
    RegionRecord,
    Step,
    Timing,
    from_json,
    to_json,
)

__all__ = [
    "Accuracy",
    "Buffer",
    "Candidate",
    "DeviceInfo",
    "Engine",
    "EngineRecord",
    "Format",
    "LayerRecord",
    "PLAN_VERSION",
    "Plan",
    "Port",
    "RegionRecord",
    "Step",
    "Summary",
    "Timing",
    "check_plan",
    "describe",
    "from_json",
    "is_engine",
    "is_sparse",
    "read",
    "replaced_file",
    "save",
    "summarize",
    "to_json",
]
