"""Beginning of a workflow, names of runs, progress, and what happens to exceptions."""

import random
import sys

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events

from scripts.errors import InputError
from scripts.storage import check_output_dir, make_output_dir
from scripts.synthetic import GeneratedPairs, KneePhantom, generated_pairs
from scripts.training.progress import Progress, on_exception
from scripts.training.start import EpochSetter, bfloat16_pays, forget_run, run_name
from scripts.workflow import begin


@pytest.fixture(autouse=True)
def own_state(monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    yield
    torch.set_num_threads(threads)


def test_begin_seeds_everything():
    def draw():
        # The global generator is what libraries draw from.
        return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002

    begin(3, 1)
    first = draw()
    begin(3)
    assert draw() == first
    begin(4)
    assert all(a != b for a, b in zip(draw(), first, strict=True))
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("options", [{name: value} for name in ("seed", "threads") for value in (-1, 1.5, "2", True)])
def test_bad_numbers(options):
    with pytest.raises(InputError, match=f"^{next(iter(options))}="):
        begin(**options)


@pytest.mark.parametrize("check", [check_output_dir, make_output_dir, lambda path: begin(output_dir=path)])
@pytest.mark.parametrize("place", ["file", "file/deeper", "file/deeper/still"])
def test_output_dir_that_cannot_be(tmp_path, check, place):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="output_dir can't be created"):
        check(tmp_path / place)


def test_check_of_output_dir_makes_nothing(tmp_path):
    check_output_dir(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())
    assert make_output_dir(tmp_path / "a" / "b").is_dir()


def test_hook_is_set_once_and_hands_on_other_errors(capsys):
    calls = []
    sys.excepthook = lambda *arguments: calls.append(arguments)
    begin()
    hook = sys.excepthook
    begin()
    assert sys.excepthook is hook
    other = KeyError("other")
    hook(KeyError, other, None)
    assert calls == [(KeyError, other, None)]
    hook(InputError, InputError("a.nii: bad; mend it"), None)
    assert capsys.readouterr().err == "error: a.nii: bad; mend it\n" and len(calls) == 1
    hook(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert capsys.readouterr().err == "error: interrupted; what was not finished is removed\n" and len(calls) == 1


@pytest.mark.parametrize(
    ("able", "expected"),
    [({"avx512_bf16": True}, True), ({"amx_bf16": True, "avx512_bf16": False}, True), ({"avx2": True}, False)],
)
def test_bfloat16_needs_instructions_on_a_cpu(monkeypatch, able, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    assert bfloat16_pays("cpu") is bfloat16_pays(torch.device("cpu")) is expected
    assert bfloat16_pays("cuda:0") is True


def test_run_name(tmp_path, monkeypatch):
    first = run_name(tmp_path / "a")
    assert run_name(tmp_path / "b") != first
    # A run that was killed goes on; one that has ended without a checkpoint is followed by a new one.
    assert run_name(tmp_path / "a") == first
    forget_run(tmp_path / "a")
    second = run_name(tmp_path / "a")
    assert second != first
    (tmp_path / "a" / "checkpoint_last.pt").touch()
    forget_run(tmp_path / "a")
    assert run_name(tmp_path / "a") == second
    # Another process of the run leaves the name alone.
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run_name(tmp_path / "a") != second and run_name(tmp_path / "c") and not (tmp_path / "c").exists()
    monkeypatch.setenv("RANK", "0")
    assert run_name(tmp_path / "a") == second


def test_exception_callbacks_all_run_and_the_exception_goes_on():
    def step(engine, batch):
        raise RuntimeError("on its way")

    engine, calls = Engine(step), []
    on_exception(engine, lambda engine, error: calls.append(("first", str(error))))
    on_exception(engine, lambda engine, error: calls.append(("second", str(error))))
    with pytest.raises(RuntimeError, match="on its way"):
        engine.run([0])
    assert calls == [("first", "on its way"), ("second", "on its way")]


def progress_of(engine, label="label", **options):
    bar = Progress(label, interval=0.0, **options)
    bar.attach(engine)
    return bar


def test_progress_counts_the_whole_run(capsys):
    engine = Engine(lambda engine, batch: {"loss": 0.25 * batch})
    engine.optimizer = None
    bar = progress_of(engine, "training", show=["loss", "absent"])
    engine.run([1, 2, 3], max_epochs=2)
    text = capsys.readouterr().err
    assert "training: 100%" in text and "6/6" in text and "epoch=2/2, loss=0.75" in text
    assert bar.bar is None


def test_progress_of_a_resumed_run_begins_where_it_goes_on(capsys):
    engine = Engine(lambda engine, batch: {})
    engine.optimizer = None

    @engine.on(Events.STARTED)
    def resume():
        engine.state.epoch, engine.state.iteration = 3, 6

    progress_of(engine)
    engine.run([1, 2], max_epochs=4)
    text = capsys.readouterr().err
    assert "6/8" in text and "8/8" in text and "5/8" not in text


def test_progress_is_closed_by_an_error():
    def step(engine, batch):
        raise RuntimeError("stop")

    engine = Engine(step)
    bar = progress_of(engine)
    with pytest.raises(RuntimeError, match="stop"):
        engine.run([1, 2])
    assert bar.bar is None


def test_epoch_setter():
    dataset = GeneratedPairs(generated_pairs(1), KneePhantom((8, 8, 8)), fresh=True)
    engine, seen = Engine(lambda engine, batch: seen.append(dataset[0]["name"])), []
    EpochSetter(dataset).attach(engine)
    engine.run([0], max_epochs=3)
    assert len(set(seen)) == 3
    dataset.set_epoch(2)
    assert dataset[0]["name"] == seen[1]
