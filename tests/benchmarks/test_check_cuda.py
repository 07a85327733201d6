"""check_cuda.py: what it makes of exit codes and of what pytest prints."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

import check_cuda
from check_cuda import Group, groups, result_of, run_groups, table

FAILED = """
=========== short test summary info ===========
FAILED tests/cuda/test_x.py::test_a[1-2] - AssertionError: off by 0.5 at 12
FAILED tests/cuda/test_x.py::test_a[3-4] - AssertionError: off by 0.7 at 9
ERROR tests/cuda/test_x.py::test_b - RuntimeError: no kernel
2 failed, 30 passed, 1 error in 9.10s
"""

# As pytest prints it, 80 columns wide: no room for messages in the last lines.
WITHOUT_MESSAGES = """
FEFF                                                                     [100%]
==================================== ERRORS ====================================
_______________________ ERROR collecting tests/cuda/test_y.py __________________
tests/cuda/test_y.py:1: in <module>
    import nothing
E   ModuleNotFoundError: No module named 'nothing'
_________________________ ERROR at setup of test_b _____________________________
E   RuntimeError: no kernel
=================================== FAILURES ===================================
_ test_every_rank_against_float64[float32-exact gelu follows] _
tests/matrix_layers.py:120: in __init__
    self.runners.append(binder(step))
E   KeyError: 'n'
_________________ test_every_rank_against_float64[float16-odd] _________________
E   KeyError: 'n'
_________________________________ TestX.test_c _________________________________
E   KeyError: 'channels'

The above exception was the direct cause of the following exception:
tests/cuda/test_x.py:9: in test_c
E   AssertionError:
E   Not equal to tolerance rtol=0
E   Mismatched elements: 1
=========================== short test summary info ============================
FAILED tests/cuda/test_x.py::test_every_rank_against_float64[float32-exact gelu follows]
FAILED tests/cuda/test_x.py::test_every_rank_against_float64[float16-odd] - K...
FAILED tests/cuda/test_x.py::TestX::test_c
ERROR tests/cuda/test_y.py
ERROR tests/cuda/test_x.py::test_b - R...
3 failed, 2 errors in 9.10s
"""


def test_messages_are_those_of_the_failures_where_the_list_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_cuda, "REASONS", 9)
    assert result_of("x", 1, WITHOUT_MESSAGES, 9.0).reasons == (
        "2x test_every_rank_against_float64[float32-exact gelu follows]: KeyError: 'n'",
        "1x TestX::test_c: AssertionError: Not equal to tolerance rtol=0",
        "1x tests/cuda/test_y.py: ModuleNotFoundError: No module named 'nothing'",
        "1x test_b: RuntimeError: no kernel",
    )


def test_failures_are_summarised_by_cause() -> None:
    result = result_of("x", 1, FAILED, 9.0)
    assert result.verdict == "FAILED" and result.summary == "2 failed, 30 passed, 1 error in 9.10s"
    assert result.reasons == ("2x test_a[1-2]: AssertionError: off by 0.5 at 12", "1x test_b: RuntimeError: no kernel")


def test_verdicts() -> None:
    assert result_of("x", 0, "40 passed in 2s", 1.0).verdict == "ok"
    assert result_of("x", 0, "40 skipped in 2s", 1.0).verdict == "SKIPPED"
    assert result_of("x", 0, "30 passed, 10 skipped in 2s", 1.0).verdict == "ok"
    assert result_of("x", None, "tests/a.py ....", 1.0).verdict == "TIME"
    assert result_of("x", -11, "tests/a.py ..", 1.0).summary.startswith("SIGSEGV")
    assert result_of("x", 1, "Traceback\nValueError: bad", 1.0).summary == "ValueError: bad"


def test_groups_run_beside_each_other_each_with_its_limit(tmp_path: Path) -> None:
    def python(code: str) -> tuple[str, ...]:
        return (sys.executable, "-c", code)

    chosen = [
        Group("good", python("print('fine, thank you')"), 30.0),
        Group("hangs", python("import time; print('waiting', flush=True); time.sleep(60)"), 3.0),
        Group("crashes", python("import os; os.abort()"), 30.0),
    ]
    start = time.monotonic()
    results = run_groups(chosen, tmp_path, 30.0, 3)
    assert time.monotonic() - start < 25
    assert [result.verdict for result in results] == ["ok", "TIME", "CRASH"]
    assert "fine, thank you" in (tmp_path / "check.log").read_text()
    assert "SIGABRT" in table(results)
    assert run_groups(chosen[:1], tmp_path, 0.0, 1)[0].verdict == "not run"


def test_every_part_has_a_group() -> None:
    names = [group.name for group in groups()]
    assert {"versions", "cublaslt", "cusparselt", "cudnn", "kernels", "build small-resnet50", "build small-mlp"} <= set(
        names
    )
