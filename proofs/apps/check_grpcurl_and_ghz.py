"""grpcurl lists, describes and calls by reflection, and ghz calls by the thousand."""

import json
import subprocess

from observe import BASE, saw

ADDRESS = BASE.removeprefix("http://")
SERVICE = "grpc.testing.TestService"


def grpcurl(*arguments):
    """How it ended, and what it said."""
    ended = subprocess.run(["grpcurl", "-plaintext", *arguments], capture_output=True, text=True, timeout=60)
    return ended.returncode, (ended.stdout + ended.stderr).splitlines()


saw("list", grpcurl(ADDRESS, "list"))
saw("describe", grpcurl(ADDRESS, "describe", SERVICE))
saw("empty", grpcurl(ADDRESS, f"{SERVICE}/EmptyCall"))
saw("unary", grpcurl("-d", '{"response_size": 20}', ADDRESS, f"{SERVICE}/UnaryCall"))
saw("metadata", grpcurl("-v", "-H", "x-grpc-test-echo-initial: mine", "-d", '{"response_size": 1}', ADDRESS, f"{SERVICE}/UnaryCall")[0])
sizes = json.dumps({"response_parameters": [{"size": 3}, {"size": 30_000}, {"size": 5}]})
saw("streamed", grpcurl("-d", sizes, ADDRESS, f"{SERVICE}/StreamingOutputCall"))
saw("a status", grpcurl("-d", '{"response_status": {"code": 5, "message": "no such thing"}}', ADDRESS, f"{SERVICE}/UnaryCall"))
saw("no such method", grpcurl(ADDRESS, f"{SERVICE}/UnimplementedCall"))
load = ["ghz", "--insecure", "--call", f"{SERVICE}.UnaryCall", "-d", '{"response_size": 100}', "-n", "5000", "-c", "16", "--connections", "4"]
ended = subprocess.run([*load, "--format", "json", ADDRESS], capture_output=True, text=True, timeout=120)
report = json.loads(ended.stdout)
saw("5,000 calls by ghz", (report["count"], report["statusCodeDistribution"], report.get("errorDistribution")))
