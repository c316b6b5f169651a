"""Renders the kustomizations as an operator would, and checks the result against the Kubernetes schemas."""

import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent.parent
KUSTOMIZE = ROOT / "deploy" / "kustomize"
KUSTOMIZATIONS = sorted(path.parent for path in KUSTOMIZE.rglob("kustomization.yaml"))
# The oldest and the newest Kubernetes that the manifests are checked against.
KUBERNETES_VERSIONS = ["1.29", "1.37"]

# Both come with requirements.txt, so that every machine renders with the same versions.
BIN = Path(sys.executable).parent


def render(kustomization: Path) -> list[dict]:
    """Every manifest of a kustomization, as `kubectl apply -k` would send it."""
    command = [BIN / "kubectl", "kustomize", kustomization]
    rendered = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [manifest for manifest in yaml.safe_load_all(rendered) if manifest]


def schema_errors(manifests: list[dict], kubernetes: str, folder: Path) -> list[str]:
    """What the schemas have against the manifests.

    kubernetes-validate only warns about a kind it does not know, and ends with 0: that counts as an error here, for a
    manifest that nobody checked has not passed.
    """
    file = folder / "manifests.yaml"
    file.write_text(yaml.safe_dump_all(manifests))
    command = [BIN / "kubernetes-validate", "--strict", "--kubernetes-version", kubernetes, file]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = [line for line in result.stdout.splitlines() if line.strip()]
    errors = [line for line in lines if not (line.startswith("INFO ") and " passed for resource " in line)]
    passed = len(lines) - len(errors)
    if result.returncode != 0 and not errors:
        errors.append(f"kubernetes-validate ended with {result.returncode}")
    if passed != len(manifests):
        errors.append(f"{passed} of {len(manifests)} manifests passed")
    return errors
