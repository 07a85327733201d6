"""From races to an engine."""

from __future__ import annotations

from tamis.compiler.planner.plan import plan_engine

__all__ = ["plan_engine"]
