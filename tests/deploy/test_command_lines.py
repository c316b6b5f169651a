"""The manifests' command lines, run for real: the pods' commands as processes of this machine become a cluster.

Needs the built binary (HOLDFAST_BIN), so it runs after the build, apart from the other tests of this folder.
"""

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from manifests import KUSTOMIZE, render
from policies import container, flags, pod, proxies, replicas

HOLDFAST = os.environ["HOLDFAST_BIN"]
DEADLINE_S = 60


@pytest.fixture(scope="module")
def manifests():
    return render(KUSTOMIZE / "base")


@pytest.mark.parametrize("workload", [replicas, proxies], ids=["replica", "proxy"])
def test_the_binary_knows_every_flag(manifests, workload):
    role = container(workload(manifests))["args"][0]
    known = subprocess.run([HOLDFAST, role, "--help"], check=True, stdout=subprocess.PIPE, text=True).stdout
    unknown = [flag for flag in flags(workload(manifests)) if f"--{flag}" not in known.split()]
    assert unknown == []


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class Pod:
    """One pod's container as a process: the manifest's command with what Kubernetes and its DNS would put in."""

    def __init__(self, workload, name, folder, hosts):
        self.name = name
        self.probes = {p: container(workload)[p]["httpGet"]["path"] for p in ("startupProbe", "readinessProbe")}
        self.grace_s = pod(workload)["terminationGracePeriodSeconds"]
        args = []
        for arg in container(workload)["args"]:
            arg = (
                arg.replace("$(POD_NAME)", name).replace("$(POD_NAMESPACE)", "hub").replace("/var/lib/holdfast", folder)
            )
            for address, here in hosts.items():
                arg = arg.replace(address, here)
            args.append(arg)
        self.admin = next(arg for arg in args if arg.startswith("--listen-admin=")).split("=")[1]
        self.log = Path(f"{folder}.log")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([HOLDFAST, *args], stdout=log, stderr=log)

    def get(self, path):
        """The status of a GET on the admin port; None while nobody listens."""
        try:
            with urllib.request.urlopen(f"http://{self.admin}{path}", timeout=5) as response:
                return response.status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return None

    def wait_for(self, probe):
        deadline = time.monotonic() + DEADLINE_S
        while (status := self.get(self.probes[probe])) != 200:
            assert self.process.poll() is None, f"{self.name} ended: {self.tail()}"
            assert time.monotonic() < deadline, f"{self.name}: {probe} still {status}: {self.tail()}"
            time.sleep(0.05)

    def tail(self):
        return self.log.read_text(errors="replace")[-2000:]

    def kill(self):
        self.process.kill()
        self.process.wait()


def test_the_command_lines_make_a_cluster_that_its_probes_find_ready(manifests, tmp_path):
    workload = replicas(manifests)
    name, service = workload["metadata"]["name"], workload["spec"]["serviceName"]
    count = workload["spec"]["replicas"]
    ports = {ordinal: free_ports(3) for ordinal in range(count)}
    dns = {}
    for ordinal, (client, peer, _) in ports.items():
        dns[f"{name}-{ordinal}.{service}.hub.svc:7011"] = f"127.0.0.1:{client}"
        dns[f"{name}-{ordinal}.{service}:7011"] = f"127.0.0.1:{client}"
        dns[f"{name}-{ordinal}.{service}:7012"] = f"127.0.0.1:{peer}"

    pods = []
    try:
        for ordinal, own in ports.items():
            listeners = {
                f"0.0.0.0:{port}": f"127.0.0.1:{here}" for port, here in zip((7011, 7012, 7013), own, strict=True)
            }
            pods.append(Pod(workload, f"{name}-{ordinal}", str(tmp_path / f"replica-{ordinal}"), dns | listeners))
        for started in pods:
            started.wait_for("startupProbe")
        for started in pods:
            started.wait_for("readinessProbe")

        public, admin = free_ports(2)
        listeners = {"0.0.0.0:8002": f"127.0.0.1:{admin}", "--port=8000": f"--port={public}"}
        proxy = Pod(proxies(manifests), "holdfast-proxy-x", str(tmp_path / "proxy"), dns | listeners)
        pods.append(proxy)
        proxy.wait_for("startupProbe")
        proxy.wait_for("readinessProbe")

        # As Kubernetes ends a pod; an idle one must not need its whole grace period.
        for started in reversed(pods):
            started.process.send_signal(signal.SIGTERM)
            assert started.process.wait(timeout=started.grace_s) == 0, started.tail()
    finally:
        for started in pods:
            started.kill()
