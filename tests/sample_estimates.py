"""Made-up estimates for tests."""

from __future__ import annotations

from tamis.engine import DeviceInfo, Estimate, LayerEstimate, Port, Runner, Timing, Versus
from tamis.engine.estimate import ESTIMATE_VERSION, WeightState
from tamis.formats.dtype import DType


def timing(us: float) -> Timing:
    """A time that hardly scatters."""
    return Timing(us, us * 0.99, us * 1.01, 31)


def layer(
    name: str, dense_us: float, sparse_us: float | None, *, state: WeightState = "prunable", carries: bool = False
) -> LayerEstimate:
    """A layer of which 2:4 pays when it takes less than 0.97 of the dense time; its weight is ``name.weight``."""
    reason = "reduction axis of 3 is not a multiple of 4" if state == "ineligible" else ""
    none = "no sparse kernel: tamis.linear: a 3x3 convolution is not a matrix product"
    pays = sparse_us is not None and sparse_us < 0.97 * dense_us
    return LayerEstimate(
        name=name,
        kind="Linear",
        description="Linear [1,64] -> [1,64]",
        origin=(name,),
        weights=(f"{name}.weight",),
        modules=(name,),
        state=state,
        reason=reason,
        dense=Runner("onednn", DType.FLOAT32, timing(dense_us)),
        sparse=None if sparse_us is None else Runner("tamis.linear", DType.FLOAT32, timing(sparse_us)),
        pays=pays,
        carries=carries,
        why="" if carries or reason else none if sparse_us is None else "no faster in 2:4 by more than the noise",
    )


def sample_estimate() -> Estimate:
    """Two layers that carry a gain, one that is not faster, one without a sparse kernel and one that is not eligible."""
    return Estimate(
        version=ESTIMATE_VERSION,
        tamis="0.1.0",
        model="net",
        device=DeviceInfo("cpu", "a fake", "x86_64", 2, (), {}),
        threads=2,
        precisions=(DType.FLOAT32,),
        pattern="2:4",
        inputs=(Port("image", (1, 3, 8, 8), DType.FLOAT32),),
        cold=False,
        seconds=1.0,
        whole=Versus(timing(125.0), timing(100.0), 1.25, 1.2, 1.3, True),
        layers=(
            layer("fc1", 40.0, 25.0, carries=True),
            layer("fc2", 30.0, 20.0, carries=True),
            layer("fc3", 20.0, 20.2),
            layer("conv", 20.0, None),
            layer("stem", 10.0, None, state="ineligible"),
        ),
    )
