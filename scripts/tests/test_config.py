"""What `make run` accepts, and how it says what it does not."""

import socket
import threading
import unittest

from demo_config import (
    Address,
    Mistakes,
    check_broker,
    check_ports,
    parse_address,
    parse_info,
    port_problem,
    read_config,
    without_secrets,
)
from tooling import ToolError


class Greeter:
    """A port at which one client gets this line."""

    def __init__(self, line):
        self.line = line

    def __enter__(self):
        self.server = socket.create_server(("127.0.0.1", 0))
        self.thread = threading.Thread(target=self.greet)
        self.thread.start()
        return f"nats://127.0.0.1:{self.server.getsockname()[1]}"

    def greet(self):
        connection, _ = self.server.accept()
        with connection:
            connection.sendall(self.line.encode())

    def __exit__(self, *_):
        self.thread.join()
        self.server.close()


class Addresses(unittest.TestCase):
    def test_an_address_is_an_ip_and_a_port(self):
        self.assertEqual(parse_address("127.0.0.1:80"), Address("127.0.0.1", 80))
        self.assertEqual(parse_address("[::1]:65535"), Address("::1", 65535))
        self.assertEqual(str(parse_address("[::1]:1")), "[::1]:1")

    def test_anything_else_is_refused(self):
        for text in ("", "x", "80", ":80", "localhost:80", "1.2.3:80", "::1:80", "[127.0.0.1]:80", "127.0.0.1:0",
                     "127.0.0.1:65536", "127.0.0.1:-1", "127.0.0.1:٣", "127.0.0.1:80 "):
            with self.subTest(text), self.assertRaisesRegex(ValueError, "expected an IP address and a port"):
                parse_address(text)

    def test_nobody_dials_a_wildcard(self):
        self.assertEqual(str(Address("0.0.0.0", 80).dialled()), "127.0.0.1:80")
        self.assertEqual(str(Address("::", 80).dialled()), "[::1]:80")
        self.assertEqual(str(Address("10.0.0.1", 80).dialled()), "10.0.0.1:80")


class Configs(unittest.TestCase):
    def test_the_defaults(self):
        config = read_config([], {})
        self.assertEqual(
            [str(where) for _, where, _ in config.listeners()],
            ["127.0.0.1:8080", "127.0.0.1:8081", "127.0.0.1:4222", "127.0.0.1:8222"],
        )
        self.assertEqual((config.workers, config.check, config.nats_url), (2, False, None))

    def test_a_flag_wins_over_the_environment(self):
        environment = {"NATSWAY_LISTEN": "127.0.0.1:1", "NATSWAY_ADMIN_LISTEN": "127.0.0.1:2"}
        config = read_config(["--listen", "127.0.0.1:3"], environment)
        self.assertEqual((config.listen.port, config.admin.port), (3, 2))

    def test_a_broker_that_is_named_is_not_started(self):
        config = read_config([], {"NATS_URL": "nats://other:4222"})
        self.assertEqual(config.nats_url, "nats://other:4222")
        self.assertEqual(len(config.listeners()), 2)
        self.assertIsNone(read_config([], {"NATS_URL": ""}).nats_url)

    def test_every_mistake_is_told_at_once(self):
        arguments = ["--listen", "here", "--workers", "0", "--nats-monitor", "127.0.0.1:4222"]
        with self.assertRaises(Mistakes) as caught:
            read_config(arguments, {"NATSWAY_ADMIN_LISTEN": "there"})
        lines = str(caught.exception).splitlines()
        self.assertEqual(len(lines), 4)
        self.assertIn("--listen=here: expected an IP address", lines[0])
        self.assertIn("NATSWAY_ADMIN_LISTEN=there: expected", lines[1])
        self.assertIn("--workers=0: expected 1..=64", lines[2])
        self.assertIn("cannot both listen on 127.0.0.1:4222", lines[3])

    def test_a_named_broker_cannot_be_given_an_address(self):
        with self.assertRaisesRegex(Mistakes, "--nats-listen and --nats-monitor have no meaning"):
            read_config(["--nats-listen", "127.0.0.1:1"], {"NATS_URL": "nats://me:secret@other"})


class Ports(unittest.TestCase):
    def test_a_port_in_use_is_named_with_its_remedy(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            config = read_config(["--listen", f"127.0.0.1:{port}"], {"NATS_URL": "nats://x"})
            with self.assertRaisesRegex(Mistakes, f"127.0.0.1:{port}, where the gateway should listen, is in use; .*--listen"):
                check_ports(config)
        self.assertIsNone(port_problem(Address("127.0.0.1", port)))

    def test_an_address_of_another_machine_is_told(self):
        # TEST-NET-1 of RFC 5737: no machine has it.
        self.assertEqual(port_problem(Address("192.0.2.1", 4222)), "is not an address of this machine")


class Brokers(unittest.TestCase):
    def test_passwords_are_not_printed(self):
        self.assertEqual(without_secrets("nats://me:pw@a:1,tls://token@b"), "nats://***@a:1,tls://***@b")
        for urls, shown in (
            ("nats://a:1", "nats://a:1"),
            ("nats://a:1,b:2", "nats://a:1,b:2"),
            ("me:pw@a:1", "***@a:1"),
            ("nats://me:p/w@a:1", "nats://***@a:1"),
            ("nats://me:p,w@a:1, nats://b:2", "nats://***@a:1, nats://b:2"),
            ("nats://me:p@w@a:1", "nats://***@a:1"),
            ("nats://me:a://b@c", "nats://***@c"),
            ("nats://a:1,me:pw@b:2", "nats://***@b:2"),
        ):
            with self.subTest(urls):
                self.assertEqual(without_secrets(urls), shown)

    def test_no_piece_of_a_password_is_in_a_complaint(self):
        for urls in ("nats://me:first/second@a:1", "nats://me:12/second@a:1", "nats://me:first,second@a:1",
                     "nats://me:first second@a:1:2", "nats://first:second@a:99999", "nats://me:first@[a:1"):
            with self.subTest(urls), self.assertRaises(ToolError) as caught:
                check_broker(urls, (2, 11, 0))
            self.assertIn("must be percent-encoded", str(caught.exception))
            self.assertNotRegex(str(caught.exception), "first|second|12")

    def test_an_address_needs_a_host(self):
        for urls in ("", ",", "nats://", "nats://me:pw@", "nats://:4222"):
            with self.subTest(urls), self.assertRaises(ToolError):
                check_broker(urls, (2, 11, 0))

    def test_only_a_nats_server_says_info(self):
        self.assertEqual(parse_info('INFO {"version":"2.15.1"} \r\n')["version"], "2.15.1")
        for line in ("", "HTTP/1.1 400 Bad Request\r\n", "INFO []\r\n", "INFO {\r\n"):
            with self.subTest(line), self.assertRaises(ValueError):
                parse_info(line)

    def test_an_old_broker_is_refused(self):
        with Greeter('INFO {"version":"2.10.29"}\r\n') as url:
            with self.assertRaisesRegex(ToolError, "is version 2.10.29, natsway needs >= 2.11.0"):
                check_broker(url, (2, 11, 0))

    def test_one_broker_of_several_is_enough(self):
        with Greeter('INFO {"version":"2.11.0"}\r\n') as url:
            check_broker(f"nats://127.0.0.1:1,{url}", (2, 11, 0))

    def test_a_missing_broker_is_told_with_a_remedy(self):
        with self.assertRaisesRegex(ToolError, r"(?s)no broker answers there .*unset NATS_URL"):
            check_broker("127.0.0.1:1", (2, 11, 0))
