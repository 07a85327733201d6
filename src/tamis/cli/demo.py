"""``tamis demo``: the whole way on real data, from training to a running sparse engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tamis.cli.options import Json, Threads
from tamis.cli.output import complain, progress_bar, show_json
from tamis.errors import OutputError

if TYPE_CHECKING:
    from tamis.cli.digits import Digits
    from tamis.cli.output import Progress
    from tamis.engine import Engine
    from tamis.report import Deviation
    from tamis.runtime import BenchResult, Session


@dataclass(frozen=True)
class Accuracies:
    """Shares of test images classified rightly, from 0 to 1, at each stage."""

    dense: float
    pruned: float
    fine_tuned: float
    engine: float


@dataclass(frozen=True)
class Outcome:
    """All that the demo found out."""

    accuracies: Accuracies
    sparse_weights: int
    skipped_weights: dict[str, str]
    engine: Engine
    outputs: list[Deviation]
    bench: BenchResult


def command(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the model, engine and report.")
    ] = Path("demo-output"),
    epochs: Annotated[int, typer.Option("--epochs", min=1, metavar="N", help="Epochs of training.")] = 4,
    threads: Threads = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of everything random.")] = 0,
    json: Json = False,
) -> None:
    """Train a small CNN on handwritten digits, prune it to 2:4, compile it and explain the result."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {output}: {error.strerror}") from error
    with progress_bar(not json) as progress:
        outcome = _run(output, epochs, threads, seed, progress or _nothing)
    lines = _report(outcome)
    _write(output / "report.txt", lines)
    if json:
        show_json(_data(outcome))
    else:
        typer.echo("\n".join(lines))
        complain(f"Wrote model, engine and report to {output}")


def _run(output: Path, epochs: int, threads: int | None, seed: int, progress: Progress) -> Outcome:
    import copy

    import torch

    import tamis
    from tamis import sparsity
    from tamis.cli.comparison import compare_with_onnxruntime, limits
    from tamis.cli.digits import DigitNet, accuracy, load_digits, train
    from tamis.runtime import bench, random_inputs

    torch.manual_seed(seed)
    digits = load_digits(seed)
    model = DigitNet()
    train(model, digits, epochs, seed, lambda done: progress("train", done, epochs, ""))
    dense = accuracy(model, digits)
    pruned_model = copy.deepcopy(model)
    sparsity.prune(pruned_model, "2:4")
    pruned = accuracy(pruned_model, digits)
    train(pruned_model, digits, epochs, seed + 1, lambda done: progress("fine-tune", done, epochs, ""))
    sparsity.finalize(pruned_model)
    fine_tuned = accuracy(pruned_model, digits)

    model_file, engine_file = output / "digits.onnx", output / "digits.tamis"
    names = {"input_names": ["image"], "output_names": ["scores"]}
    sparsity.export_onnx(pruned_model, (digits.test_images[:1],), model_file, **names)  # type: ignore[arg-type]
    checks = sparsity.check_onnx(model_file)
    sample = {"image": digits.test_images[:1].numpy()}
    engine = tamis.build(
        model_file,
        output=engine_file,
        precisions=("float32", "bfloat16"),
        samples=sample,
        threads=threads,
        seed=seed,
        progress=progress,
    )
    session = tamis.load(engine_file)
    outputs, _ = compare_with_onnxruntime(model_file, engine, sample, layers=False, limits=limits(engine, None, None))
    return Outcome(
        Accuracies(dense, pruned, fine_tuned, _engine_accuracy(session, digits)),
        sum(check.eligible for check in checks),
        {check.name: check.reason for check in checks if check.reason},
        engine,
        outputs,
        bench(session, random_inputs(session.plan.inputs, seed), duration_s=1.0),
    )


def _engine_accuracy(session: Session, digits: Digits) -> float:
    """The engine takes one image at a time."""
    right = 0
    for image, label in zip(digits.test_images.numpy(), digits.test_labels.numpy(), strict=True):
        right += int(session.run([image[None]])["scores"].argmax() == label)
    return right / len(digits.test_labels)


def _report(outcome: Outcome) -> list[str]:
    import tamis
    from tamis.report import bench_lines, both_times, sparsity_lines

    shares, layers = outcome.accuracies, outcome.engine.plan.layers
    lines = ["Accuracy on the test images"]
    stages = (
        ("dense", shares.dense),
        ("pruned to 2:4", shares.pruned),
        ("fine-tuned", shares.fine_tuned),
        ("engine", shares.engine),
    )
    lines += [f"  {name:<14} {share:7.2%}" for name, share in stages]
    lines += ["", f"The ONNX file has {outcome.sparse_weights} weights in 2:4"]
    lines += [f"  not {name}: {reason}" for name, reason in outcome.skipped_weights.items()]
    lines += ["", str(tamis.explain(outcome.engine).verdict), *sparsity_lines(layers)[:2], "", "Layer by layer"]
    for layer in layers:
        choice = f"{layer.chosen_tactic}, {layer.chosen_precision}, {layer.chosen_sparsity}"
        lines += [f"  {layer.name}: {choice}", f"    {layer.why}"]
        note = both_times(layer) if layer.eligible else layer.ineligible_reason
        lines += [f"    {note}"] if note else []  # a layer without a weight has none
    lines += ["", "Against ONNX Runtime"]
    for item in outcome.outputs:
        verdict = "agrees" if item.within else "does not agree"
        lines.append(f"  {item.name} {verdict}: cosine {item.cosine:.7f}, relative error {item.relative:.1e}")
    return [*lines, "", *bench_lines(outcome.bench)]


def _data(outcome: Outcome) -> dict[str, Any]:
    from dataclasses import asdict

    from tamis.report import bench_data, deviation_data, sparsity_data

    return {
        "accuracy": asdict(outcome.accuracies),
        "sparse_weights": outcome.sparse_weights,
        "skipped_weights": outcome.skipped_weights,
        "sparsity": sparsity_data(outcome.engine.plan.layers),
        "comparison": deviation_data(outcome.outputs, None),
        "bench": bench_data(outcome.bench),
    }


def _write(path: Path, lines: list[str]) -> None:
    from tamis.files import replaced_file

    with replaced_file(path) as file:
        file.write(("\n".join(lines) + "\n").encode())


def _nothing(stage: str, done: int, total: int, detail: str) -> None:
    """No progress is shown."""
