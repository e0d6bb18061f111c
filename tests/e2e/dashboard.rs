//! Loads `docker/observability/dashboard.json` by the schema that Grafana publishes: the TypeScript compiler reads it as a value of
//! those types.

use std::path::Path;
use std::process::Command;

use crate::peer::made;

const TYPES: &str = include_str!("dashboard.ts");
const DASHBOARD: &str = include_str!("../../docker/observability/dashboard.json");

#[test]
fn the_dashboard_is_one_of_grafana() {
    assert_eq!(complaints(DASHBOARD), "");
    // A value, an option and a field that Grafana does not know.
    let changes = [
        ("palette-classic", "palette-old"),
        ("\"showLegend\"", "\"showLegends\""),
        ("\"legendFormat\"", "\"legendFormatting\""),
    ];
    let wrong = changes.iter().fold(DASHBOARD.to_owned(), |wrong, (known, unknown)| wrong.replacen(known, unknown, 1));
    let said = complaints(&wrong);
    changes.iter().for_each(|(_, unknown)| assert!(said.contains(unknown), "{unknown} was accepted: {said}"));
}

/// What the compiler says of a dashboard.
fn complaints(dashboard: &str) -> String {
    let compiler = made("grafana");
    let directory = tempfile::tempdir().unwrap();
    let modules = Path::new(&compiler).parent().unwrap().join("node_modules");
    std::os::unix::fs::symlink(modules, directory.path().join("node_modules")).unwrap();
    std::fs::write(
        directory.path().join("check.ts"),
        format!("{TYPES}\nexport const dashboard: Dashboard = {dashboard}"),
    )
    .unwrap();
    let arguments = "--noEmit --strict --skipLibCheck --module nodenext --target es2022 check.ts";
    let output = Command::new(&compiler).args(arguments.split(' ')).current_dir(directory.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.success(), said.is_empty(), "{said}");
    said
}
