"""The files under cluster/ are what KubeRay, `ray up`, Slurm and Docker accept, and agree with constraints.txt."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
CLUSTER = REPOSITORY / "cluster"
SCHEMAS = REPOSITORY.parent / "shared" / "kuberay"
MANIFESTS = {"raycluster.yaml": "raycluster.v1.schema.json", "rayjob.yaml": "rayjob.v1.schema.json"}
RAY_UP = ("aws", "gcp", "on-premise")
SHARED_FOLDER = "/mnt/cleanai"


def constraints() -> dict[str, str]:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pins = (line.partition(";")[0].strip().split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {name.lower(): version for name, version in pins}


def strict(schema: Any) -> Any:
    """A CRD schema under which a key that it does not name is an error, as the API server would prune it."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        result.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        result.pop("type", None)
        result["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    return result


def kuberay_schema(manifest: str) -> dict[str, Any]:
    path = SCHEMAS / MANIFESTS[manifest]
    if not path.exists():
        pytest.skip("KubeRay's schemas are not beside this checkout, in ../shared/kuberay")
    return strict(json.loads(path.read_text()))


def manifest(name: str) -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / "kuberay" / name).read_text())


def cluster_spec(name: str) -> dict[str, Any]:
    spec = manifest(name)["spec"]
    return spec.get("rayClusterSpec", spec)


def groups_of(name: str) -> list[dict[str, Any]]:
    spec = cluster_spec(name)
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


class TestKubeRay:
    @pytest.mark.parametrize("name", MANIFESTS)
    def test_a_manifest_is_valid_and_has_no_key_that_kuberay_does_not_know(self, name: str) -> None:
        jsonschema.Draft7Validator(kuberay_schema(name)).validate(manifest(name))

    @pytest.mark.parametrize("name", MANIFESTS)
    def test_a_misspelt_key_would_be_found(self, name: str) -> None:
        validator = jsonschema.Draft7Validator(kuberay_schema(name))
        for path in (("spec",), ("spec", "headGroupSpec"), ("spec", "headGroupSpec", "template", "spec")):
            wrong = copy.deepcopy(manifest(name))
            section = wrong
            for key in path:
                section = section["rayClusterSpec"][key] if key not in section else section[key]
            section["enableInTreeAutoscalling"] = True
            assert not validator.is_valid(wrong), path

    @pytest.mark.parametrize("name", MANIFESTS)
    def test_ray_is_the_version_of_the_constraints(self, name: str) -> None:
        assert cluster_spec(name)["rayVersion"] == constraints()["ray"]

    @pytest.mark.parametrize("name", MANIFESTS)
    def test_the_cluster_scales_and_asks_for_a_token(self, name: str) -> None:
        spec = cluster_spec(name)
        assert spec["enableInTreeAutoscaling"] is True
        assert spec["authOptions"] == {"mode": "token", "secretName": "cleanai-ray-auth"}
        for group in spec["workerGroupSpecs"]:
            assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
            assert group["maxReplicas"] > 1

    @pytest.mark.parametrize("name", MANIFESTS)
    def test_the_head_runs_no_trials_and_one_group_has_gpus(self, name: str) -> None:
        assert cluster_spec(name)["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        gpus = [group["template"]["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu", 0)
                for group in groups_of(name)]  # fmt: skip
        assert gpus == [0, 0, 1]

    @pytest.mark.parametrize("name", MANIFESTS)
    def test_every_container_has_bounds_probes_and_the_shared_folder(self, name: str) -> None:
        claims = [item for item in yaml.safe_load_all((CLUSTER / "kuberay" / "storage.yaml").read_text()) if item]
        known = {claim["metadata"]["name"] for claim in claims}
        assert all(claim["spec"]["accessModes"] == ["ReadWriteMany"] for claim in claims)
        for group in groups_of(name):
            pod = group["template"]["spec"]
            (container,) = pod["containers"]
            assert container["resources"]["requests"] == container["resources"]["limits"]
            assert {"cpu", "memory"} <= set(container["resources"]["limits"])
            assert container["readinessProbe"]["exec"]["command"]
            assert container["livenessProbe"]["exec"]["command"]
            volumes = {volume["name"]: volume for volume in pod["volumes"]}
            mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
            assert mounts[SHARED_FOLDER]["persistentVolumeClaim"]["claimName"] in known
            assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"

    def test_every_node_has_the_same_image(self) -> None:
        images = {
            group["template"]["spec"]["containers"][0]["image"] for name in MANIFESTS for group in groups_of(name)
        }
        ray_up = {
            yaml.safe_load((CLUSTER / "ray-up" / f"{name}.yaml").read_text())["docker"]["image"] for name in RAY_UP
        }
        assert len(images | ray_up) == 1

    def test_the_job_runs_a_study_that_ships_and_keeps_its_results(self) -> None:
        job = manifest("rayjob.yaml")["spec"]
        words = job["entrypoint"].split()
        assert words[0] == "python"
        assert (REPOSITORY / words[1]).is_file()
        assert (REPOSITORY / words[words.index("--study") + 1]).is_file()
        assert words[words.index("--out") + 1].startswith(SHARED_FOLDER)
        assert job["shutdownAfterJobFinishes"] is True


