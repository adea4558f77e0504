"""A suite whose judge cannot say no proves nothing."""
import unittest

from tap import judge


class Judge(unittest.TestCase):
    def test_each_outcome(self):
        for outcome, status, text in [
            ("pass", 0, "TAP version 13\nok 1 - a\nok 2 - b\n1..2\n"),
            ("pass", 0, "1..2\n  ---\n  {}\n  ...\nok 1 - a\nok 2 # SKIP b\n"),
            ("pass", 0, "not ok 1 - a # TODO\n1..1\n"),
            ("pass", 0, "TAP version 13\n1..0\n"),
            ("pass", 0, ""),
            ("skip", 0, "ok 1 # SKIP a\nok 2 # skip b\n1..2\n"),
            ("fail: not ok 2 3", 0, "ok 1 - a\nnot ok 2 - b\nnot ok 3 - c\n1..3\n"),
            ("fail: not ok 1, exit 2", 2, "not ok 1 - a\n"),
            ("fail: exit 1", 1, "ok 1 - a\n1..1\n"),
            ("fail: exit 127", 127, ""),
            ("fail: block", 0, "TAP version 13\n  ---\n  {\"error\": \"x\"}\n  ...\n1..0\n"),
            ("fail: 1 checks of 2 planned", 0, "ok 1 - a\n1..2\n"),
            ("fail: no plan", 0, "ok 1 - a\n"),
            ("fail: deadline", None, "ok 1 - a\n1..1\n"),
        ]:
            with self.subTest(text=text, status=status):
                self.assertEqual(judge(status, text), outcome)


if __name__ == "__main__":
    unittest.main()
