//! The dashboard and the alerts of `docker/observability`: Prometheus accepts them, and they name only what a worker reports.
//!
//! `tests/e2e/dashboard.rs` loads the dashboard by Grafana's schema.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::CommandFactory;
use serde_json::{Value, json};
use sidebake::cli::Cli;
use sidebake::metric::{self, Kind};

use crate::docs::follow;

/// Labels that Prometheus adds to each series.
const OF_PROMETHEUS: [&str; 4] = ["job", "instance", "namespace", "pod"];

/// Series that every Prometheus has, with their labels.
const OF_OTHERS: [(&str, &[&str]); 2] = [("up", &[]), ("ALERTS", &["alertname", "alertstate", "severity"])];

#[test]
fn prometheus_accepts_the_rules() {
    promtool(&["check", "rules", "alerts.yaml"]);
}

#[test]
fn each_alert_fires_for_a_broken_fleet_and_not_for_a_healthy_one() {
    promtool(&["test", "rules", "alerts_test.yaml"]);
    let cases = yaml("alerts_test.yaml");
    let mut fires: BTreeSet<String> = BTreeSet::new();
    for case in list(&cases["tests"]) {
        let expected: String =
            list(&case["promql_expr_test"]).iter().map(|test| test["exp_samples"].to_string()).collect();
        assert!(!expected.contains("healthy"), "{}", case["name"]);
        let names = expected.split("alertname=\\\"").skip(1).filter_map(|rest| rest.split('\\').next());
        let names: Vec<&str> = names.collect();
        let has_healthy =
            list(&case["input_series"]).iter().any(|input| text(&input["series"]).contains("job=\"healthy\""));
        fires.extend(names.into_iter().filter(|_| has_healthy).map(str::to_owned));
    }
    assert_eq!(fires, alerts().iter().map(|rule| text(&rule["alert"]).to_owned()).collect());
}

#[test]
fn every_expression_of_the_dashboard_is_one_of_prometheus() {
    let rules = expressions().into_iter().enumerate().map(|(n, (_, expression))| {
        let expression = expression.replace("$__rate_interval", "5m").replace("$__range", "3h");
        json!({"record": format!("panel:{n}"), "expr": expression})
    });
    let file = tempfile::NamedTempFile::with_suffix(".yaml").unwrap();
    let groups = json!({"groups": [{"name": "dashboard", "rules": rules.collect::<Vec<_>>()}]});
    std::fs::write(file.path(), groups.to_string()).unwrap();
    promtool(&["check", "rules", &file.path().display().to_string()]);
}