class TestRayUp:
    @pytest.mark.parametrize("name", RAY_UP)
    def test_a_cluster_file_is_valid(self, name: str) -> None:
        spec = importlib.util.find_spec("ray")
        assert spec is not None
        assert spec.origin is not None
        schema = json.loads((Path(spec.origin).parent / "autoscaler" / "ray-schema.json").read_text())
        config = yaml.safe_load((CLUSTER / "ray-up" / f"{name}.yaml").read_text())
        jsonschema.validate(config, schema)
        assert not jsonschema.Draft7Validator(schema).is_valid({**config, "max_wokers": 3})

    @pytest.mark.parametrize("name", ["aws", "gcp"])
    def test_node_types_fit_together(self, name: str) -> None:
        config = yaml.safe_load((CLUSTER / "ray-up" / f"{name}.yaml").read_text())
        types = config["available_node_types"]
        assert types[config["head_node_type"]]["resources"] == {"CPU": 0}
        workers = {key: value for key, value in types.items() if key != config["head_node_type"]}
        assert set(workers) == {"cpu", "gpu"}
        assert sum(item["max_workers"] for item in workers.values()) <= config["max_workers"]
        assert all(item["min_workers"] <= item["max_workers"] for item in workers.values())

    @pytest.mark.parametrize("name", RAY_UP)
    def test_every_node_starts_with_a_token_and_mounts_the_shared_folder(self, name: str) -> None:
        config = yaml.safe_load((CLUSTER / "ray-up" / f"{name}.yaml").read_text())
        for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
            starts = [command for command in config[commands] if "ray start" in command]
            assert len(starts) == 1
            assert starts[0].startswith("RAY_AUTH_MODE=token ")
        assert any(path.endswith("/.ray/auth_token") for path in config["file_mounts"])
        assert f"-v {SHARED_FOLDER}:{SHARED_FOLDER}" in config["docker"]["run_options"]
        assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]


class TestSlurm:
    SCRIPT = CLUSTER / "slurm" / "study.sbatch"

    def test_the_script_parses(self) -> None:
        bash = shutil.which("bash")
        assert bash is not None
        subprocess.run([bash, "-n", str(self.SCRIPT)], check=True)

    def test_it_refuses_to_run_without_a_study_or_outside_of_slurm(self) -> None:
        def complaint(*arguments: str) -> str:
            command = ["bash", str(self.SCRIPT), *arguments]
            done = subprocess.run(command, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}, check=False)
            assert done.returncode != 0
            return done.stderr

        assert "usage: sbatch cluster/slurm/study.sbatch STUDY" in complaint()
        assert "this script is for sbatch" in complaint("jobs/studies/quickstart.yaml")

    def test_it_runs_the_entry_point_that_exists_and_keeps_out_of_rays_ports(self) -> None:
        text = self.SCRIPT.read_text()
        entry = re.search(r"jobs/\w+\.py", text.splitlines()[-1])
        assert entry is not None
        assert (REPOSITORY / entry.group()).is_file()
        # Ray's worker processes listen on 10002 to 19999.
        lowest, span = map(int, re.search(r"port=\$\(\((\d+) \+ SLURM_JOB_ID % (\d+)\)\)", text).groups())  # type: ignore[union-attr]
        assert lowest > 19999
        assert lowest + span <= 32768


class TestDockerfile:
    TEXT = (CLUSTER / "Dockerfile").read_text()

    def test_versions_are_those_of_the_constraints(self) -> None:
        pins = constraints()
        base = re.search(r"^FROM rayproject/ray:([\d.]+)-py311$", self.TEXT, flags=re.MULTILINE)
        assert base is not None
        assert base.group(1) == pins["ray"]
        arguments = dict(re.findall(r"^ARG (\w+)_VERSION=([\w.]+)$", self.TEXT, flags=re.MULTILINE))
        assert {name.lower(): version for name, version in arguments.items()} == {
            name: pins[name] for name in ("ray", "torch", "torchvision")
        }

    def test_every_installation_reads_the_constraints_and_every_copied_path_exists(self) -> None:
        installs = re.findall(r"pip install[^\n]*", self.TEXT)
        assert installs
        assert all("-c constraints.txt" in line for line in installs)
        for line in re.findall(r"^COPY (.*)$", self.TEXT, flags=re.MULTILINE):
            *sources, _ = [word for word in line.split() if not word.startswith("--")]
            assert all((REPOSITORY / source).exists() for source in sources), line

    def test_every_module_that_the_build_imports_exists(self) -> None:
        modules = re.findall(r"\bcleanai_ray\.[a-z_.]*[a-z_]", self.TEXT)
        assert modules
        assert all(importlib.util.find_spec(name) is not None for name in modules), modules


def test_the_readme_names_every_file() -> None:
    readme = (CLUSTER / "README.md").read_text()
    for file in CLUSTER.rglob("*"):
        if file.is_file() and file.name != "README.md" and "grafana" not in file.parts:
            assert str(file.relative_to(CLUSTER)) in readme, file
