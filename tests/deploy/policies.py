"""What the manifests have to hold, beyond being valid Kubernetes: one function per rule, each yields its breaches.

A breach is one sentence that names the object. The reasons are comments beside the values in deploy/kustomize.
"""

from collections.abc import Callable, Iterator

REPLICA = {"app.kubernetes.io/name": "holdfast", "app.kubernetes.io/component": "replica"}
PROXY = {"app.kubernetes.io/name": "holdfast", "app.kubernetes.io/component": "proxy"}

POLICIES: dict[str, Callable[[list[dict]], Iterator[str]]] = {}


def policy(function):
    POLICIES[function.__name__] = function
    return function


def breaches(manifests: list[dict]) -> list[str]:
    return [f"{name}: {breach}" for name, check in POLICIES.items() for breach in check(manifests)]


# Finding things in the manifests.


def find(manifests, kind, name=None):
    found = [m for m in manifests if m["kind"] == kind and name in (None, m["metadata"]["name"])]
    assert found, f"no {kind} {name or ''}"
    return found if name is None else found[0]


def replicas(manifests):
    return find(manifests, "StatefulSet", "holdfast")


def proxies(manifests):
    return find(manifests, "Deployment", "holdfast-proxy")


def workloads(manifests):
    return [m for m in manifests if m["kind"] in ("StatefulSet", "Deployment", "DaemonSet", "Job", "CronJob", "Pod")]


def pod(workload):
    return workload["spec"]["template"]["spec"]


def container(workload):
    containers = pod(workload)["containers"]
    assert len(containers) == 1
    return containers[0]


def flags(workload):
    """The container's flags by name, without the dashes."""
    return dict(arg[2:].split("=", 1) for arg in container(workload)["args"][1:])


def seconds(text):
    return int(text.removesuffix("s"))


def selects(selector, labels):
    return selector.items() <= labels.items()


def named(workload):
    return f"{workload['kind']} {workload['metadata']['name']}"


# Replicas.


@policy
def replicas_start_together(manifests):
    if replicas(manifests)["spec"].get("podManagementPolicy") != "Parallel":
        yield "a first start needs all replicas at once: podManagementPolicy must be Parallel"


@policy
def replicas_are_exactly_their_peers(manifests):
    workload = replicas(manifests)
    name, service = workload["metadata"]["name"], workload["spec"]["serviceName"]
    peer_port = next(port["containerPort"] for port in container(workload)["ports"] if port["name"] == "peer")
    pods = [f"{name}-{ordinal}" for ordinal in range(workload["spec"]["replicas"])]
    if len(pods) % 2 == 0:
        yield f"{len(pods)} replicas survive no more than {len(pods) - 1} would"
    if flags(workload)["peers"] != ",".join(f"{p}={p}.{service}:{peer_port}" for p in pods):
        yield f"--peers does not name the pods {', '.join(pods)} on port {peer_port}"
    if flags(workload)["name"] != "$(POD_NAME)":
        yield "--name is not the pod's name"


@policy
def replicas_tell_an_address_that_others_can_reach(manifests):
    workload = replicas(manifests)
    address = flags(workload)["advertise-client"]
    if not address.startswith(f"$(POD_NAME).{workload['spec']['serviceName']}."):
        yield f"--advertise-client={address} is not the pod's own name"
    for flag in ("listen-client", "listen-peer", "listen-admin"):
        host, port = flags(workload)[flag].rsplit(":", 1)
        ports = {p["name"]: str(p["containerPort"]) for p in container(workload)["ports"]}
        if host != "0.0.0.0":
            yield f"--{flag} listens on {host} alone"
        if ports[flag.removeprefix("listen-")] != port:
            yield f"--{flag} and the container's port differ"


