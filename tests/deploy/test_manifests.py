"""The manifests hold what policies.py asks; and each check is proved by an attack that it has to notice."""

import copy
import json
import re

import pytest
from manifests import KUBERNETES_VERSIONS, KUSTOMIZATIONS, KUSTOMIZE, ROOT, render, schema_errors
from policies import POLICIES, breaches, container, find, pod, proxies, replicas

BASE = KUSTOMIZE / "base"


@pytest.fixture(scope="module")
def rendered():
    return {path: render(path) for path in KUSTOMIZATIONS}


@pytest.fixture
def base(rendered):
    """The base, the test's own to damage."""
    return copy.deepcopy(rendered[BASE])


@pytest.mark.parametrize("kubernetes", KUBERNETES_VERSIONS)
@pytest.mark.parametrize("path", KUSTOMIZATIONS, ids=lambda path: path.name)
def test_manifests_are_valid(rendered, path, kubernetes, tmp_path):
    assert schema_errors(rendered[path], kubernetes, tmp_path) == []


@pytest.mark.parametrize("path", KUSTOMIZATIONS, ids=lambda path: path.name)
def test_manifests_keep_every_policy(rendered, path):
    assert breaches(rendered[path]) == []


def test_only_the_trial_lets_replicas_share_a_node(rendered):
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    for path, manifests in rendered.items():
        affinity = pod(replicas(manifests))["affinity"]["podAntiAffinity"]
        assert (required in affinity) == (path.name != "trial"), path


def test_overlays_change_nothing_that_cannot_be_changed(rendered):
    """A StatefulSet refuses changes outside these fields, so an overlay can be replaced by the base later on."""
    changeable = {"replicas", "template", "updateStrategy", "minReadySeconds", "persistentVolumeClaimRetentionPolicy"}
    base = replicas(rendered[BASE])["spec"]
    for path, manifests in rendered.items():
        spec = replicas(manifests)["spec"]
        changed = {key for key in base.keys() | spec.keys() if base.get(key) != spec.get(key)} - changeable
        assert changed <= {"volumeClaimTemplates"}, path  # a smaller disk for the trial, said in its own words


# Attacks on the schema check.


def test_a_misspelt_probe_is_refused(base, tmp_path):
    attacked = container(replicas(base))
    attacked["readinessProb"] = attacked.pop("readinessProbe")
    assert any("readinessProb" in error for error in schema_errors(base, "1.37", tmp_path))


def test_a_field_of_the_wrong_type_is_refused(base, tmp_path):
    replicas(base)["spec"]["replicas"] = "three"
    assert schema_errors(base, "1.37", tmp_path) != []


def test_a_kind_without_a_schema_is_refused(base, tmp_path):
    base.append({"apiVersion": "monitoring.coreos.com/v1", "kind": "ServiceMonitor", "metadata": {"name": "holdfast"}})
    assert schema_errors(base, "1.37", tmp_path) != []


# Attacks on the policies: (policy, what is done to the manifests).


def attack_budget(name, **changes):
    def attack(manifests):
        find(manifests, "PodDisruptionBudget", name)["spec"].update(changes)

    return attack


def attack_flag(workload, old, new):
    def attack(manifests):
        args = container(workload(manifests))["args"]
        assert any(old in arg for arg in args)
        container(workload(manifests))["args"] = [arg.replace(old, new) for arg in args]

    return attack


def attack_policy_ingress(name, rule):
    def attack(manifests):
        find(manifests, "NetworkPolicy", name)["spec"]["ingress"].append(rule)

    return attack


