"""Lists what is in an image as CycloneDX 1.5 JSON: python deploy/sbom.py IMAGE > sbom.json.

The image itself is asked, by its own Python: which distributions its environment has, which packages Debian's dpkg
noted. So it needs no scanner, and lists what is there rather than what was meant to be.
"""

from __future__ import annotations

import json
import subprocess

import click

ASK = """
import json, pathlib
from importlib.metadata import distributions
found = {("pypi", d.metadata["Name"].lower().replace("_", "-"), d.version) for d in distributions()}
status = pathlib.Path("/var/lib/dpkg/status")
for entry in status.read_text().split("\\n\\n") if status.exists() else ():
    fields = dict(line.split(": ", 1) for line in entry.splitlines() if ": " in line and line[0] != " ")
    if fields.get("Status", "").endswith(" installed"):
        found.add(("deb/debian", fields["Package"], fields["Version"]))
print(json.dumps(sorted(found)))
"""


def sbom(image: str) -> dict[str, object]:
    """The document; subprocess.CalledProcessError where the image is missing or has no Python."""
    options = ("--rm", "-i", "--pull=never", "--network=none", "--entrypoint=python3")
    command = ["docker", "run", *options, "--", image, "-"]
    answer = subprocess.run(command, input=ASK, capture_output=True, text=True, check=True, timeout=120)
    components = [
        {"type": "library", "name": name, "version": version, "purl": f"pkg:{kind}/{name}@{version}"}
        for kind, name, version in json.loads(answer.stdout)
    ]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {"type": "container", "name": image}},
        "components": components,
    }


@click.command()
@click.argument("image")
def main(image: str) -> None:
    """Lists every package in IMAGE, such as eca-serve/gateway:0.1.0, as CycloneDX 1.5 JSON.

    The image must be on this machine, and contain Python; docker runs it without a network.
    """
    try:
        click.echo(json.dumps(sbom(image), indent=1))
    except FileNotFoundError:
        raise click.ClickException("docker is not installed, or not in PATH; it runs the image") from None
    except subprocess.TimeoutExpired:
        raise click.ClickException(f"{image} did not answer within two minutes") from None
    except subprocess.CalledProcessError as error:
        raise click.ClickException(f"{image} could not be asked: {error.stderr.strip()}") from None


if __name__ == "__main__":
    main()