@policy
def replicas_keep_their_volumes(manifests):
    workload = replicas(manifests)
    retention = workload["spec"].get("persistentVolumeClaimRetentionPolicy", {})
    if retention != {"whenDeleted": "Retain", "whenScaled": "Retain"}:
        yield f"volumes are not kept: {retention}"
    claims = {claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", [])}
    mounts = {mount["mountPath"]: mount["name"] for mount in container(workload).get("volumeMounts", [])}
    if mounts.get(flags(workload)["data-dir"]) not in claims:
        yield "--data-dir is not on a claimed volume"


@policy
def replicas_update_one_by_one(manifests):
    spec = replicas(manifests)["spec"]
    if spec.get("updateStrategy", {}).get("type") != "RollingUpdate" or spec.get("minReadySeconds", 0) < 1:
        yield "an update must roll, and see each replica ready for a while"
    if spec["updateStrategy"].get("rollingUpdate", {}).get("maxUnavailable", 1) != 1:
        yield "an update may take one replica at a time"


@policy
def replicas_do_not_share_a_node(manifests):
    """All but the trial, which says so by `preferred`, and then must really prefer it."""
    affinity = pod(replicas(manifests)).get("affinity", {}).get("podAntiAffinity", {})
    terms = affinity.get("requiredDuringSchedulingIgnoredDuringExecution", [])
    terms += [t["podAffinityTerm"] for t in affinity.get("preferredDuringSchedulingIgnoredDuringExecution", [])]
    if not any(
        term["topologyKey"] == "kubernetes.io/hostname" and selects(term["labelSelector"]["matchLabels"], REPLICA)
        for term in terms
    ):
        yield "no anti-affinity by host"
    if not any(
        spread["topologyKey"] == "topology.kubernetes.io/zone"
        for spread in pod(replicas(manifests)).get("topologySpreadConstraints", [])
    ):
        yield "not spread over zones"


# Proxies.


@policy
def a_new_proxy_comes_before_an_old_one_goes(manifests):
    strategy = proxies(manifests)["spec"].get("strategy", {})
    if strategy != {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}:
        yield f"strategy {strategy}"
    if proxies(manifests)["spec"]["replicas"] < 2:
        yield "one proxy alone is one node away from nothing"


@policy
def proxies_know_every_replica(manifests):
    workload = replicas(manifests)
    name, service = workload["metadata"]["name"], workload["spec"]["serviceName"]
    port = flags(workload)["listen-client"].rsplit(":", 1)[1]
    wanted = ",".join(f"{name}-{ordinal}.{service}:{port}" for ordinal in range(workload["spec"]["replicas"]))
    if flags(proxies(manifests))["endpoints"] != wanted:
        yield f"--endpoints is not {wanted}"


@policy
def proxies_have_time_to_drain(manifests):
    workload = proxies(manifests)
    delay, timeout = seconds(flags(workload)["drain-delay"]), seconds(flags(workload)["drain-timeout"])
    grace = pod(workload)["terminationGracePeriodSeconds"]
    if delay < 5:
        yield f"--drain-delay={delay}s is too short for endpoints to be withdrawn"
    if grace < delay + timeout + 5:
        yield f"a grace period of {grace} s kills a proxy inside its drain time of {delay} + {timeout} s"


@policy
def proxies_cache_the_table(manifests):
    workload = proxies(manifests)
    volumes = {v["name"]: v for v in pod(workload).get("volumes", [])}
    mounts = {mount["mountPath"]: mount["name"] for mount in container(workload).get("volumeMounts", [])}
    cache = volumes.get(mounts.get(flags(workload)["data-dir"]), {}).get("emptyDir")
    if cache is None or "sizeLimit" not in cache or cache.get("medium") == "Memory":
        yield "--data-dir must be an emptyDir on disk with a size limit"


@policy
def proxies_prefer_different_nodes_and_zones(manifests):
    affinity = pod(proxies(manifests)).get("affinity", {}).get("podAntiAffinity", {})
    if "requiredDuringSchedulingIgnoredDuringExecution" in affinity:
        yield "required anti-affinity can leave a rolling update without a node for the new proxy"
    preferred = {
        term["podAffinityTerm"]["topologyKey"]
        for term in affinity.get("preferredDuringSchedulingIgnoredDuringExecution", [])
        if selects(term["podAffinityTerm"]["labelSelector"]["matchLabels"], PROXY)
    }
    for key in {"kubernetes.io/hostname", "topology.kubernetes.io/zone"} - preferred:
        yield f"not spread by {key}"


# Both.


@policy
def one_disruption_at_a_time(manifests):
    wanted = {"holdfast": "IfHealthyBudget", "holdfast-proxy": "AlwaysAllow"}
    budgets = find(manifests, "PodDisruptionBudget")
    for workload in (replicas(manifests), proxies(manifests)):
        labels = workload["spec"]["template"]["metadata"]["labels"]
        mine = [b for b in budgets if selects(b["spec"]["selector"]["matchLabels"], labels)]
        if len(mine) != 1:
            yield f"{named(workload)}: {len(mine)} budgets instead of one"
            continue
        spec = mine[0]["spec"]
        if spec.get("maxUnavailable") != 1 or "minAvailable" in spec:
            yield f"{named(workload)}: maxUnavailable must be 1"
        if spec.get("unhealthyPodEvictionPolicy") != wanted[workload["metadata"]["name"]]:
            yield f"{named(workload)}: unhealthyPodEvictionPolicy {spec.get('unhealthyPodEvictionPolicy')}"


@policy
def evicted_after_users(manifests):
    classes = {c["metadata"]["name"]: c for c in find(manifests, "PriorityClass")}
    for workload in workloads(manifests):
        priority = classes.get(pod(workload).get("priorityClassName"))
        if priority is None or priority["value"] <= 0:
            yield f"{named(workload)}: no priority above user pods"
        elif priority.get("globalDefault"):
            yield f"{named(workload)}: a priority that all pods have is none"


@policy
def quality_of_service_is_guaranteed(manifests):
    for workload in workloads(manifests):
        for c in pod(workload)["containers"]:
            resources = c.get("resources", {})
            if resources.get("requests") != resources.get("limits"):
                yield f"{named(workload)}: requests differ from limits"
            for resource in {"cpu", "memory", "ephemeral-storage"} - resources.get("limits", {}).keys():
                yield f"{named(workload)}: no limit of {resource}"


@policy
def probes_ask_the_right_question(manifests):
    paths = {"startupProbe": "/livez", "readinessProbe": "/readyz", "livenessProbe": "/livez"}
    startup_least = {"StatefulSet": 300, "Deployment": 60}
    for workload in (replicas(manifests), proxies(manifests)):
        for probe, path in paths.items():
            spec = container(workload).get(probe, {})
            if spec.get("httpGet") != {"path": path, "port": "admin"}:
                yield f"{named(workload)}: {probe} must ask {path} on the admin port"
        startup = container(workload).get("startupProbe", {})
        allowed = startup.get("periodSeconds", 10) * startup.get("failureThreshold", 3)
        if allowed < startup_least[workload["kind"]]:
            yield f"{named(workload)}: {allowed} s to start is too short"
        liveness = container(workload).get("livenessProbe", {})
        if liveness.get("periodSeconds", 10) * liveness.get("failureThreshold", 3) < 30:
            yield f"{named(workload)}: a liveness probe in a hurry turns a slow disk into an outage"


@policy
def pods_are_restricted(manifests):
    """The Pod Security Standard `restricted`, and a read-only root file system."""
    for workload in workloads(manifests):
        spec = pod(workload)
        security = spec.get("securityContext", {})
        if security.get("runAsNonRoot") is not True or security.get("runAsUser", 0) == 0 or "fsGroup" not in security:
            yield f"{named(workload)}: may run as root, or cannot write its volume"
        if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{named(workload)}: no seccomp profile"
        for key in {"hostNetwork", "hostPID", "hostIPC"} & spec.keys():
            yield f"{named(workload)}: {key}"
        for volume in spec.get("volumes", []):
            if "hostPath" in volume:
                yield f"{named(workload)}: mounts the host's {volume['hostPath']['path']}"
        for c in [*spec["containers"], *spec.get("initContainers", [])]:
            security = c.get("securityContext", {})
            if security.get("allowPrivilegeEscalation") is not False or security.get("privileged"):
                yield f"{named(workload)}: privileges can be gained"
            if security.get("capabilities") != {"drop": ["ALL"]}:
                yield f"{named(workload)}: keeps capabilities"
            if security.get("readOnlyRootFilesystem") is not True:
                yield f"{named(workload)}: its root file system can be written"


@policy
def no_token_for_the_kubernetes_api(manifests):
    accounts = {a["metadata"]["name"]: a for a in find(manifests, "ServiceAccount")}
    for workload in workloads(manifests):
        spec = pod(workload)
        account = accounts.get(spec.get("serviceAccountName"), {})
        if spec.get("automountServiceAccountToken") is not False:
            yield f"{named(workload)}: mounts a service-account token"
        if account.get("automountServiceAccountToken") is not False:
            yield f"{named(workload)}: its service account hands out tokens"
    for manifest in manifests:
        if manifest["kind"] in ("Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"):
            yield f"{named(manifest)}: nobody here needs the Kubernetes API"


@policy
def no_service_links(manifests):
    """A Service `holdfast` would set HOLDFAST_PORT=tcp://..., and the proxy reads its --port from there."""
    for workload in workloads(manifests):
        if pod(workload).get("enableServiceLinks") is not False:
            yield f"{named(workload)}: service links reach into the flags"


@policy
def services_reach_what_they_should(manifests):
    labels = {w["metadata"]["name"]: w["spec"]["template"]["metadata"]["labels"] for w in workloads(manifests)}
    expected = {"holdfast-peers": "holdfast", "holdfast-api": "holdfast", "holdfast-proxy": "holdfast-proxy"}
    for name, workload in expected.items():
        service = find(manifests, "Service", name)["spec"]
        reached = [w for w in labels if selects(service["selector"], labels[w])]
        if reached != [workload]:
            yield f"Service {name} reaches {reached} instead of {workload}"
        not_ready = service.get("publishNotReadyAddresses", False)
        if not_ready != (name == "holdfast-peers"):
            yield f"Service {name}: publishNotReadyAddresses is {not_ready}"
    peers = find(manifests, "Service", replicas(manifests)["spec"]["serviceName"])["spec"]
    if peers.get("clusterIP") != "None":
        yield "the peers' Service is not headless"
    if any(p["name"] == "peer" for p in find(manifests, "Service", "holdfast-api")["spec"]["ports"]):
        yield "the peers' port is offered to clients"


@policy
def strangers_are_refused(manifests):
    """Every pod has a network policy both ways; user servers and the world get to the proxies' HTTP port alone."""
    policies = find(manifests, "NetworkPolicy")
    for workload in workloads(manifests):
        labels = workload["spec"]["template"]["metadata"]["labels"]
        mine = [p["spec"] for p in policies if selects(p["spec"]["podSelector"].get("matchLabels", {}), labels)]
        types = {kind for spec in mine for kind in spec["policyTypes"]}
        if types != {"Ingress", "Egress"}:
            yield f"{named(workload)}: only {sorted(types)} is restricted"
        for rule in (rule for spec in mine for rule in spec.get("ingress", [])):
            ports = {port["port"] for port in rule.get("ports", [])}
            if not ports:
                yield f"{named(workload)}: a rule opens every port"
            if not rule.get("from") and ports != {"http"}:
                yield f"{named(workload)}: everybody may reach {sorted(ports)}"
            for peer in rule.get("from", []):
                if peer.get("podSelector", {}).get("matchLabels", {}).get("component") == "singleuser-server":
                    yield f"{named(workload)}: user servers may reach {sorted(ports)}"
                if "namespaceSelector" in peer and not peer["namespaceSelector"]:
                    yield f"{named(workload)}: every namespace may reach {sorted(ports)}"
                if "podSelector" in peer and not peer["podSelector"]:
                    yield f"{named(workload)}: every pod may reach {sorted(ports)}"
                if "ipBlock" in peer:
                    yield f"{named(workload)}: {peer['ipBlock']['cidr']} may reach {sorted(ports)}"
                if "peer" in ports and peer != {"podSelector": {"matchLabels": REPLICA}}:
                    yield f"{named(workload)}: others than replicas may reach the peer port"
        for rule in (rule for spec in mine for rule in spec.get("egress", [])):
            if not rule.get("to"):
                yield f"{named(workload)}: may speak to everybody"


@policy
def images_are_pinned(manifests):
    for workload in workloads(manifests):
        for c in pod(workload)["containers"]:
            name, _, tag = c["image"].partition(":")
            if "@sha256:" not in c["image"] and tag in ("", "latest"):
                yield f"{named(workload)}: image {name} has no version"
