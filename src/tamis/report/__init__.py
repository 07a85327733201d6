"""Reports about engines and runs: rich text for people, plain data for machines."""

from tamis.report.conditions import condition_lines, state_text
from tamis.report.crossover import crossover_report
from tamis.report.crossover_picture import check_picture, draw_crossover
from tamis.report.deviations import Deviation, deviation, deviation_data, deviation_table, first_beyond
from tamis.report.estimate import estimate_conditions, estimate_report, estimate_verdict
from tamis.report.measured import (
    bench_data,
    bench_lines,
    kernels_data,
    kernels_table,
    profile_data,
    profile_table,
)
from tamis.report.races import Explanation, explain, explain_data, explanation
from tamis.report.sensitivity import draw_sensitivity, plan_lines, sensitivity_report
from tamis.report.sparsity import best, both_times, sparsity_data, sparsity_lines
from tamis.report.summary import (
    build_data,
    build_summary,
    difference_of_engines,
    differing_layers,
    inspect,
)
from tamis.report.tables import plain, table
from tamis.report.units import counted, microseconds, shape, size
from tamis.report.verdict import Verdict, verdict

__all__ = [
    "Deviation",
    "Explanation",
    "Verdict",
    "bench_data",
    "bench_lines",
    "best",
    "both_times",
    "build_data",
    "build_summary",
    "check_picture",
    "condition_lines",
    "counted",
    "crossover_report",
    "deviation",
    "deviation_data",
    "deviation_table",
    "difference_of_engines",
    "differing_layers",
    "draw_crossover",
    "draw_sensitivity",
    "estimate_conditions",
    "estimate_report",
    "estimate_verdict",
    "explain",
    "explain_data",
    "explanation",
    "first_beyond",
    "inspect",
    "kernels_data",
    "kernels_table",
    "microseconds",
    "plain",
    "plan_lines",
    "profile_data",
    "profile_table",
    "sensitivity_report",
    "shape",
    "size",
    "sparsity_data",
    "sparsity_lines",
    "state_text",
    "table",
    "verdict",
]