ATTACKS = [
    ("replicas_start_together", lambda m: replicas(m)["spec"].update(podManagementPolicy="OrderedReady")),
    ("replicas_start_together", lambda m: replicas(m)["spec"].pop("podManagementPolicy")),
    ("replicas_are_exactly_their_peers", lambda m: replicas(m)["spec"].update(replicas=5)),
    ("replicas_are_exactly_their_peers", lambda m: replicas(m)["spec"].update(replicas=2)),
    (
        "replicas_are_exactly_their_peers",
        attack_flag(replicas, "holdfast-1.holdfast-peers", "holdfast-0.holdfast-peers"),
    ),
    ("replicas_are_exactly_their_peers", attack_flag(replicas, "--name=$(POD_NAME)", "--name=holdfast-0")),
    ("replicas_tell_an_address_that_others_can_reach", attack_flag(replicas, "0.0.0.0:7011", "127.0.0.1:7011")),
    ("replicas_tell_an_address_that_others_can_reach", attack_flag(replicas, "0.0.0.0:7013", "0.0.0.0:7014")),
    ("replicas_tell_an_address_that_others_can_reach", attack_flag(replicas, "=$(POD_NAME).", "=holdfast-api.")),
    (
        "replicas_keep_their_volumes",
        lambda m: replicas(m)["spec"]["persistentVolumeClaimRetentionPolicy"].update(whenScaled="Delete"),
    ),
    ("replicas_keep_their_volumes", lambda m: replicas(m)["spec"].pop("persistentVolumeClaimRetentionPolicy")),
    ("replicas_keep_their_volumes", attack_flag(replicas, "/var/lib/holdfast", "/tmp")),
    ("replicas_update_one_by_one", lambda m: replicas(m)["spec"].update(updateStrategy={"type": "OnDelete"})),
    ("replicas_update_one_by_one", lambda m: replicas(m)["spec"].pop("minReadySeconds")),
    (
        "replicas_update_one_by_one",
        lambda m: replicas(m)["spec"]["updateStrategy"]["rollingUpdate"].update(maxUnavailable=2),
    ),
    ("replicas_do_not_share_a_node", lambda m: pod(replicas(m)).pop("affinity")),
    ("replicas_do_not_share_a_node", lambda m: pod(replicas(m)).pop("topologySpreadConstraints")),
    ("a_new_proxy_comes_before_an_old_one_goes", lambda m: proxies(m)["spec"].update(strategy={"type": "Recreate"})),
    ("a_new_proxy_comes_before_an_old_one_goes", lambda m: proxies(m)["spec"].update(replicas=1)),
    (
        "a_new_proxy_comes_before_an_old_one_goes",
        lambda m: proxies(m)["spec"]["strategy"]["rollingUpdate"].update(maxUnavailable="25%"),
    ),
    ("proxies_know_every_replica", attack_flag(proxies, ",holdfast-2.holdfast-peers:7011", "")),
    ("proxies_have_time_to_drain", lambda m: pod(proxies(m)).update(terminationGracePeriodSeconds=30)),
    ("proxies_have_time_to_drain", attack_flag(proxies, "--drain-timeout=60s", "--drain-timeout=3600s")),
    ("proxies_have_time_to_drain", attack_flag(proxies, "--drain-delay=10s", "--drain-delay=0s")),
    ("proxies_cache_the_table", lambda m: pod(proxies(m))["volumes"][0]["emptyDir"].update(medium="Memory")),
    ("proxies_cache_the_table", lambda m: pod(proxies(m))["volumes"][0]["emptyDir"].clear()),
    ("proxies_cache_the_table", attack_flag(proxies, "/var/lib/holdfast", "/tmp")),
    ("proxies_prefer_different_nodes_and_zones", lambda m: pod(proxies(m)).pop("affinity")),
    ("one_disruption_at_a_time", attack_budget("holdfast-replica", maxUnavailable=2)),
    ("one_disruption_at_a_time", attack_budget("holdfast-replica", unhealthyPodEvictionPolicy="AlwaysAllow")),
    ("one_disruption_at_a_time", attack_budget("holdfast-proxy", unhealthyPodEvictionPolicy="IfHealthyBudget")),
    ("one_disruption_at_a_time", attack_budget("holdfast-proxy", selector={"matchLabels": {"app": "holdfast"}})),
    ("evicted_after_users", lambda m: find(m, "PriorityClass", "holdfast").update(value=-10)),
    ("evicted_after_users", lambda m: find(m, "PriorityClass", "holdfast").update(globalDefault=True)),
    ("evicted_after_users", lambda m: pod(proxies(m)).pop("priorityClassName")),
    (
        "quality_of_service_is_guaranteed",
        lambda m: container(proxies(m))["resources"]["limits"].pop("ephemeral-storage"),
    ),
    (
        "quality_of_service_is_guaranteed",
        lambda m: container(replicas(m))["resources"]["requests"].update(memory="128Mi"),
    ),
    ("quality_of_service_is_guaranteed", lambda m: container(replicas(m)).pop("resources")),
    (
        "probes_ask_the_right_question",
        lambda m: container(replicas(m))["livenessProbe"]["httpGet"].update(path="/readyz"),
    ),
    ("probes_ask_the_right_question", lambda m: container(proxies(m)).pop("readinessProbe")),
    ("probes_ask_the_right_question", lambda m: container(replicas(m))["startupProbe"].update(failureThreshold=3)),
    ("probes_ask_the_right_question", lambda m: container(proxies(m))["livenessProbe"].update(failureThreshold=1)),
    ("pods_are_restricted", lambda m: pod(replicas(m))["securityContext"].update(runAsNonRoot=False)),
    ("pods_are_restricted", lambda m: pod(replicas(m))["securityContext"].pop("seccompProfile")),
    ("pods_are_restricted", lambda m: pod(proxies(m)).update(hostNetwork=True)),
    ("pods_are_restricted", lambda m: pod(proxies(m))["volumes"].append({"name": "x", "hostPath": {"path": "/"}})),
    ("pods_are_restricted", lambda m: container(proxies(m))["securityContext"].update(privileged=True)),
    ("pods_are_restricted", lambda m: container(proxies(m))["securityContext"]["capabilities"].update(add=["NET_RAW"])),
    ("pods_are_restricted", lambda m: container(proxies(m))["securityContext"].pop("readOnlyRootFilesystem")),
    ("no_token_for_the_kubernetes_api", lambda m: pod(replicas(m)).pop("automountServiceAccountToken")),
    ("no_token_for_the_kubernetes_api", lambda m: pod(proxies(m)).update(serviceAccountName="default")),
    (
        "no_token_for_the_kubernetes_api",
        lambda m: m.append({"kind": "ClusterRole", "metadata": {"name": "holdfast"}}),
    ),
    ("no_service_links", lambda m: pod(proxies(m)).pop("enableServiceLinks")),
    (
        "services_reach_what_they_should",
        lambda m: find(m, "Service", "holdfast-peers")["spec"].pop("publishNotReadyAddresses"),
    ),
    (
        "services_reach_what_they_should",
        lambda m: find(m, "Service", "holdfast-api")["spec"].update(publishNotReadyAddresses=True),
    ),
    (
        "services_reach_what_they_should",
        lambda m: find(m, "Service", "holdfast-proxy")["spec"]["selector"].pop("app.kubernetes.io/component"),
    ),
    ("services_reach_what_they_should", lambda m: find(m, "Service", "holdfast-peers")["spec"].pop("clusterIP")),
    ("strangers_are_refused", lambda m: m.remove(find(m, "NetworkPolicy", "holdfast-proxy"))),
    (
        "strangers_are_refused",
        lambda m: find(m, "NetworkPolicy", "holdfast-replica")["spec"]["policyTypes"].remove("Egress"),
    ),
    ("strangers_are_refused", attack_policy_ingress("holdfast-replica", {"ports": [{"port": "client"}]})),
    ("strangers_are_refused", attack_policy_ingress("holdfast-replica", {"from": [{"podSelector": {}}]})),
    (
        "strangers_are_refused",
        attack_policy_ingress(
            "holdfast-replica",
            {
                "from": [{"podSelector": {"matchLabels": {"component": "singleuser-server"}}}],
                "ports": [{"port": "client"}],
            },
        ),
    ),
    (
        "strangers_are_refused",
        attack_policy_ingress(
            "holdfast-replica",
            {"from": [{"podSelector": {"matchLabels": {"component": "hub"}}}], "ports": [{"port": "peer"}]},
        ),
    ),
    (
        "strangers_are_refused",
        attack_policy_ingress("holdfast-replica", {"from": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}),
    ),
    ("strangers_are_refused", lambda m: find(m, "NetworkPolicy", "holdfast-proxy")["spec"]["egress"].append({})),
    ("images_are_pinned", lambda m: container(proxies(m)).update(image="holdfast:latest")),
]


