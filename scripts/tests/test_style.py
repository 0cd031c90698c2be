"""Old words and wide lines are found, and nothing else is."""

import unittest

from check_style import WIDTH, faults, tracked, width_faults, word_faults


class Words(unittest.TestCase):
    def test_an_old_word_is_found_where_it_is_one(self):
        found = list(word_faults("apiproxy/src/shard.rs", "struct Seat;\n// the core\n"))
        self.assertEqual(len(found), 2, found)
        self.assertIn("apiproxy/src/shard.rs:1: 'Seat'", found[0])
        self.assertEqual(list(word_faults("provisioner/src/lib.rs", "struct Seat; // the core\n")), [])

    def test_no_file_has_one(self):
        self.assertEqual(list(faults(tracked())), [])


class Widths(unittest.TestCase):
    def test_comments_are_narrow_and_tables_and_addresses_are_not_broken(self):
        word = "a " * WIDTH
        self.assertEqual(len(list(width_faults("a.rs", f"// {word}"))), 1)
        self.assertEqual(list(width_faults("a.rs", f"// | {word}|")), [])
        self.assertEqual(list(width_faults("a.rs", f"// see https://example.org/{word}")), [])

    def test_raw_text_is_as_wide_as_it_is(self):
        text = f'let a = r#"{"a " * 80}\n{"b " * 80}"#;\nlet c = 1;'
        self.assertEqual(list(width_faults("a.rs", text)), [])
