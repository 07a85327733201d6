"""bench_accuracy.py on made-up images: every stage, resuming, budgets, and the table made of the rows."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from accuracy_data import MARGIN, SIZE, Augmentation, Images, epoch_of, normalised, padded, read
from accuracy_rows import BENCH, LAYERS, AccuracyRow, LayerRow, accuracy_lines, failures, layer_lines, spread
from accuracy_stages import STAGES, Network, _output_norms
from accuracy_training import Run, _Step, evaluate, rectangle, slope, train
from bench_accuracy import NETWORKS, main, parse
from tables import rendered
from tamis.errors import InputError
from tamis.sparsity import Schedule, SparseTraining

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Coloured noise as JPEG files in the form of the real data."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    for name, count in (("train", 64), ("test", 32)):
        files = []
        for _ in range(count):
            file = io.BytesIO()
            Image.fromarray(random.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(file, "JPEG", quality=95)
            files.append(file.getvalue())
        np.savez(
            folder / f"{name}.npz",
            jpeg=np.frombuffer(b"".join(files), np.uint8),
            offsets=np.cumsum([0, *map(len, files)]),
            labels=(np.arange(count) % 10).astype(np.uint8),
        )
    return folder


def trial(data: Path, folder: Path, *more: str) -> list[str]:
    files = ("--data", str(data), "--work", str(folder / "work"), "--output", str(folder / "rows.json"))
    return ["--smoke", "--device", "cpu", "--images", "64", "--seeds", "0", *files, *more]


def test_every_stage_runs_and_a_resumed_run_repeats_none(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    try:
        assert (
            main(trial(data, tmp_path, "--model", "resnet18", "--time-budget", "9")) == 0
        )  # of 10 that a stage asks for
        assert "--resume goes on" in capsys.readouterr().out and not (tmp_path / "rows.json").exists()
        assert main(trial(data, tmp_path, "--resume")) == 0
        rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
        monkeypatch.setattr("bench_accuracy._worked", lambda *_: pytest.fail("done already"))
        assert main(trial(data, tmp_path, "--resume")) == 0
        assert main(trial(data, tmp_path, "--resume", "--images", "32")) == 2
    finally:
        torch.set_num_threads(threads)
    assert not failures(rows)
    kept = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [{**row, "commit": ""} for row in kept] == [{**row, "commit": ""} for row in rows]
    for model in ("resnet18", "vit"):
        mine = {row["stage"]: row for row in rows if row["model"] == model and row["bench"] == BENCH}
        assert mine.keys() == {stage.name for stage in STAGES}
        assert mine.pop("layers")["note"].startswith("magnitude's error over SparseGPT's: median ")
        assert all(0 <= row["accuracy"] <= 100 and np.isfinite(row["loss"]) for row in mine.values())
        assert mine["magnitude"]["zeros"] == pytest.approx(0.5, abs=0.01)
        assert mine["tuned-1:4"]["zeros"] == pytest.approx(0.75, abs=0.01)
        assert mine["channels-2:4"]["macs"] == mine["channels"]["macs"] < 0.71
        assert mine["dense-longest"]["epochs"] == mine["channels-2:4"]["epochs"] > mine["dense-longer"]["epochs"]
    layers = [row for row in rows if row["bench"] == LAYERS]
    assert all(row["magnitude"] > 0 and row["sparsegpt"] > 0 for row in layers)
    assert {row["stage"] for row in layers} >= {"blocks.7.branch.1.0", "classifier", "blocks.1.attention.projections"}
    (tmp_path / "accuracy-x.json").write_text((tmp_path / "rows.json").read_text())
    page = rendered("<!-- table:accuracy -->\n<!-- /table:accuracy -->\n", tmp_path)
    assert "| resnet18 | 2:4 by SparseGPT, tuned | 1 | 2 | 100% | 50% |" in page and "Each layer pruned alone" in page


def test_what_stops_a_stage_is_told_and_the_others_go_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("no longer there")

    monkeypatch.setattr("accuracy_stages.train", broken)
    assert main(trial(data, tmp_path, "--model", "vit")) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert len(rows) == len(STAGES) and all(row["accuracy"] is None for row in rows)
    assert failures(rows)[:2] == [
        "vit, seed 0, dense: failed: ValueError: no longer there.",
        "vit, seed 0, 2:4 by magnitude, not tuned: failed: RuntimeError: it needs the stage dense.",
    ]
    monkeypatch.undo()
    assert main(trial(data, tmp_path, "--model", "vit", "--resume")) == 0
    assert not failures(json.loads((tmp_path / "rows.json").read_text())["rows"])


# --- training -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
@pytest.mark.parametrize("how", ["recorded", "not recordable"])
def test_a_recorded_step_begins_where_the_model_and_the_optimiser_were(
    network: Network, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With stand-ins for CUDA's streams and graphs, that compute when they are recorded and when they are replayed."""
    random = torch.Generator().manual_seed(0)
    images = Images(torch.randint(256, (32, SIZE, SIZE, 3), generator=random, dtype=torch.uint8), torch.arange(32) % 10)
    recipe = replace(network.recipe, batch=16)
    build = partial(network.build, 8)
    lines: list[str] = []

    def trained(graphs: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = build()
        run = Run(images, images, CPU, graphs, float("inf"), lines.append)
        sparse = SparseTraining(model, "2:4", schedule=Schedule("linear", end=4))
        train(model, run, recipe, seed=0, epochs=2, rate=0.01, sparse=sparse)
        assert sparse.zeros == 0.5
        return model.state_dict()

    expected = trained(graphs=False)
    steps: list[_Step] = []
    init = _Step.__init__
    monkeypatch.setattr(_Step, "__init__", lambda self, *rest: (steps.append(self), init(self, *rest))[1])

    @contextmanager
    def recording(*_: object, **__: object) -> Iterator[None]:
        yield
        if how == "not recordable":
            raise RuntimeError("an operation that waits")

    def replay() -> None:
        steps[-1]._compute()

    graph = SimpleNamespace(replay=replay, reset=lambda: None)
    stream = SimpleNamespace(wait_stream=lambda _: None)
    for name, fake in {
        "Stream": lambda: stream, "current_stream": lambda: stream, "stream": lambda _: nullcontext(),
        "CUDAGraph": lambda: graph, "graph": recording, "synchronize": lambda: None, "empty_cache": lambda: None,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, fake)
    found = trained(graphs=True)
    assert lines[2] == ("    steps as one CUDA graph" if how == "recorded" else
                        "    steps without a CUDA graph, which cannot be recorded: an operation that waits")  # fmt: skip
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, msg=name)


