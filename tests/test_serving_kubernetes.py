import pathlib
import re

import jsonpatch
import kubernetes_validate
import pytest
import yaml
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

SERVING = pathlib.Path(__file__).parent.parent / "serving"
BASE = SERVING / "kubernetes" / "base"
TLS = SERVING / "kubernetes" / "tls"
# The oldest that has all fields used, and the newest whose schemas are at hand.
VERSIONS = ["1.30", kubernetes_validate.latest_version().rpartition(".")[0]]


def read(path):
    return yaml.safe_load(path.read_text())


def base():
    """{kind: manifest} as kustomize reads them."""
    manifests = [read(BASE / name) for name in read(BASE / "kustomization.yaml")["resources"]]
    return {manifest["kind"]: manifest for manifest in manifests}


def with_tls():
    """{kind: manifest} of the base, patched."""
    manifests = base()
    for patch in read(TLS / "kustomization.yaml")["patches"]:
        kind = patch["target"]["kind"]
        assert manifests[kind]["metadata"]["name"] == patch["target"]["name"]
        manifests[kind] = jsonpatch.apply_patch(manifests[kind], read(TLS / patch["path"]))
    return manifests


def kserve_pods():
    """KServe's pods: the runtime's containers, and those fields of the predictor that pods have."""
    service, runtime = (
        read(SERVING / "kserve" / f"{name}.yaml") for name in ("inference_service", "serving_runtime")
    )
    own = KSERVE_FIELDS["spec.predictor"]
    pod = {name: value for name, value in service["spec"]["predictor"].items() if name not in own}
    return {**pod, "containers": runtime["spec"]["containers"]}


# Fields of KServe's own, besides those of pods and containers, from the CustomResourceDefinitions in
# config/crd/full of kserve/kserve at commit aaac4e294dae.
KSERVE_FIELDS = {
    "spec.predictor": {
        *("minReplicas", "maxReplicas", "scaleMetric", "scaleMetricType", "scaleTarget", "autoScaling"),
        *(
            "canaryTrafficPercent",
            "containerConcurrency",
            "deploymentStrategy",
            "timeout",
            "batcher",
            "logger",
        ),
        *("annotations", "labels", "storageUris", "workerSpec", "model"),
    },
    "spec.predictor.model": {
        *(
            "modelFormat",
            "protocolVersion",
            "runtime",
            "runtimeVersion",
            "storage",
            "storageUri",
            "confidential",
        ),
    },
    "spec": {
        *("affinity", "annotations", "builtInAdapter", "containers", "disabled", "grpcDataEndpoint"),
        *("grpcEndpoint", "hostIPC", "httpDataEndpoint", "imagePullSecrets", "labels", "multiModel"),
        *("nodeSelector", "protocolVersions", "replicas", "resourceClaims", "schedulerName", "storageHelper"),
        *("supportedModelFormats", "tolerations", "volumes", "workerSpec"),
    },
}


def container(manifests):
    (only,) = manifests["Deployment"]["spec"]["template"]["spec"]["containers"]
    return only


def flags(command):
    """{flag: value} of a server's command line; a flag twice is an error."""
    pairs = [part.removeprefix("--").split("=", 1) for part in command]
    assert len({name for name, _ in pairs}) == len(pairs)
    return dict(pairs)


def wrapped(pod):
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "model-server"}, "spec": pod}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("manifests", [base, with_tls])
def test_manifests_fit_the_schemas_of_kubernetes(manifests, version):
    for manifest in [*manifests().values(), read(SERVING / "kubernetes" / "uploader.yaml")]:
        assert kubernetes_validate.validate(manifest, version, strict=True) == version


def test_a_field_that_kubernetes_lacks_is_found():
    manifest = base()["Deployment"]
    manifest["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readinesProbe"):
        kubernetes_validate.validate(manifest, VERSIONS[0], strict=True)


@pytest.mark.parametrize("folder", [BASE, TLS])
def test_the_kustomization_names_the_files_beside_it(folder):
    kustomization = read(folder / "kustomization.yaml")
    named = [name for name in kustomization["resources"] if name != "../base"]
    named += [patch["path"] for patch in kustomization.get("patches", [])]
    named += [name for made in kustomization.get("configMapGenerator", []) for name in made["files"]]
    assert sorted([*named, "kustomization.yaml"]) == sorted(path.name for path in folder.iterdir())