#[test]
fn every_metric_and_label_is_one_of_the_worker() {
    let known = Known::new();
    let dashboard = expressions();
    let rules = rules().into_iter().map(|rule| {
        let name = text(if rule["alert"].is_null() { &rule["record"] } else { &rule["alert"] });
        (name.to_owned(), text(&rule["expr"]).to_owned())
    });
    let mut wrong = Vec::new();
    for (place, expression) in dashboard.iter().cloned().chain(rules) {
        let read = Read::new(&expression);
        let mut all: BTreeSet<&str> = OF_PROMETHEUS.into();
        for found in &read.metrics {
            let Some(labels) = known.labels(found.name) else {
                wrong.push(format!("{place}: no metric {}", found.name));
                continue;
            };
            let labels = labels.into_iter().chain(OF_PROMETHEUS).collect::<BTreeSet<&str>>();
            let unknown = found.matched.iter().filter(|label| !labels.contains(**label));
            wrong.extend(unknown.map(|label| format!("{place}: {} has no label {label}", found.name)));
            if known.is_same_everywhere(found.name) && found.aggregation != Some("max") {
                wrong.push(format!("{place}: {} is the same from all workers: use max", found.name));
            }
            all.extend(labels);
        }
        let unknown = read.grouped.iter().filter(|label| !all.contains(**label));
        wrong.extend(unknown.map(|label| format!("{place}: nothing has the label {label}")));
    }
    let shown: String = dashboard.into_iter().map(|(_, expression)| expression + " ").collect();
    let missing = metric::ALL.iter().filter(|metric| !shown.contains(metric.name));
    wrong.extend(missing.map(|metric| format!("no panel shows {}", metric.name)));
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_panel_has_a_title_a_description_a_unit_and_a_legend() {
    let (mut ids, mut n_panels) = (BTreeSet::new(), 0);
    for panel in panels() {
        let title = text(&panel["title"]);
        assert!(!title.is_empty() && ids.insert(panel["id"].as_u64().unwrap()), "{panel:#}");
        if panel["type"] == "row" {
            continue;
        }
        n_panels += 1;
        let description = text(&panel["description"]);
        assert!(description.ends_with('.') && description.len() > 20, "{title}: {description}");
        assert!(!text(&panel["fieldConfig"]["defaults"]["unit"]).is_empty(), "{title}");
        for target in list(&panel["targets"]) {
            let (legend, expression) = (text(&target["legendFormat"]), text(&target["expr"]));
            assert!(!legend.is_empty(), "{title}: {expression}");
            let grouped = Read::new(expression).grouped;
            for label in legend.split("{{").skip(1).filter_map(|rest| rest.split("}}").next()) {
                assert!(grouped.contains(label), "{title}: {legend} of {expression}");
            }
        }
    }
    assert!(n_panels > 30, "only {n_panels} panels were found: the reading is broken");
}

#[test]
fn each_alert_says_what_to_look_at_first() {
    let titles: BTreeSet<String> = panels().iter().map(|panel| text(&panel["title"]).to_owned()).collect();
    let known = Known::new();
    for rule in alerts() {
        let (name, expression) = (text(&rule["alert"]), text(&rule["expr"]));
        assert!(["critical", "warning"].contains(&text(&rule["labels"]["severity"])), "{name}");
        let (summary, description) = (text(&rule["annotations"]["summary"]), text(&rule["annotations"]["description"]));
        assert!(!summary.is_empty() && description.ends_with('.'), "{name}: {summary}: {description}");
        let commands = description.split('`').skip(1).step_by(2).filter_map(|span| span.strip_prefix("sidebake "));
        commands.for_each(|arguments| follow(&Cli::command(), arguments).unwrap());
        let quoted = description.split('"').skip(1).step_by(2);
        quoted.for_each(|title| assert!(titles.contains(title), "{name}: no panel {title}"));
        let read = Read::new(expression);
        let mut labels: BTreeSet<&str> = read.grouped;
        if labels.is_empty() {
            labels.extend(OF_PROMETHEUS);
            labels.extend(read.metrics.iter().flat_map(|found| known.labels(found.name).unwrap()));
        }
        let annotations = format!("{summary} {description}");
        for label in annotations.split("$labels.").skip(1).filter_map(|rest| rest.split(' ').next()) {
            assert!(labels.contains(label), "{name} has no label {label}");
        }
    }
}

#[test]
fn the_document_has_each_alert() {
    let document = std::fs::read_to_string(root().join("docs/operating.md")).unwrap();
    let rows = document.lines().filter_map(|line| line.strip_prefix("| `Sidebake")?.split('`').next());
    let rows: Vec<String> = rows.map(|rest| format!("Sidebake{rest}")).collect();
    assert_eq!(rows, alerts().iter().map(|rule| text(&rule["alert"])).collect::<Vec<_>>());
}

/// The labels of each metric, and of each series that the rules record.
struct Known {
    recorded: BTreeMap<String, Vec<String>>,
}

impl Known {
    fn new() -> Self {
        let rules = rules();
        let records = rules.iter().filter(|rule| !rule["record"].is_null()).map(|rule| {
            let grouped = Read::new(text(&rule["expr"])).grouped;
            (text(&rule["record"]).to_owned(), grouped.into_iter().map(str::to_owned).collect())
        });
        Self { recorded: records.collect() }
    }

    /// Of a series by its name in an expression. None: there is no such metric.
    fn labels(&self, name: &str) -> Option<Vec<&str>> {
        if let Some(labels) = self.recorded.get(name) {
            return Some(labels.iter().map(String::as_str).collect());
        }
        if let Some((_, labels)) = OF_OTHERS.iter().find(|(other, _)| *other == name) {
            return Some(labels.to_vec());
        }
        if name.starts_with("process_") {
            return Some(Vec::new());
        }
        metric::ALL.iter().find_map(|metric| match (metric.kind, name.strip_prefix(metric.name)?) {
            (Kind::Counter | Kind::Gauge, "") | (Kind::Histogram(_), "_sum" | "_count") => Some(metric.labels.to_vec()),
            (Kind::Histogram(_), "_bucket") => Some([metric.labels, &["le"]].concat()),
            _ => None,
        })
    }

    fn is_same_everywhere(&self, name: &str) -> bool {
        let metric = metric::ALL.iter().find(|metric| metric.name == name);
        metric.is_some_and(|metric| metric.help.contains("same from all") || metric.help.contains("report the same"))
    }
}

/// A metric in an expression.
struct Found<'a> {
    name: &'a str,
    /// The labels that its matchers name.
    matched: Vec<&'a str>,
    /// The innermost aggregation around it.
    aggregation: Option<&'a str>,
}

/// What an expression names. `promtool` has checked its grammar.
struct Read<'a> {
    metrics: Vec<Found<'a>>,
    /// The labels of `by (…)`, `on (…)` and the like.
    grouped: BTreeSet<&'a str>,
}

