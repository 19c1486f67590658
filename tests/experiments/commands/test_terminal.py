"""experiments/commands/terminal.py."""

from __future__ import annotations

import io
import os
import signal
import sys
from pathlib import Path

import pytest

from experiments.commands import terminal as terminal_module
from experiments.commands.terminal import Terminal, describe_duration, describe_metrics, resumable
from simclr.data.source import recheck
from simclr.progress import Elsewhere
from simclr.train.loop import Interrupted

posix = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")


def show_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Replaces stderr with what stands for a terminal of 80 columns."""
    stream = type("TerminalStream", (io.StringIO,), {"isatty": lambda self: True})()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("COLUMNS", "80")
    return stream


def test_a_terminal_shows_bars_for_work_and_training(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = show_on_a_terminal(monkeypatch)
    with Terminal() as terminal:
        assert terminal.bars is not None
        terminal.progress("decoding train", 1, 2)
        terminal.began("a-run", 10)
        terminal.metrics({"train/loss": 3.93, "train/contrastive_top1": 0.125}, 5)
        terminal.metrics({"val/knn_top1": 0.764, "perf/images_per_second": 1082.4}, 6)
        assert [task.completed for task in terminal.bars.tasks] == [1, 6]
    assert "decoding train" in shown.getvalue()
    assert "loss 3.93 val kNN 76.4% contrastive top-1 12.5% 1082 img/s" in shown.getvalue()


def test_a_message_takes_a_line_above_the_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    shown = show_on_a_terminal(monkeypatch)
    with Terminal() as terminal:
        terminal.progress("timing", 1, 2)
        terminal.say(f"[a] message\nof {'long ' * 30}lines")
        before, after = shown.getvalue().split(f"[a] message\nof {'long ' * 30}lines\n")
    assert before.endswith("timing\r\x1b[2K")  # the bar is erased
    assert "timing" in after


def test_the_accuracy_on_validation_is_shown_with_a_smaller_k() -> None:
    assert describe_metrics({"val/knn_k54_top1": 0.764}) == "val kNN (k = 54) 76.4%"


def test_a_full_bar_disappears_and_the_next_run_has_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    show_on_a_terminal(monkeypatch)
    with Terminal() as terminal:
        assert terminal.bars is not None
        for _ in range(2):
            terminal.began("a-run", 10)
            assert terminal.bars.tasks == []
            terminal.metrics({"train/loss": 3.0}, 5)
            assert [task.completed for task in terminal.bars.tasks] == [5]
            terminal.metrics({"train/loss": 2.0}, 10)


def test_the_bar_of_a_pruned_run_makes_room_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    show_on_a_terminal(monkeypatch)
    with Terminal() as terminal:
        assert terminal.bars is not None
        terminal.began("a-run", 10)
        terminal.metrics({"train/loss": 3.0}, 5)
        terminal.began("another", 10)
        assert terminal.bars.tasks == []


def test_the_progress_of_a_study_is_above_that_of_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    show_on_a_terminal(monkeypatch)
    times = iter([0.0, 0.0, *[600.0] * 20])
    monkeypatch.setattr(terminal_module, "monotonic", lambda: next(times))
    with Terminal() as terminal:
        assert terminal.bars is not None
        terminal.overall("run", 0, 4, "")
        terminal.began("a-run", 10)
        terminal.metrics({"train/loss": 3.0}, 5)
        whole, training = terminal.bars.tasks
        assert (whole.description, training.description) == ("run 1 of 4, about 70 min left", "loss 3.00")
        terminal.overall("run", 1, 4, "linear 71.2% (no crop, seed 0)")
        assert terminal.bars.tasks[0].description == (
            "1 of 4 runs, about 30 min left, best linear 71.2% (no crop, seed 0)"
        )
        terminal.overall("run", 4, 4, "linear 71.2% (no crop, seed 0)")
        assert "run" not in [task.description for task in terminal.bars.tasks]


def test_without_a_terminal_the_progress_of_a_search_is_a_line_for_each_trial(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Terminal() as terminal:
        terminal.overall("trial", 3, 5, "", seconds=0)  # it was resumed
        for done in (4, 5):
            terminal.began("a-run", 1000)
            for step in range(1, 1001):
                terminal.metrics({"train/loss": 3.0}, step)
            terminal.overall("trial", done, 5, "71.2% on validation (trial 3)", seconds=0)
    first, second, last = capsys.readouterr().err.splitlines()
    assert first == "3 of 5 trials"
    assert second == "4 of 5 trials, less than 1 s left, best 71.2% on validation (trial 3)"
    assert last == "5 of 5 trials, best 71.2% on validation (trial 3)"


@posix
def test_work_that_resumes_is_asked_to_stop_before_it_trains() -> None:
    with Terminal(resumes=True) as terminal:
        os.kill(os.getpid(), signal.SIGTERM)
        assert terminal.stop()


def test_without_a_terminal_there_are_no_bars(capsys: pytest.CaptureFixture[str]) -> None:
    with Terminal() as terminal:
        terminal.progress("decoding train", 1, 2)
        terminal.began("a-run", 10)
        terminal.metrics({"train/loss": 3.93}, 5)
        terminal.say("a message")
    assert terminal.bars is None
    assert capsys.readouterr() == ("", "a message\n")


def test_later_commands_show_new_notes_on_the_images_and_all_warnings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`Terminal` stands for a command."""

    def shown(*texts: str, folder: str = "folder-1") -> str:
        terminal = Terminal()
        for text in (*texts, *texts):
            terminal.note(text, tmp_path / "cache" / folder)
        terminal.note("5 images")
        return capsys.readouterr().err

    assert shown("ignored 1 file") == "ignored 1 file\n5 images\n"
    assert shown("ignored 1 file", "warning: few") == "warning: few\n5 images\n"
    assert shown("ignored 2 files", "warning: few") == "ignored 2 files\nwarning: few\n5 images\n"
    assert shown("ignored 1 file", folder="folder-2") == "ignored 1 file\n5 images\n"
    recheck(tmp_path)
    assert shown("ignored 1 file") == "ignored 1 file\n5 images\n"


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_in_training_asks_to_stop_and_the_second_ends_at_once(
    number: signal.Signals, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.signal(number, signal.default_int_handler)
    try:
        with Terminal() as terminal:
            terminal.began("a-run", 10)
            assert not terminal.stop()
            signal.raise_signal(number)
            assert terminal.stop()
            assert capsys.readouterr().err == "\nstopping: saving a checkpoint (press Ctrl-C again to stop at once)\n"
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(number)
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_training_ends_at_once(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), Terminal():
        signal.raise_signal(number)
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (Interrupted(3), "stopped after step 3: run the same command to resume"),
        (KeyboardInterrupt(), "stopped: run the same command to resume"),
    ],
)
def test_an_interruption_of_a_study_says_how_to_resume(error: BaseException, message: str) -> None:
    with pytest.raises(KeyboardInterrupt, match=f"^{message}$"), resumable():
        raise error


def test_durations_have_a_readable_unit() -> None:
    assert [describe_duration(seconds) for seconds in (0.4, 9.6, 200, 7000)] == [
        "less than 1 s",
        "about 10 s",
        "about 3 min",
        "about 1.9 h",
    ]


def test_runs_elsewhere_are_shown_with_their_places_and_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(terminal_module, "monotonic", lambda: clock[0])
    shown = Terminal()
    shown.overall("run", 0, 4, "")
    shown.elsewhere(
        [Elsewhere("a, seed 0", "n1", 50, 100), Elsewhere("b, seed 0", "n2", 50, 100), Elsewhere("c, seed 0")]
    )
    assert capsys.readouterr().err.splitlines()[1:] in (
        ["a, seed 0 on n1: training", "b, seed 0 on n2: training"],
        ["b, seed 0 on n2: training", "a, seed 0 on n1: training"],
    )
    clock[0] = 100.0  # two halves in 100 s, and three runs are left
    assert shown.group.status(1.0, 2) == "0 of 4 runs, 2 training, about 5 min left"