def test_kserve_files_have_kserves_fields_and_those_of_pods():
    service = read(SERVING / "kserve" / "inference_service.yaml")
    runtime = read(SERVING / "kserve" / "serving_runtime.yaml")
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    assert (runtime["apiVersion"], runtime["kind"]) == ("serving.kserve.io/v1alpha1", "ServingRuntime")
    predictor = service["spec"].pop("predictor")
    assert service["spec"] == {} and set(predictor["model"]) <= KSERVE_FIELDS["spec.predictor.model"]
    assert set(runtime["spec"]) <= KSERVE_FIELDS["spec"]
    for version in VERSIONS:
        kubernetes_validate.validate(wrapped(kserve_pods()), version, strict=True)
        deployment = base()["Deployment"]
        deployment["spec"]["strategy"] = predictor["deploymentStrategy"]
        kubernetes_validate.validate(deployment, version, strict=True)
    assert predictor["model"]["runtime"] == runtime["metadata"]["name"]
    for entry in runtime["spec"]["supportedModelFormats"]:
        assert set(entry) <= {"name", "version", "autoSelect", "priority"}
    formats = [(entry["name"], entry["version"]) for entry in runtime["spec"]["supportedModelFormats"]]
    assert tuple(predictor["model"]["modelFormat"].values()) in formats
    assert predictor["model"]["protocolVersion"] in runtime["spec"]["protocolVersions"]


def test_kserve_serves_the_same_model_of_the_same_volume_as_kubernetes():
    service = read(SERVING / "kserve" / "inference_service.yaml")
    predictor = service["spec"]["predictor"]
    claim = base()["PersistentVolumeClaim"]["metadata"]["name"]
    assert predictor["model"]["storageUri"] == f"pvc://{claim}/{service['metadata']['name']}"
    (ours,) = kserve_pods()["containers"]
    theirs = container(base())
    differing = {name for name, _ in flags(ours["args"]).items() ^ flags(theirs["args"]).items()}
    assert differing == {
        *(
            "model_name",
            "model_base_path",
            "model_config_file",
            "allow_version_labels_for_unavailable_models",
        ),
        *("port", "rest_api_port", "batching_parameters_file", "monitoring_config_file"),
        *("file_system_poll_wait_seconds", "max_num_load_retries"),
    }
    assert ours["resources"] == theirs["resources"] and ours["image"] == theirs["image"]
    autoscaler = base()["HorizontalPodAutoscaler"]["spec"]
    assert predictor["minReplicas"] == autoscaler["minReplicas"]
    assert predictor["maxReplicas"] == autoscaler["maxReplicas"]
    target = autoscaler["metrics"][0]["resource"]
    assert predictor["scaleMetric"] == target["name"]
    assert predictor["scaleTarget"] == target["target"]["averageUtilization"]


@pytest.mark.parametrize("pod", ["base", "tls", "uploader", "kserve"])
def test_no_container_has_privileges_or_a_root_file_system_to_write_to(pod):
    spec = {
        "base": lambda: base()["Deployment"]["spec"]["template"]["spec"],
        "tls": lambda: with_tls()["Deployment"]["spec"]["template"]["spec"],
        "uploader": lambda: read(SERVING / "kubernetes" / "uploader.yaml")["spec"],
        "kserve": kserve_pods,
    }[pod]()
    assert spec["automountServiceAccountToken"] is False
    for each in spec["containers"]:
        security = {**spec.get("securityContext", {}), **each["securityContext"]}
        assert security["runAsNonRoot"] and security["runAsUser"] > 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert security["allowPrivilegeEscalation"] is False and security["privileged"] is False
        assert security["readOnlyRootFilesystem"] and security["capabilities"] == {"drop": ["ALL"]}
        assert each["resources"]["limits"]["memory"] == each["resources"]["requests"]["memory"]
        if pod != "uploader":
            assert all(mount["readOnly"] for mount in each.get("volumeMounts", []))


