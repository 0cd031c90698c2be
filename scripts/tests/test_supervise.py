"""Output gets its names, and nothing outlives the run."""

import contextlib
import io
import os
import signal
import sys
import time
import unittest

from supervise import LONGEST_LINE_BYTES, ChildDied, LineSplitter, Stopped, Supervisor, describe_exit, label, wants_colour


class Lines(unittest.TestCase):
    def test_lines_are_cut_wherever_the_pieces_end(self):
        splitter = LineSplitter()
        self.assertEqual(splitter.feed(b"one\r\ntw"), ["one"])
        self.assertEqual(splitter.feed(b"o\n\nthr"), ["two", ""])
        self.assertEqual(splitter.feed(b""), ["thr"])
        self.assertEqual(splitter.feed(b""), [])

    def test_bytes_that_are_no_text_do_no_harm(self):
        self.assertEqual(LineSplitter().feed(b"\xff\n"), ["\ufffd"])

    def test_a_line_without_an_end_is_cut(self):
        self.assertEqual(len(LineSplitter().feed(b"x" * LONGEST_LINE_BYTES)), 1)


class Labels(unittest.TestCase):
    def test_names_line_up_and_are_coloured_only_when_asked(self):
        self.assertEqual(label("broker", 8, None), "broker   |")
        self.assertEqual(label("broker", 8, "36"), "\x1b[36mbroker   |\x1b[0m")

    def test_colour_needs_a_terminal_and_no_objection(self):
        self.assertTrue(wants_colour(True, {"NO_COLOR": ""}))
        self.assertFalse(wants_colour(False, {}))
        self.assertFalse(wants_colour(True, {"NO_COLOR": "1"}))
        self.assertFalse(wants_colour(True, {"TERM": "dumb"}))

    def test_an_exit_is_told_in_words(self):
        self.assertEqual(describe_exit(3), "ended with exit code 3")
        self.assertEqual(describe_exit(-9), "was killed by SIGKILL")


class Programs(unittest.TestCase):
    def setUp(self):
        output = io.StringIO()
        redirected = contextlib.redirect_stdout(output)
        redirected.__enter__()
        self.addCleanup(redirected.__exit__, None, None, None)
        self.output = output
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self.addCleanup(signal.signal, number, signal.getsignal(number))
        self.supervisor = Supervisor(width=3)

    def start(self, script):
        child = self.supervisor.start("one", [sys.executable, "-c", script])
        self.addCleanup(child.process.wait)
        self.addCleanup(child.signal, signal.SIGKILL)
        self.addCleanup(child.process.stdout.close)
        return child

    def await_output(self, text):
        end = time.monotonic() + 20
        while text not in self.output.getvalue():
            self.assertLess(time.monotonic(), end, f"{text!r} is not in {self.output.getvalue()!r}")
            self.supervisor.pump(0.05)

    def test_output_is_passed_on_and_a_death_is_told(self):
        self.start("import sys; print('hello'); sys.exit(7)")
        with self.assertRaisesRegex(ChildDied, r"(?s)one \(pid \d+\) ended with exit code 7; its last lines:\n  hello"):
            self.supervisor.pump(20)
        self.assertIn("one | hello\n", self.output.getvalue())

    def test_a_program_that_will_not_leave_is_killed(self):
        child = self.start("import signal; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); signal.pause()")
        self.await_output("deaf")
        self.assertFalse(self.supervisor.stop([child], time.monotonic() + 0.2))
        self.assertEqual(child.process.returncode, -signal.SIGKILL)

    def test_a_program_that_leaves_is_waited_for(self):
        child = self.start("import signal, sys; signal.signal(15, lambda *_: sys.exit(0)); print('up', flush=True); signal.pause()")
        self.await_output("up")
        self.assertTrue(self.supervisor.stop([child], time.monotonic() + 20))
        self.assertEqual(child.process.returncode, 0)

    def test_a_signal_ends_the_waiting(self):
        os.kill(os.getpid(), signal.SIGTERM)
        with self.assertRaises(Stopped):
            self.supervisor.pump(20)