def test_pasted_squares_cover_any_part_of_an_image() -> None:
    random = np.random.default_rng(0)
    masks = [rectangle(random) for _ in range(2000)]
    assert {mask.shape for mask in masks} == {(SIZE, SIZE)}
    for mask in masks:
        rows, columns = mask.any(1).sum(), mask.any(0).sum()
        assert mask.sum() == rows * columns <= SIZE * SIZE
    areas = [mask.mean() for mask in masks]
    assert 0.3 < np.mean(areas) < 0.4 and np.max(areas) > 0.9 and np.min(areas) < 0.01


def test_the_rate_that_is_set_is_the_rate_of_the_step() -> None:
    images = Images(torch.zeros(16, SIZE, SIZE, 3, dtype=torch.uint8), torch.arange(16) % 10)
    for network in NETWORKS:
        model = network.build(8)
        before = {name: tensor.clone() for name, tensor in model.named_parameters()}
        run = Run(images, images, CPU, False, float("inf"), print)
        train(model, run, network.recipe, seed=0, epochs=1, rate=0.0)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_parameters())
        train(model, run, network.recipe, seed=0, epochs=1, rate=0.1)
        assert not any(
            torch.equal(tensor, before[name]) for name, tensor in model.named_parameters() if tensor.ndim > 1
        )


