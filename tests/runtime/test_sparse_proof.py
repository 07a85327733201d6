"""The proof that sparse steps run sparse kernels: names, ranges, and what is done when it fails."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sample_engines import FakeDevice, make_engine, make_plan
from tamis.devices.cuda.kernel_names import assign
from tamis.engine import Engine
from tamis.runtime import Session, step_kernels, unproven
from tamis.runtime.sparse_proof import names_sparse

X = np.arange(8, dtype=np.float32).reshape(2, 4)


@pytest.mark.parametrize(
    "name",
    [
        "sm90_xmma_sparse_gemm_f16f16_f16f32_f32_tn_n_tilesize128x128x64",
        "cusparseLt::spmma_kernel",
        "tamis_wgmma_sp_f16",
        "HGMMA.SP.64x256x32.F32",
        "tamis_chain_run<avx512_bf16; 2:4 bfloat16>",
    ],
)
def test_sparse_names(name: str) -> None:
    assert names_sparse(name)


@pytest.mark.parametrize(
    "name",
    [
        "nchw_to_nhwc_transpose",
        "splitKreduce_kernel",
        "sm80_xmma_fprop",
        "void dispatch<1>",
        "tamis_chain_run<amx; dense bfloat16>",
    ],
)
def test_dense_names(name: str) -> None:
    assert not names_sparse(name)


def test_kernels_belong_to_the_part_that_was_running() -> None:
    kernels = [(5.0, "late"), (1.5, "a"), (0.5, "before all"), (1.2, "b"), (3.0, "c")]
    assert assign(kernels, [1.0, 2.0, 2.5]) == [("b", "a"), (), ("c", "late")]


def test_a_step_without_a_sparse_kernel_is_found() -> None:
    plan = make_plan()
    steps = (replace(plan.steps[0], sparsity="2:4"), *plan.steps[1:])
    session = Session(Engine(replace(plan, steps=steps), make_engine().tensors), device=FakeDevice())
    found = step_kernels(session, [X])
    assert [each.kernels for each in found] == [(f"run_{step.kernel}",) for step in steps]
    assert [each.step.name for each in unproven(found)] == [steps[0].name]