impl<'a> Read<'a> {
    fn new(expression: &'a str) -> Self {
        let tokens = tokens(expression);
        let next = |n: usize| tokens.get(n + 1).copied().unwrap_or_default();
        let until = |n: usize, end: &str| tokens[n..].iter().position(|token| *token == end).unwrap() + n;
        let names = |from: usize, to: usize| tokens[from..to].iter().copied().filter(|token| is_name(token));
        let (mut read, mut open, mut function, mut n) =
            (Self { metrics: vec![], grouped: BTreeSet::new() }, vec![], "", 0);
        while let Some(token) = tokens.get(n).copied() {
            match token {
                "(" => open.push(std::mem::take(&mut function)),
                ")" => drop(open.pop()),
                "and" | "or" | "unless" | "bool" | "offset" => {}
                "by" | "without" | "on" | "ignoring" | "group_left" | "group_right" if next(n) == "(" => {
                    let end = until(n, ")");
                    read.grouped.extend(names(n + 1, end));
                    n = end;
                }
                name if is_name(name) && ["(", "by", "without"].contains(&next(n)) => function = name,
                name if is_name(name) => {
                    let end = if next(n) == "{" { until(n, "}") } else { n };
                    let aggregations = ["sum", "max", "min", "count", "avg"];
                    let aggregation = open.iter().rev().copied().find(|name| aggregations.contains(name));
                    read.metrics.push(Found { name, matched: names(n + 1, end + 1).collect(), aggregation });
                    n = end;
                }
                _ => {}
            }
            n += 1;
        }
        read
    }
}

/// Names, and single characters of everything else. Texts, durations and numbers are left out.
fn tokens(expression: &str) -> Vec<&str> {
    let is_of_a_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':' || c == '.';
    let (mut tokens, mut rest) = (Vec::new(), expression);
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '"' => rest[1..].find('"').unwrap() + 2,
            '[' => rest.find(']').unwrap() + 1,
            c if is_of_a_name(c) => rest.find(|c| !is_of_a_name(c)).unwrap_or(rest.len()),
            c => c.len_utf8(),
        };
        let token;
        (token, rest) = rest.split_at(length);
        if !token.starts_with(|c: char| c == '"' || c == '[' || c.is_ascii_digit() || c.is_whitespace()) {
            tokens.push(token);
        }
    }
    tokens
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
}

/// The expressions of the dashboard, with where each one is.
fn expressions() -> Vec<(String, String)> {
    let dashboard = dashboard();
    let mut found = Vec::new();
    for panel in panels() {
        let targets = panel["targets"].as_array().cloned().unwrap_or_default();
        found.extend(targets.iter().map(|target| (text(&panel["title"]).to_owned(), text(&target["expr"]).to_owned())));
    }
    for variable in list(&dashboard["templating"]["list"]) {
        // As `label_values(METRIC, LABEL)`, which is a function of Grafana.
        if let Some(values) = variable["query"]["query"].as_str() {
            let (metric, label) =
                values.strip_prefix("label_values(").unwrap().strip_suffix(')').unwrap().rsplit_once(", ").unwrap();
            found.push((format!("variable {}", variable["name"]), format!("max by ({label}) ({metric})")));
        }
    }
    let annotations = list(&dashboard["annotations"]["list"]).iter();
    found.extend(
        annotations.map(|annotation| ("annotation".to_owned(), text(&annotation["target"]["expr"]).to_owned())),
    );
    assert!(found.len() > 50, "only {} expressions were found: the reading is broken", found.len());
    found
}

fn panels() -> Vec<Value> {
    list(&dashboard()["panels"]).clone()
}

fn dashboard() -> Value {
    serde_json::from_str(&std::fs::read_to_string(directory().join("dashboard.json")).unwrap()).unwrap()
}

fn rules() -> Vec<Value> {
    list(&yaml("alerts.yaml")["groups"]).iter().flat_map(|group| list(&group["rules"]).clone()).collect()
}

fn alerts() -> Vec<Value> {
    rules().into_iter().filter(|rule| !rule["alert"].is_null()).collect()
}

fn yaml(file: &str) -> Value {
    serde_saphyr::from_str(&std::fs::read_to_string(directory().join(file)).unwrap()).unwrap()
}

fn list(value: &Value) -> &Vec<Value> {
    static NONE: Vec<Value> = Vec::new();
    value.as_array().unwrap_or(&NONE)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn promtool(arguments: &[&str]) {
    let output = Command::new("promtool").args(arguments).current_dir(directory()).output();
    let output = output.unwrap_or_else(|error| panic!("promtool: {error}; install it: docker/install observability"));
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "promtool {arguments:?}: {said}");
}

fn directory() -> PathBuf {
    root().join("docker/observability")
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