def test_norms_of_layers_are_those_of_their_products() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(4 * SIZE * SIZE, 5)
    )
    images = Images(torch.randint(256, (300, SIZE, SIZE, 3), dtype=torch.uint8), torch.zeros(300, dtype=torch.int64))
    other = torch.randn(4, 3, 3, 3)
    norms = _output_norms(model, {"0": (model[0].weight, other), "3": (model[3].weight,)}, images)
    wide, inputs = model.double(), normalised(images.pixels).double()
    for weight, found in zip((model[0].weight, other.double()), norms["0"], strict=True):
        expected = torch.nn.functional.conv2d(inputs, weight, padding=1)
        assert found == pytest.approx(float(expected.norm()), rel=1e-5)
    assert norms["3"] == pytest.approx([float((wide(inputs) - model[3].bias).norm())], rel=1e-5)


def test_what_is_not_finite_is_no_result() -> None:
    images = Images(torch.zeros(4, SIZE, SIZE, 3, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * SIZE * SIZE, 10))
    torch.nn.init.constant_(model[1].bias, float("nan"))
    with pytest.raises(ArithmeticError, match="nan"):
        evaluate(model, images)
    with pytest.raises(ArithmeticError, match="epoch 1"):
        train(
            model, Run(images, images, CPU, False, float("inf"), print), NETWORKS[0].recipe, seed=0, epochs=1, rate=0.1
        )


# --- data -----------------------------------------------------------------------------------------------------


def test_images_come_out_as_they_went_in(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
    np.savez(tmp_path / "train.npz", images=pixels, labels=np.array([1, 2, 3]))
    images = read(tmp_path / "train.npz", CPU, 2)
    assert np.array_equal(images.pixels.numpy(), pixels[:2]) and images.labels.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("arrays", "word"),
    [
        ({"labels": np.array([1])}, "jpeg"),
        ({"images": np.zeros((1, 8, 8, 3), np.uint8), "labels": np.array([1])}, "of shape"),
        ({"images": np.zeros((1, SIZE, SIZE, 3), np.uint8), "labels": np.array([10])}, "labels from 10"),
        ({"jpeg": np.zeros(9, np.uint8), "offsets": np.array([0, 9]), "labels": np.array([1])}, "cannot be read"),
    ],
)
def test_wrong_files_are_refused_in_one_line(tmp_path: Path, arrays: dict[str, Any], word: str) -> None:
    np.savez(tmp_path / "train.npz", **arrays)
    with pytest.raises(InputError, match=word):
        read(tmp_path / "train.npz", CPU)
    with pytest.raises(InputError, match="--data"):
        read(tmp_path / "test.npz", CPU)


def test_an_epoch_has_every_image_once_cropped_or_flipped() -> None:
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (40, SIZE, SIZE, 3), generator=random, dtype=torch.uint8)
    images = Images(pixels, torch.arange(40))
    wide = padded(pixels)
    expected = torch.nn.functional.pad(pixels.permute(0, 3, 1, 2).float(), (MARGIN,) * 4, mode="reflect")
    assert torch.equal(wide.permute(0, 3, 1, 2).float(), expected)
    seen, labels = epoch_of(images, wide, Augmentation(), random)
    assert sorted(labels.tolist()) == list(range(40))
    moved = 0
    for image, label in zip(seen, labels.tolist(), strict=True):
        places = range(2 * MARGIN + 1)
        crops = [wide[label, y : y + SIZE, x : x + SIZE] for y in places for x in places]
        assert any(torch.equal(image, crop) or torch.equal(image, crop.flip(1)) for crop in crops)
        moved += not torch.equal(image, pixels[label])
    assert moved > 30


def test_cutout_greys_a_square_and_jitter_keeps_the_range() -> None:
    white = torch.full((64, SIZE, SIZE, 3), 255, dtype=torch.uint8)
    images = Images(white, torch.zeros(64, dtype=torch.int64))
    cut, _ = epoch_of(images, padded(white), Augmentation(cutout=8), torch.Generator().manual_seed(0))
    grey = (cut[..., 0] == 125).sum((1, 2))
    assert grey.max() == 64 and grey.min() >= 16 and set(cut[..., 0].unique().tolist()) == {125, 255}
    shaken, _ = epoch_of(images, padded(white), Augmentation(jitter=0.3), torch.Generator().manual_seed(0))
    assert shaken.min() >= 178 and len(shaken.unique()) > 5


