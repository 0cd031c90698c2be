"""What `make check` takes for changed."""

import unittest

from check_changes import changed_packages

FOLDERS = {
    "worker": "natsway-worker",
    "partitioned-consumer": "natsway-partitioned-consumer",
    "partitioned-consumer/shipper": "natsway-shipper",
}


class Packages(unittest.TestCase):
    def test_a_file_changes_the_package_of_the_innermost_folder(self):
        self.assertEqual(changed_packages(["partitioned-consumer/shipper/src/accept.rs"], FOLDERS), {"natsway-shipper"})
        self.assertEqual(changed_packages(["worker/src/lib.rs", "docs/wire.md"], FOLDERS), {"natsway-worker"})

    def test_settings_of_the_workspace_change_every_package_and_a_document_changes_none(self):
        self.assertEqual(changed_packages(["clippy.toml"], FOLDERS), set(FOLDERS.values()))
        self.assertEqual(changed_packages(["docs/wire.md", "README.md"], FOLDERS), set())


if __name__ == "__main__":
    unittest.main()
