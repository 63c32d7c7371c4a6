import json
import pathlib
import re

import promql_parser
import pytest
import yaml

ROOT = pathlib.Path(__file__).parent.parent
MONITORING = ROOT / "serving" / "monitoring"
METRICS = yaml.safe_load((ROOT / "tests" / "serving_deployment" / "metrics.yaml").read_text())
# Labels that prometheus.yaml gives to all.
TARGET_LABELS = {"job", "instance", "namespace", "pod"}


def rules():
    groups = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
    assert all(set(group) == {"name", "rules"} for group in groups)
    return [rule for group in groups for rule in group["rules"]]


def alerts():
    return [rule for rule in rules() if "alert" in rule]


def panels():
    return json.loads((MONITORING / "dashboard.json").read_text())["panels"]


def recorded():
    return {rule["record"]: {"model_name"} for rule in rules() if "record" in rule}


def labels_of(name):
    """The labels of a series; None if there is no such series."""
    if name in recorded():
        return recorded()[name]
    for metric, known in METRICS.items():
        if known["kind"] == "histogram" and re.fullmatch(metric + "_(bucket|sum|count)", name):
            return {*known["labels"], *TARGET_LABELS, *({"le"} if name.endswith("_bucket") else ())}
        if known["kind"] != "histogram" and name == metric:
            return {*known["labels"], *TARGET_LABELS}
    return None


def unknown(expression):
    """What an expression asks for that isn't there: metrics, and labels of metrics."""
    missing = []

    def visit(node):
        if isinstance(node, promql_parser.VectorSelector):
            labels = labels_of(node.name)
            if labels is None:
                missing.append(node.name)
            else:
                missing.extend(each.name for each in node.matchers.matchers if each.name not in labels)
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier:
            missing.extend(set(node.modifier.labels) - {"le"} - every_label)

    every_label = TARGET_LABELS.union(*(known["labels"] for known in METRICS.values()))
    promql_parser.walk(promql_parser.parse(expression), visit)
    return missing


def targets():
    """(title, expression) of the dashboard's queries, with Grafana's variables put in."""
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], target["expr"].replace("$__rate_interval", "1m").replace("$model", ".+")


@pytest.mark.parametrize(
    "expression, missing",
    [
        (":tensorflow:serving:request_cuont", [":tensorflow:serving:request_cuont"]),
        (":tensorflow:serving:request_latency", [":tensorflow:serving:request_latency"]),
        (':tensorflow:serving:request_count{model="a"}', ["model"]),
        ("sum by (modle_name) (:tensorflow:serving:request_count)", ["modle_name"]),
        (':tensorflow:serving:request_count{model_name="a"}', []),
    ],
)
def test_metrics_and_labels_that_the_server_lacks_are_found(expression, missing):
    assert unknown(expression) == missing


def test_rules_ask_for_what_the_server_has():
    assert [(rule["expr"], unknown(rule["expr"])) for rule in rules() if unknown(rule["expr"])] == []


def test_the_dashboard_asks_for_what_the_server_has():
    assert len(list(targets())) > len(panels()) > 0
    assert [(title, unknown(expression)) for title, expression in targets() if unknown(expression)] == []


def test_alerts_have_the_fields_of_prometheus_alerts():
    names = [rule["alert"] for rule in alerts()]
    assert len(set(names)) == len(names)
    for rule in alerts():
        assert (
            {"alert", "expr", "labels", "annotations"}
            <= set(rule)
            <= {"alert", "expr", "for", "labels", "annotations"}
        )
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert re.fullmatch(r"\d+m", rule.get("for", "1m"))
        for name in re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]):
            assert name in TARGET_LABELS | {"model_name", "model_path"}
    for rule in rules():
        assert "alert" in rule or set(rule) == {"record", "expr"}


def test_every_alert_has_its_lines_in_the_runbook():
    headings = re.findall(r"^#### (\w+)$", (ROOT / "docs" / "serving.md").read_text(), re.MULTILINE)
    assert headings == [rule["alert"] for rule in alerts()]


def test_prometheus_scrapes_where_the_server_answers():
    config = yaml.safe_load((MONITORING / "prometheus.yaml").read_text())
    (job,) = config["scrape_configs"]
    base = ROOT / "serving" / "kubernetes" / "base"
    assert f'path: "{job["metrics_path"]}"' in (base / "monitoring.config").read_text()
    assert config["rule_files"] == ["alerts.yaml"]
    pod = yaml.safe_load((base / "deployment.yaml").read_text())["spec"]["template"]
    kept = {
        rule["source_labels"][0]: rule["regex"]
        for rule in job["relabel_configs"]
        if rule.get("action") == "keep"
    }
    (label,) = pod["metadata"]["labels"]
    assert kept == {
        f"__meta_kubernetes_pod_label_{re.sub(r'[^a-zA-Z0-9]', '_', label)}": pod["metadata"]["labels"][
            label
        ],
        "__meta_kubernetes_pod_container_port_name": "rest",
    }
    given = {rule["target_label"] for rule in job["relabel_configs"] if "target_label" in rule}
    assert given | {"job", "instance"} == TARGET_LABELS
    selected = {name for rule in rules() for name in re.findall(r'job="([^"]*)"', rule["expr"])}
    assert selected == {job["job_name"]}


def test_the_dashboards_panels_lie_side_by_side_and_use_the_chosen_prometheus():
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert len({panel["id"] for panel in panels()}) == len(panels())
    covered = set()
    for panel in panels():
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert place["x"] + place["w"] <= 24 and not cells & covered
        covered |= cells
        for part in (panel, *panel["targets"]):
            assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["title"] and panel["description"]