def test_normalised_images_are_centred() -> None:
    grey = torch.tensor([125, 123, 114], dtype=torch.uint8).expand(2, SIZE, SIZE, 3)
    assert normalised(grey).shape == (2, 3, SIZE, SIZE) and float(normalised(grey).abs().max()) < 0.01


def test_the_rate_rises_and_falls_to_zero() -> None:
    assert slope(0.0, 0.2) == 0 and slope(0.1, 0.2) == 0.5 and slope(0.2, 0.2) == 1 and slope(1.0, 0.2) == 0
    assert slope(0.6, 0.2) == pytest.approx(0.5)


@pytest.mark.parametrize("wrong", [["--device", "cpu"], ["--images", "9"], ["--epochs", "0", "--output", "x"]])
def test_senseless_options_are_refused(wrong: list[str]) -> None:
    with pytest.raises(SystemExit):
        parse(wrong)


# --- tables ---------------------------------------------------------------------------------------------------


def test_the_table_compares_within_a_seed_and_with_the_control_that_trained_as_long() -> None:
    def row(stage: str, seed: int, accuracy: float | None, epochs: int, note: str = "") -> dict[str, Any]:
        return vars(AccuracyRow("resnet18", stage, seed, accuracy, 0.25, epochs, 1.0, 0.0, 1.0, note))

    rows = [
        row("dense", 0, 94.0, 20), row("dense", 1, 95.2, 20),
        row("dense-longer", 0, 94.4, 28), row("dense-longer", 1, 95.4, 28),
        row("dense-longest", 0, 96.0, 50),
        row("tuned-2:4", 0, 93.9, 28), row("tuned-2:4", 1, 95.1, 28),
        row("channels", 0, 92.0, 30), row("permuted", 0, None, 0, "failed: no library"),
    ]  # fmt: skip
    lines = {line[1]: line for line in accuracy_lines(rows)}
    assert lines["dense"][2:7] == ("2", "20", "100%", "0%", "94.60 ± 0.85")
    assert lines["dense"][-1] == "at least 94.5: met"
    tuned = lines["2:4 by magnitude, tuned"]
    assert tuned[7:9] == ("-0.10 ± 0.00", "-0.40 ± 0.14") and tuned[-1] == "within 0.2 of dense: met"
    channels = lines["channels removed, tuned"]
    assert channels[7:9] == ("-2.00", "-4.00") and channels[-1] == "within 1.0 of dense: **missed**"
    assert len(lines) == 5 and failures(rows)[0].endswith("not tuned: failed: no library.")
    errors = [vars(LayerRow("vit", f"l{i}", seed, 0.1 * (i + 1), 0.1)) for i in range(3) for seed in (0, 1)]
    assert list(layer_lines(errors)) == [
        ("vit", "2", "3", "2.00 ± 0.00", "1.00", "l0", "median at least 1.5: met"),
    ]
    assert spread([]) == "" and spread([1.0], sign=True) == "+1.00"


def test_the_page_tells_the_recipes_that_are_used() -> None:
    page = (Path(__file__).parents[2] / "docs" / "concepts" / "accuracy.md").read_text()
    recipes = [network.recipe for network in NETWORKS]
    dense, tuning = (
        " | ".join(f"{epochs} epochs, rate up to {rate}" for epochs, rate in pairs)
        for pairs in ([(r.epochs, r.rate) for r in recipes], [(r.tuning, r.tuning_rate) for r in recipes])
    )
    assert f"| dense training | {dense} |" in page and f"| tuning | {tuning} |" in page
    assert all(recipe.batch == 512 and recipe.smoothing == 0.1 for recipe in recipes)


def test_the_table_says_that_there_are_no_results(tmp_path: Path) -> None:
    assert "No results are committed yet" in rendered("<!-- table:accuracy -->\n<!-- /table:accuracy -->\n", tmp_path)
