"""What RELION prints, line by line as it comes."""

from pathlib import Path

from verglas.relion.output import Heard, Tail

REFINEMENT = """ Auto-refine: Iteration= 3
 Auto-refine: Resolution= 24 (no gain for 0 iter)
 Auto-refine: Changes in angles= 17.8665 degrees; and in offsets= 2.62071 Angstroms (no gain for 0 iter)
 Auto-refine: WARNING: The angular accuracy is worse than 10 degrees
 CurrentResolution= 24 Angstroms, which requires orientationSampling of at least 18.9474 degrees
 Expectation iteration 3
 Auto-refine: WARNING: The angular accuracy is worse than 10 degrees
 Auto-refine: WARNING: You probably need not worry if the accuracy improves during the next few iterations.
 WARNING: You did not specify --angpix. The pixel size in the image header, 6 A/px, is used.
"""

CRASH = """in: ./src/metadata_table.cpp, line 1143
ERROR:
MetaDataTable::read: File nothing.star does not exist
=== Backtrace  ===
relion_refine(_ZN11RelionErrorC2E+0x7a) [0x558a0620313a]
==================
ERROR:
MetaDataTable::read: File nothing.star does not exist
"""


def hear(text: str) -> Heard:
    heard = Heard()
    for line in text.splitlines():
        heard.hear(line)
    return heard


def test_an_iteration_of_a_refinement() -> None:
    heard = hear(REFINEMENT)
    assert (heard.iteration, heard.total) == (3, None)
    assert heard.describe() == "iteration 3: from 24 Å, angles changed by 17.8665°, offsets by 2.62071 Å"
    assert heard.warnings == ["The angular accuracy is worse than 10 degrees"], "each is told once, the header's pixel size is what we mean"


def test_iterations_of_a_number() -> None:
    heard = Heard()
    assert heard.hear(" Expectation iteration 2 of 25") and not heard.hear(" Maximization ...")
    assert (heard.iteration, heard.total, heard.describe()) == (2, 25, "iteration 2 of 25")
    assert heard.hear(" Stochastic Gradient Descent iteration 7 of 300") and (heard.iteration, heard.total) == (7, 300)


def test_the_error_in_relions_words() -> None:
    assert hear(CRASH).error == "MetaDataTable::read: File nothing.star does not exist"
    assert "signal 11 (Segmentation fault)" in hear("mpirun noticed that rank 2 on node a exited on signal 11 (Segmentation fault).").error


def test_an_unknown_option_is_named() -> None:
    assert hear("WARNING: Option -skip_align\tis not a valid RELION argument").unknown_option == "-skip_align"


def test_bars_end_in_carriage_returns_and_lines_come_in_pieces(tmp_path: Path) -> None:
    file = tmp_path / "run.out"
    file.write_text("of an earlier run\n")
    tail = Tail(file)
    with file.open("a") as out:
        out.write("one\n 0/ 3 sec ..\r 1/ 3 sec .....\rExpect")
        out.flush()
        assert tail.lines() == ["one", " 0/ 3 sec ..", " 1/ 3 sec ....."]
        out.write("ation iteration 2")
        out.flush()
        assert tail.lines() == []
        assert tail.lines(last=True) == ["Expectation iteration 2"]
