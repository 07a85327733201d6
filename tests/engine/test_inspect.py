from __future__ import annotations

import json

from sample_engines import make_engine
from tamis.engine import describe, from_json, summarize


def test_summary_counts_what_the_engine_holds() -> None:
    summary = summarize(make_engine())
    assert summary.steps == 3
    assert summary.flops == 24
    assert summary.kernels == {"fake.add": 2, "fake.scale": 1}
    assert summary.precisions == {"float32": 3}
    assert summary.sparsities == {"dense": 3}
    assert summary.eligible_layers == summary.sparse_layers == ("scale",)
    assert summary.weight_bytes == 4 + 16 * 8 * 4 + 3 * 5 * 2 + 7 + 8 + 2
    assert (summary.arena_bytes, summary.peak_bytes) == (128, 96)


def test_description_is_json_and_holds_the_whole_plan() -> None:
    engine = make_engine()
    data = json.loads(json.dumps(describe(engine), allow_nan=False))
    assert from_json(json.dumps(data["plan"])) == engine.plan
    assert data["tensors"]["half"] == {"shape": [3, 5], "dtype": "bfloat16", "bytes": 30}
