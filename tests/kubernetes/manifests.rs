//! The content of `docker/kubernetes`, as data.

use std::path::PathBuf;

use serde_json::Value;

/// The text of one file.
pub fn text(file: &str) -> String {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "docker", "kubernetes", file].iter().collect();
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The names of all files, with `optional/` before those that need more than Kubernetes itself.
pub fn files() -> Vec<String> {
    let folder: PathBuf = [env!("CARGO_MANIFEST_DIR"), "docker", "kubernetes"].iter().collect();
    let of = |below: &str| -> Vec<String> {
        let entries = std::fs::read_dir(folder.join(below)).unwrap().map(Result::unwrap);
        let files = entries.filter(|entry| entry.file_type().unwrap().is_file());
        files.map(|entry| format!("{below}{}", entry.file_name().into_string().unwrap())).collect()
    };
    let mut files = [of(""), of("optional/")].concat();
    files.sort_unstable();
    files
}

/// The documents of all files.
pub fn documents() -> Vec<Value> {
    let of = |file: &String| {
        serde_saphyr::from_multiple(&text(file)).unwrap_or_else(|error| panic!("docker/kubernetes/{file}: {error}"))
    };
    files().iter().flat_map(|file| -> Vec<Value> { of(file) }).collect()
}

/// The document of a kind and name.
pub fn document(kind: &str, name: &str) -> Value {
    let found = documents().into_iter().find(|one| one["kind"] == kind && one["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("docker/kubernetes has no {kind} {name}"))
}

/// The rules of a Role: group, resource and verb, one by one.
pub fn rules(role: &str) -> Vec<(String, String, String)> {
    let mut all = Vec::new();
    for rule in document("Role", role)["rules"].as_array().unwrap() {
        let list = |key: &str| -> Vec<String> { serde_json::from_value(rule[key].clone()).unwrap() };
        for group in list("apiGroups") {
            for resource in list("resources") {
                all.extend(list("verbs").into_iter().map(|verb| (group.clone(), resource.clone(), verb)));
            }
        }
    }
    all
}
