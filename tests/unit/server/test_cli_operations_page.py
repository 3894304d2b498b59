"""What docs/operations.md tells an operator to type: the certificates work, the options exist."""

import re
import shlex
import shutil
import ssl
import subprocess
from pathlib import Path

import click
import pytest
from typer.main import get_command
from typer.testing import CliRunner

from server.cli import app
from tests.fixtures.scripted_server import Answer, scripted_server

PAGES = [Path(__file__).parents[3] / page for page in ("docs/operations.md", "README.md")]
BLOCKS = [block for page in PAGES for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)]
COMMANDS = [
    line.removeprefix(".venv/bin/")
    for block in BLOCKS
    for line in block.splitlines()
    if re.match(r"(\.venv/bin/)?medley (serve|adapters|keys|summarize)", line)
]


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_of_the_pages_parse(line: str) -> None:
    words = shlex.split(line.partition(" > ")[0], comments=True)[1:]
    command = get_command(app)
    context = click.Context(command, info_name="medley")
    while isinstance(command, click.Group):
        name, command, words = command.resolve_command(context, words)
        assert command is not None
        context = click.Context(command, parent=context, info_name=name)
    # Parses without running: unknown options and missing arguments are errors here.
    command.parse_args(context, words)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_certificates_of_the_page_serve_both_sides(tmp_path: Path) -> None:
    (block,) = [block for block in BLOCKS if "openssl" in block]
    subprocess.run(["bash", "-euc", block], cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    context.load_verify_locations(tmp_path / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    options = ["--ca-file", "ca.pem", "--client-cert", "client.pem", "--client-key", "client.key"]
    paths = [option if option.startswith("--") else str(tmp_path / option) for option in options]
    with scripted_server(context) as server:
        server.answers = [Answer(body={"adapters": []})]
        for host in ("localhost", "127.0.0.1"):
            url = server.url.replace("127.0.0.1", host)
            done = CliRunner().invoke(app, ["adapters", "list", "--server", url, *paths])
            assert (done.exit_code, done.stderr) == (0, "")
