//! The documents state the limits that the code has.

use sidebake::bounds;

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
    // A vector doubles when it grows; a step takes less than 768 bytes beside its texts (`bake::progress`).
    let steps = bounds::VERTICES * (768 + 64) + bounds::STEP_NAMES + bounds::ERRORS + bounds::PUSHES * 512;
    let said = bounds::SAID + bounds::NOTICES * bounds::NOTICE + 2 * bounds::REPORT;
    let parts = [
        ("steps: 10,000 records, names, errors, pushed references", steps),
        ("lines of output that have not ended", 2 * bounds::OUTPUT_OPEN),
        ("one line of JSON, while it arrives", 2 * bounds::LINE),
        ("text, notices and the report", said),
    ];
    let rows = parts.map(|(what, bytes)| (what, bytes.div_ceil(MIB)));
    let total: usize = rows.iter().map(|(_, size)| size).sum();
    let lines: Vec<String> = rows.iter().map(|(what, size)| format!("| {what} | {size} |\n")).collect();
    let table = format!("{}| **all together** | **{total}** |\n", lines.concat());
    let document = include_str!("../../docs/limits.md");
    assert!(document.contains(&table), "docs/limits.md should have these rows:\n\n{table}");
    assert!(document.contains(&format!("take {} MiB at most", 10 * total)));
}
