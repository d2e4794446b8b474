from __future__ import annotations

from matplotlib.figure import Figure

from common.reporting.learning_rate_figures import TOP, _curve


def test_a_diverged_curve_ends_in_a_cross_and_an_arrow_marks_what_is_off_the_scale():
    axes = Figure().subplots()
    assert _curve(axes, 0, [1.0, 0.5, 99.0, 0.7], True, 1.0, "C0", "0.5")
    curve, arrows, cross = axes.lines
    assert curve.get_xdata().tolist() == [0, 1, 2, 3]
    assert curve.get_ydata().tolist() == [1.0, 0.5, TOP, 0.7]
    assert (arrows.get_marker(), arrows.get_xdata().tolist()) == ("^", [2])
    assert cross.get_marker() == "x"
    assert cross.get_xydata().tolist() == [[3, 0.7]]
    axes = Figure().subplots()
    assert not _curve(axes, 1, [1.0, 0.5], False, 1.0, "C0", "0.005")
    assert [line.get_marker() for line in axes.lines if len(line.get_xdata())] == ["o"]
