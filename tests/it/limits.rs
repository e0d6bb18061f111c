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
