"""Names of files in what the benchmarks print."""

from onrw_core.bench import cache, measure, speed, visible


def test_no_name_prints_a_second_line(tmp_path, capsys):
    forged = "a\nonrw: forged\x1b[2K.png"
    measure.tell(forged)
    speed._tell("ours", {"photo": forged, "success": True, "iterations": 1, "seconds": 1.0, "best_share": 1.0})
    cache.publish(tmp_path / forged, {})
    print(visible._line(forged, "photo", dict.fromkeys(visible.FIGURES)))
    out, err = capsys.readouterr()
    assert len(err.splitlines()) == len(out.splitlines()) == 2
    assert "\x1b" not in out + err and (out + err).count("a\\nonrw: forged") == 4
