"""Progress: each part's own time, bars on a terminal, a line every half minute in a file. The clock is the
test's own."""

import io
import re

from rotescope.common.progress import EVERY, Part, in_clock, line_of, progress_bars


class Clock:
    """Stands still until it is told."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now

    def wait(self, seconds):
        self.now += seconds


class Terminal(io.StringIO):
    def isatty(self):
        return True


def lines(stream):
    return stream.getvalue().splitlines()


def test_a_part_counts_from_where_the_work_before_it_ended():
    """Two methods of 64 images, a batch each: 60 s, then 20 s. Each takes its own time, though a batch moves
    in an instant."""
    clock, stream = Clock(), io.StringIO()
    with progress_bars({"none": 64, "stp": 64}, clock=clock, stream=stream) as advance:
        for name, seconds in (("none", 60), ("stp", 20)):
            clock.wait(seconds)
            for _ in range(64):
                advance(name)
    assert lines(stream)[-2:] == ["none 64/64, elapsed 0:01:00", "stp 64/64, elapsed 0:00:20"]


def test_elapsed_stops_when_a_part_is_complete():
    part = Part("none", 2)
    part.move(0, 10)
    part.move(10, 20)
    assert part.elapsed(500) == 20
    assert part.left(500) == 0


def test_the_estimate_is_what_remains_at_the_pace_so_far():
    part = Part("none", 4)
    assert part.left(0) is None
    part.move(100, 110)
    assert part.left(110) == 30  # three more at ten seconds each
    assert part.left(125) == 15
    assert part.left(1000) == 0
    part.move(110, 130)
    assert part.left(130) == 30  # two more at fifteen seconds each


def test_what_an_earlier_run_did_is_no_pace():
    part = Part("fine-tuning", 1000)
    part.move(0, 2, to=501)
    assert part.left(2) is None
    part.move(2, 4, to=502)
    assert part.left(4) == 2 * 498


def test_a_file_gets_a_line_every_half_minute_and_a_last_one():
    clock, stream = Clock(), io.StringIO()
    with progress_bars({"fine-tuning": 100}, clock=clock, stream=stream) as advance:
        for step in range(1, 101):
            clock.wait(1)
            advance("fine-tuning", f"loss {step / 100}")
    assert lines(stream) == [
        "fine-tuning 30/100, elapsed 0:00:30, ETA 0:01:10 loss 0.3",
        "fine-tuning 60/100, elapsed 0:01:00, ETA 0:00:40 loss 0.6",
        "fine-tuning 90/100, elapsed 0:01:30, ETA 0:00:10 loss 0.9",
        "fine-tuning 100/100, elapsed 0:01:40 loss 1.0",
    ]
    assert EVERY == 30
    assert "\x1b" not in stream.getvalue()
    assert "\r" not in stream.getvalue()


def test_a_job_that_stops_early_says_how_far_it_came():
    clock, stream = Clock(), io.StringIO()
    with progress_bars({"generated": 9, "sweep": 9}, clock=clock, stream=stream) as advance:
        clock.wait(4)
        advance("generated")
    assert lines(stream) == ["generated 1/9, elapsed 0:00:04, ETA 0:00:32"]


def test_a_complete_part_is_said_once():
    clock, stream = Clock(), io.StringIO()
    with progress_bars({"looking": 1}, clock=clock, stream=stream) as advance:
        clock.wait(31)
        advance("looking")
    assert lines(stream) == ["looking 1/1, elapsed 0:00:31"]


def test_a_terminal_gets_bars_with_the_same_times():
    clock, stream = Clock(), Terminal()
    with progress_bars({"none": 2, "[red]": 2}, clock=clock, stream=stream) as advance:
        for name in ("none", "none", "[red]"):
            clock.wait(75)
            advance(name)
    assert "\x1b" in stream.getvalue()
    last = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", stream.getvalue()).splitlines()[-2:]
    assert last[0].split()[-2:] == ["2/2", "0:02:30"]
    assert last[1].split()[0] == "[red]"
    assert last[1].split()[-4:] == ["1/2", "0:01:15", "ETA", "0:01:15"]


def test_nothing_is_shown_where_nothing_is_asked_for():
    stream = io.StringIO()
    with progress_bars({"none": 1}, disable=True, stream=stream) as advance:
        advance("none")
    assert stream.getvalue() == ""


def test_words():
    assert in_clock(3725.4) == "1:02:05"
    assert in_clock(None) == "-:--:--"
    assert line_of(Part("stp", 1200, done=1200), 0) == "stp 1,200/1,200, elapsed 0:00:00"
