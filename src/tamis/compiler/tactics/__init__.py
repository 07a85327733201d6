"""What could run a layer, from the simplest to the most special; a tie in a race goes to the earlier one."""

from __future__ import annotations

from tamis.compiler.tactics.aten import Aten
from tamis.compiler.tactics.base import Tactic
from tamis.compiler.tactics.chain import TamisChain
from tamis.compiler.tactics.linear import TamisLinear
from tamis.compiler.tactics.onednn import OneDnn
from tamis.compiler.tactics.openvino import OpenVino
from tamis.compiler.tactics.region import RegionTactic

TACTICS: tuple[Tactic, ...] = (Aten(), OneDnn(), TamisLinear())
REGION_TACTICS: tuple[RegionTactic, ...] = (OpenVino(), TamisChain())
