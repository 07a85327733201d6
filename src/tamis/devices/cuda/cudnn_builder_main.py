"""What a builder of cuDNN's plans runs: ``python -m tamis.devices.cuda.cudnn_builder_main DESCRIPTOR``.

Through the file descriptor it is told the GPU's properties, the versions that plans must be of, and where to store
them; then one (problem, rank) after another. It answers each with why there is no such plan, or with nothing.
"""

from __future__ import annotations

import contextlib
import functools
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection

from tamis.devices.cuda.cudnn import frontend, plan_key, versions_of
from tamis.devices.cuda.cudnn_graph import RankedPlans
from tamis.devices.cuda.cudnn_problem import ConvProblem
from tamis.errors import DeviceError
from tamis.kernels import KernelStore


def main(descriptor: int) -> None:
    """Serve until the other side closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is for the build, which then closes the connection
    with Connection(descriptor) as connection, contextlib.suppress(EOFError):
        properties, versions, folder, most_bytes = connection.recv()
        cudnn = frontend()
        if not versions.startswith(versions_of(cudnn)):
            raise SystemExit("this process found another cuDNN")
        target = {"device_property": cudnn.create_device_properties(properties)}
        store = KernelStore(folder, most_bytes)
        ranked = functools.cache(lambda problem: RankedPlans(cudnn, problem, target))
        while True:
            problem, rank = connection.recv()
            connection.send(build(ranked, problem, rank, plan_key(versions, problem, rank), store))


def build(
    ranked: Callable[[ConvProblem], RankedPlans], problem: ConvProblem, rank: int, key: str, store: KernelStore
) -> str:
    """Store the plan of a rank; why cuDNN has none, or nothing. What cannot be stored is nobody's refusal."""
    if store.read(key, "plan") is not None:
        return ""
    try:
        plans = ranked(problem)
        plans.index(rank)
    except DeviceError as error:
        return error.cause
    with contextlib.suppress(DeviceError):
        store.write(key, "plan", plans.serialize(rank))
    return ""


if __name__ == "__main__":
    main(int(sys.argv[1]))