@pytest.mark.parametrize(
    ("policy_name", "attack"), ATTACKS, ids=[f"{name}-{number}" for number, (name, _) in enumerate(ATTACKS)]
)
def test_an_attack_is_noticed(base, policy_name, attack):
    before = json.dumps(base)
    attack(base)
    assert json.dumps(base) != before, "the attack changed nothing"
    assert list(POLICIES[policy_name](base)) != []


def test_every_policy_is_attacked():
    assert POLICIES.keys() == {name for name, _ in ATTACKS}


# The image.


def test_the_image_is_built_with_the_workspace_s_rust_and_does_not_run_as_root():
    dockerfile = (ROOT / "deploy" / "docker" / "Dockerfile").read_text()
    rust = re.search(r'^rust-version = "(.+)"', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)[1]
    assert f"FROM rust:{rust}-bookworm AS build" in dockerfile
    runtime = dockerfile.rsplit("\nFROM ", 1)[1]
    assert "\nUSER 65532:65532\n" in runtime
    assert ":latest" not in dockerfile


def test_the_image_and_the_manifests_have_the_workspace_s_version(rendered):
    version = re.search(r'^version = "(.+)"', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)[1]
    for manifests in rendered.values():
        for workload in (replicas(manifests), proxies(manifests)):
            assert container(workload)["image"] == f"holdfast:{version}"
