"""An S3-compatible server: moto's (https://docs.getmoto.org, Apache-2.0), the real HTTP server on loopback.

It keeps its objects in memory, takes any credentials, and lists consistently, as S3 has since December 2020.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

SECRET = "not-to-be-seen-anywhere"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "tests",
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_PROXY": "127.0.0.1",
    "no_proxy": "127.0.0.1",
}
BUCKET = "runs"


class S3Server:
    """A running server with one empty bucket."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.endpoint = f"{host}:{port}"
        self.client: Any = boto3.client("s3", endpoint_url=f"http://{self.endpoint}", region_name="us-east-1")
        self.client.create_bucket(Bucket=BUCKET)

    def uri(self, path: str, bucket: str = BUCKET) -> str:
        """The URI of a folder or file in a bucket."""
        return f"s3://{bucket}/{path}?endpoint_override={self.endpoint}&scheme=http&region=us-east-1"

    def stop(self) -> None:
        """End it; what it held is gone."""
        self._server.stop()


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    """One server for the tests of a module; they keep to folders of their own."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE"):
            patch.delenv(name, raising=False)
        server = S3Server()
        yield server
        server.stop()


@pytest.fixture(params=["file", "s3"])
def root(request: pytest.FixtureRequest, s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URI of an empty folder, on disk and in the server."""
    folder = tmp_path_factory.mktemp("store")
    return folder.as_uri() if request.param == "file" else s3.uri(folder.name)