@pytest.mark.parametrize("manifests", [base, with_tls])
def test_everything_selects_the_pods_of_the_deployment(manifests):
    manifests = manifests()
    deployment = manifests["Deployment"]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"] == labels
    assert manifests["Service"]["spec"]["selector"] == labels
    assert manifests["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert manifests["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels
    for constraint in deployment["template"]["spec"]["topologySpreadConstraints"]:
        assert constraint["labelSelector"]["matchLabels"] == labels
    target = manifests["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert target["kind"] == "Deployment" and target["name"] == manifests["Deployment"]["metadata"]["name"]


@pytest.mark.parametrize("manifests", [base, with_tls])
def test_ports_are_those_of_the_command(manifests):
    manifests = manifests()
    ports = {port["name"]: port["containerPort"] for port in container(manifests)["ports"]}
    command = flags(container(manifests)["args"])
    assert ports == {"grpc": int(command["port"]), "rest": int(command["rest_api_port"])}
    offered = {port["targetPort"]: port["port"] for port in manifests["Service"]["spec"]["ports"]}
    assert offered.items() <= ports.items()
    callers, prometheus = manifests["NetworkPolicy"]["spec"]["ingress"]
    assert {port["port"] for port in callers["ports"]} == set(offered)
    assert prometheus["ports"] == [{"port": "rest"}]
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        (probe,) = (
            container(manifests)[name][kind]
            for kind in ("httpGet", "grpc")
            if kind in container(manifests)[name]
        )
        assert probe["port"] in ("rest", ports["grpc"])


def test_with_tls_nothing_is_asked_of_the_grpc_port_in_the_clear():
    manifests = with_tls()
    assert [port["name"] for port in manifests["Service"]["spec"]["ports"]] == ["grpc"]
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container(manifests)[name]["httpGet"]["port"] == "rest"


@pytest.mark.parametrize("manifests", [base, with_tls])
def test_every_file_that_a_flag_names_is_mounted(manifests):
    manifests = manifests()
    volumes = {
        volume["name"]: volume for volume in manifests["Deployment"]["spec"]["template"]["spec"]["volumes"]
    }
    (made,) = read(BASE / "kustomization.yaml")["configMapGenerator"]
    readable = set()
    for mount in container(manifests)["volumeMounts"]:
        volume = volumes.pop(mount["name"])
        if "configMap" in volume:
            assert volume["configMap"]["name"] == made["name"]
            readable |= {f"{mount['mountPath']}/{name}" for name in made["files"]}
        elif "secret" in volume:
            # As the command in the kustomization makes it.
            command = (TLS / "kustomization.yaml").read_text()
            assert (
                f"secret generic {volume['secret']['secretName']} --from-file=certificates/ssl.config"
                in command
            )
            readable.add(f"{mount['mountPath']}/ssl.config")
        else:
            claim = volume["persistentVolumeClaim"]
            assert claim == {
                "claimName": manifests["PersistentVolumeClaim"]["metadata"]["name"],
                "readOnly": True,
            }
            models = mount["mountPath"]
    assert volumes == {}
    named = {value for name, value in flags(container(manifests)["args"]).items() if name.endswith("_file")}
    assert named == readable
    (model,) = models_config().model_config_list.config
    assert model.base_path == f"{models}/{model.name}"


def models_config():
    return text_format.Parse(
        (BASE / "models.config").read_text(), model_server_config_pb2.ModelServerConfig()
    )


def test_ready_is_who_answers_for_the_stable_version():
    (model,) = models_config().model_config_list.config
    for name in ("startupProbe", "readinessProbe"):
        path = container(base())[name]["httpGet"]["path"]
        assert path == f"/v1/models/{model.name}/labels/stable/metadata"
    assert "stable" in model.version_labels
    assert flags(container(base())["args"])["allow_version_labels_for_unavailable_models"] == "true"


def test_a_pod_that_ends_has_time_for_its_connections_and_its_calls():
    spec = base()["Deployment"]["spec"]["template"]["spec"]
    arguments = dict(
        pair.split("=") for pair in flags(container(base())["args"])["grpc_channel_arguments"].split(",")
    )
    age, grace = (int(arguments[f"grpc.max_connection_{name}_ms"]) / 1000 for name in ("age", "age_grace"))
    stopping = container(base())["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert stopping >= 1.1 * age
    assert spec["terminationGracePeriodSeconds"] >= stopping + grace


def test_a_roll_out_gives_up_later_than_a_pod_may_take():
    deployment = base()["Deployment"]["spec"]
    assert deployment["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    startup = container(base())["startupProbe"]
    start = startup["periodSeconds"] * startup["failureThreshold"]
    end = deployment["template"]["spec"]["terminationGracePeriodSeconds"]
    assert deployment["progressDeadlineSeconds"] > start + end


def test_threads_are_as_many_as_the_processors_asked_for():
    command = flags(container(base())["args"])
    processors = container(base())["resources"]["requests"]["cpu"]
    assert command["tensorflow_intra_op_parallelism"] == processors
    assert command["tensorflow_inter_op_parallelism"] == processors
    assert (
        re.search(r"num_batch_threads \{ value: (\d+) \}", (BASE / "batching.config").read_text())[1]
        == processors
    )


def test_no_request_is_logged():
    (model,) = models_config().model_config_list.config
    assert not model.HasField("logging_config")
    assert "logger" not in read(SERVING / "kserve" / "inference_service.yaml")["spec"]["predictor"]
    for each in (container(base()), *kserve_pods()["containers"]):
        assert "env" not in each and "envFrom" not in each
        assert flags(each["args"])["enable_profiler"] == "false"
