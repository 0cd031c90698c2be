"""What `make test` makes of cargo's output: little of what went well, all of what did not."""

import io
import json
import sys
import unittest

from run_tests import NextestReader, Program, Reader, follow, labels, summary

GOOD = """\
   Compiling natsway-wire v0.1.0 (crates/wire)
     Running unittests src/lib.rs (target/debug/deps/natsway_wire-1f)

running 2 tests
test frame::tests::short ... ok
test frame::tests::long ... ok

test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.05s

     Running tests/it/main.rs (target/debug/deps/it-2e)

running 3 tests
test fast ... ok
test slow has been running for over 60 seconds
test other ... ignored, needs a reason
test slow ... {end}
{failures}
test result: {result}. {passed} passed; {failed} failed; 1 ignored; 0 measured; 0 filtered out; finished in 61.20s

   Doc-tests natsway_wire

running 1 test
test crates/wire/src/lib.rs - (line 7) ... ok

test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.40s

"""

FAILURES = """
failures:

---- slow stdout ----
thread 'slow' panicked at worker/tests/it/main.rs:3:5:
it took a while

failures:
    slow
"""


def read(text):
    out = io.StringIO()
    built = {
        "natsway_wire-1f": Program("natsway-wire", "--package natsway-wire --lib"),
        "it-2e": Program("natsway-worker, it", "--package natsway-worker --test it"),
    }
    reader = Reader(built, out)
    for line in text.splitlines():
        reader.line(line)
    reader.end()
    return reader.programs, out.getvalue()


class Output(unittest.TestCase):
    def test_a_good_program_is_one_line_and_a_slow_test_is_told_at_once(self):
        programs, said = read(GOOD.format(end="ok", failures="", result="ok", passed=2, failed=0))
        self.assertNotIn("frame::tests::short", said)
        self.assertIn("    2 passed     0.1 s  natsway-wire\n", said)
        self.assertIn("test slow has been running for over 60 seconds\n", said)
        self.assertIn("Compiling", said)
        page = summary(programs, 61.65)
        self.assertTrue(page.endswith("in 1 min 2 s\ntests: 5 passed, 0 failed, 1 skipped"), page)
        self.assertNotIn("runs it again", page)

    def test_a_failure_is_whole_and_has_the_command_that_runs_it_again(self):
        programs, said = read(GOOD.format(end="FAILED", failures=FAILURES, result="FAILED", passed=1, failed=1))
        self.assertIn("FAILED natsway-worker, it: slow\n", said)
        self.assertIn("worker/tests/it/main.rs:3:5:\nit took a while\n", said)
        page = summary(programs, 1)
        self.assertIn("  cargo test --package natsway-worker --test it slow\n", page)
        self.assertIn("tests: 4 passed, 1 failed, 1 skipped", page)

    def test_a_program_that_was_killed_counts_as_a_failure_with_what_it_said(self):
        programs, said = read(GOOD.partition("test slow has")[0] + "memory allocation failed\n")
        self.assertIn("natsway-worker, it ended before its tests did", said)
        self.assertIn("memory allocation failed", said)
        self.assertIn("  cargo test --package natsway-worker --test it\n", summary(programs, 1))

    def test_the_sums_of_nextest_are_read_from_its_last_line(self):
        reader = NextestReader(io.StringIO())
        reader.line("     Summary [  12.345s] 43 tests run: 40 passed (1 slow), 2 failed, 1 timed out, 5 skipped")
        read_sums = (reader.program.passed, reader.program.failed, reader.program.skipped, reader.program.seconds)
        self.assertEqual(read_sums, (40, 3, 5, 12.345))


class Follow(unittest.TestCase):
    def test_lines_come_without_their_colours(self):
        lines = []
        said = "print('\\x1b[1m\\x1b[92m     Running\\x1b[0m unittests src/lib.rs (target/debug/deps/it-2e)')"
        self.assertEqual(follow([sys.executable, "-c", said], lines.append), 0)
        self.assertEqual(lines, ["     Running unittests src/lib.rs (target/debug/deps/it-2e)"])


class Labels(unittest.TestCase):
    def test_a_program_is_named_after_its_package_and_what_it_tests(self):
        def built(package_id, kind, name, executable, is_test=True):
            return json.dumps({
                "reason": "compiler-artifact", "package_id": package_id, "manifest_path": "/x/worker/Cargo.toml",
                "target": {"kind": [kind], "name": name}, "profile": {"test": is_test}, "executable": executable,
            })

        found = labels([
            built("path+file:///x/worker#natsway-worker@0.1.0", "test", "it", "/t/deps/it-1"),
            built("path+file:///x/worker#0.1.0", "lib", "natsway_worker", "/t/deps/natsway_worker-2"),
            built("path+file:///x/worker#natsway-worker@0.1.0", "bin", "worker", "/t/worker", is_test=False),
            '{"reason": "build-finished", "success": true}',
        ])
        self.assertEqual(found["it-1"].label, "natsway-worker, it")
        self.assertEqual(found["it-1"].rerun, "--package natsway-worker --test it")
        self.assertEqual(found["natsway_worker-2"].rerun, "--package worker --lib")
        self.assertEqual(set(found), {"it-1", "natsway_worker-2"})


if __name__ == "__main__":
    unittest.main()
