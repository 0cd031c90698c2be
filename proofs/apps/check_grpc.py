"""Go's interop client: each of its cases that needs no credentials."""

import subprocess

from observe import BASE, saw

CASES = (
    "empty_unary", "large_unary", "client_streaming", "server_streaming", "ping_pong", "empty_stream", "timeout_on_sleeping_server",
    "cancel_after_begin", "cancel_after_first_response", "status_code_and_message", "special_status_message", "custom_metadata",
    "unimplemented_method", "unimplemented_service",
)

port = BASE.rsplit(":", 1)[1]
for case in CASES:
    command = ["client", "--server_host=127.0.0.1", f"--server_port={port}", "--use_tls=false", f"--test_case={case}"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    saw(case, ended.returncode if ended.returncode == 0 else (ended.returncode, ended.stderr[-300:]))
