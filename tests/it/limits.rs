//! Checks that the documents state the limits of the code.

use sidebake::bounds;

use crate::layers::rust_files;

#[test]
fn the_table_of_limits_in_the_documents_is_the_one_in_the_code() {
    let rows: Vec<String> =
        bounds::ALL.iter().map(|bound| format!("| {} | {} | {} |", bound.what, bound.size(), bound.beyond)).collect();
    let table = format!("| what | at most | beyond it |\n|---|---|---|\n{}\n", rows.join("\n"));
    let document = include_str!("../../docs/limits.md");
    assert!(document.contains(&table), "docs/limits.md should have this table:\n\n{table}");
}

#[test]
fn the_memory_of_a_build_is_the_sum_of_its_bounds() {
    const MIB: usize = 1 << 20;
    // A vector doubles its capacity when it grows. A step takes less than 768 bytes plus its texts (`bake::progress`).
    let steps = bounds::VERTICES * (768 + 64) + bounds::STEP_NAMES + bounds::ERRORS + bounds::PUSHES * 512;
    // A value of a kept field takes 140 bytes. Escapes make a text 1.5 times as long. A request keeps texts and lists.
    let definition = bounds::VALUES * 140 + (6 << 20);
    let request = bounds::ARGUMENTS + bounds::VALUES * 64;
    let said = bounds::SAID + (bounds::NOTICES + 2 * bounds::WARNINGS) * bounds::NOTICE + 2 * bounds::REPORT;
    let parts = [
        ("steps: 10,000 records, names, errors, pushed references", steps),
        ("lines of output that have not ended", 2 * bounds::OUTPUT_OPEN),
        ("output of running steps", 2 * bounds::LOG_TAILS),
        ("one line of JSON, while it arrives", 2 * bounds::LINE),
        ("text, notices and the report", said),
        ("the definition: its text, and the fields that are looked at later", definition),
        ("what the job asks for", request),
    ];
    let rows = parts.map(|(what, bytes)| (what, bytes.div_ceil(MIB)));
    let total: usize = rows.iter().map(|(_, size)| size).sum();
    let lines: Vec<String> = rows.iter().map(|(what, size)| format!("| {what} | {size} |\n")).collect();
    let table = format!("{}| **all together** | **{total}** |\n", lines.concat());
    let document = include_str!("../../docs/limits.md");
    assert!(document.contains(&table), "docs/limits.md should have these rows:\n\n{table}");
    assert!(document.contains(&format!("take {} MiB at most", 10 * total)));
    let texts = 10 * bounds::JOBS / MIB;
    assert!(document.contains(&format!("{texts} MiB of texts")) && 10 * total + texts <= 512, "{total} {texts}");
}

/// Texts of the worker and its operator. The worker may parse them without counting first.
const OWN: [&str; 7] = [
    "src/json.rs",
    // Settings of the operator, in the form of Kubernetes' objects.
    "src/builder/cluster.rs",
    "src/builder/cluster/survey.rs",
    // From the worker to its own children.
    "src/sandbox.rs",
    "src/source/child.rs",
    // Files of the user at the command line.
    "src/cli.rs",
    "src/cli/plan.rs",
];

#[test]
fn no_customers_text_is_parsed_before_its_values_are_counted() {
    let mut found = Vec::new();
    for file in rust_files(concat!(env!("CARGO_MANIFEST_DIR"), "/src").as_ref()) {
        let text = std::fs::read_to_string(&file).unwrap();
        let text = text.split("#[cfg(test)]").next().unwrap();
        let path = file.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap().display().to_string();
        let reads = ["from_str", "from_slice", "from_reader", "from_value"];
        let is_read = reads.iter().any(|read| text.contains(&format!("serde_json::{read}")));
        let is_test = path.ends_with("tests.rs") || path.contains("/tests/");
        if is_read && !is_test && !OWN.contains(&path.as_str()) {
            found.push(path);
        }
    }
    assert_eq!(found, Vec::<String>::new(), "these should use `json::read`");
}
