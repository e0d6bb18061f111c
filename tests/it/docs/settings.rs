//! The tree of settings from the source of `src/settings`: structs and fields with their comments.

use std::collections::BTreeMap;
use std::path::Path;

use config::{Config, File, Value, ValueKind};
use syn::{Attribute, Fields, GenericArgument, Item, PathArguments, Type};

/// A table of settings.
pub(super) struct Section {
    /// Dotted path, with `NAME` for each name that the operator chooses. Empty for settings without a section.
    pub(super) path: String,
    pub(super) doc: String,
    pub(super) settings: Vec<Setting>,
}

/// One setting with a value.
pub(super) struct Setting {
    pub(super) key: String,
    pub(super) doc: String,
    /// Values of an enum, with their comments.
    pub(super) values: Vec<(String, String)>,
}

impl Section {
    /// The whole path of one of its settings.
    pub(super) fn path_of(&self, setting: &Setting) -> String {
        if self.path.is_empty() { setting.key.clone() } else { format!("{}.{}", self.path, setting.key) }
    }
}

struct Struct {
    doc: String,
    fields: Vec<(String, String, Type)>,
}

/// The declarations in the files, by type name.
struct Declared {
    structs: BTreeMap<String, Struct>,
    enums: BTreeMap<String, Vec<(String, String)>>,
    /// The struct that a type is read from.
    read_as: BTreeMap<String, String>,
}

/// Every section, in the order of the declarations.
pub(super) fn sections() -> Vec<Section> {
    let declared = Declared::read(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src/settings.rs")));
    let mut sections = Vec::new();
    declared.walk("Settings", String::new(), "", &mut sections);
    sections
}

/// The defaults from the example file. A test of `configuration` keeps it equal to the defaults of the code.
pub(super) fn defaults() -> Config {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/sidebake.toml");
    Config::builder().add_source(File::from(example)).build().unwrap()
}

/// A value in TOML.
pub(super) fn toml(value: &Value) -> String {
    match &value.kind {
        ValueKind::String(text) => format!("{text:?}"),
        ValueKind::Array(items) => format!("[{}]", items.iter().map(toml).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}

impl Declared {
    fn read(parent: &Path) -> Self {
        let mut declared = Self { structs: BTreeMap::new(), enums: BTreeMap::new(), read_as: BTreeMap::new() };
        let children = std::fs::read_dir(parent.with_extension("")).unwrap().map(|entry| entry.unwrap().path());
        for file in children.filter(|path| path.is_file()).chain([parent.to_owned()]) {
            let items = syn::parse_file(&std::fs::read_to_string(&file).unwrap()).unwrap().items;
            items.into_iter().for_each(|item| declared.take(item));
        }
        declared
    }

    fn take(&mut self, item: Item) {
        match item {
            Item::Struct(item) if is_deserialized(&item.attrs) => {
                let Fields::Named(fields) = item.fields else { return };
                if let Some(table) = serde_text(&item.attrs, "from") {
                    self.read_as.insert(item.ident.to_string(), table);
                    return;
                }
                let fields = fields.named.into_iter().filter(|field| !has_serde(&field.attrs, "skip"));
                let fields =
                    fields.map(|field| (field.ident.unwrap().to_string(), doc(&field.attrs), field.ty)).collect();
                self.structs.insert(item.ident.to_string(), Struct { doc: doc(&item.attrs), fields });
            }
            Item::Enum(item) if is_deserialized(&item.attrs) => {
                let rule = serde_text(&item.attrs, "rename_all");
                let variants = item.variants.into_iter().map(|variant| {
                    let renamed = serde_text(&variant.attrs, "rename");
                    let name = renamed.unwrap_or_else(|| cased(&variant.ident.to_string(), rule.as_deref()));
                    (name, doc(&variant.attrs))
                });
                self.enums.insert(item.ident.to_string(), variants.collect());
            }
            _ => {}
        }
    }

    /// `about` is the comment on a map of such structs.
    fn walk(&self, name: &str, path: String, about: &str, sections: &mut Vec<Section>) {
        let declared = &self.structs[name];
        let mut nested = Vec::new();
        let mut settings = Vec::new();
        for (key, doc, declared_type) in &declared.fields {
            let below = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            let (kind, is_map) = innermost(declared_type);
            let kind = self.read_as.get(&kind).cloned().unwrap_or(kind);
            match kind {
                kind if self.structs.contains_key(&kind) => {
                    nested.push(if is_map { (kind, format!("{below}.NAME"), doc.as_str()) } else { (kind, below, "") });
                }
                kind => {
                    let values = self.enums.get(&kind).cloned().unwrap_or_default();
                    settings.push(Setting { key: key.clone(), doc: doc.clone(), values });
                }
            }
        }
        sections.push(Section { path, doc: format!("{about} {}", declared.doc).trim().to_owned(), settings });
        nested.into_iter().for_each(|(name, path, about)| self.walk(&name, path, about, sections));
    }
}

/// The name of the type inside `Option`, `Vec` and map values, and whether there is a map.
fn innermost(declared: &Type) -> (String, bool) {
    let Type::Path(path) = declared else { panic!("a setting of an unusual type") };
    let last = path.path.segments.last().unwrap();
    let name = last.ident.to_string();
    let PathArguments::AngleBracketed(arguments) = &last.arguments else { return (name, false) };
    let Some(GenericArgument::Type(inner)) = arguments.args.last() else { panic!("{name} of what?") };
    let (inner, is_map) = innermost(inner);
    (inner, is_map || name == "BTreeMap")
}

fn doc(attributes: &[Attribute]) -> String {
    let lines = attributes.iter().filter(|attribute| attribute.path().is_ident("doc")).filter_map(|attribute| {
        let syn::Meta::NameValue(pair) = &attribute.meta else { return None };
        let syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) = &pair.value else { return None };
        Some(text.value().trim().to_owned())
    });
    lines.collect::<Vec<_>>().join(" ")
}

fn is_deserialized(attributes: &[Attribute]) -> bool {
    let tokens = |attribute: &Attribute| attribute.meta.require_list().map(|list| list.tokens.to_string());
    let mut derives = attributes.iter().filter(|attribute| attribute.path().is_ident("derive"));
    derives.any(|attribute| tokens(attribute).is_ok_and(|tokens| tokens.contains("Deserialize")))
}

fn has_serde(attributes: &[Attribute], word: &str) -> bool {
    serde(attributes).any(|tokens| tokens.split(',').any(|part| part.trim() == word))
}

fn serde_text(attributes: &[Attribute], key: &str) -> Option<String> {
    let pairs = serde(attributes).collect::<Vec<_>>().join(",");
    let mut pairs = pairs.split(',').filter_map(|pair| pair.split_once('='));
    let (_, value) = pairs.find(|(name, _)| name.trim() == key)?;
    Some(value.trim().trim_matches('"').to_owned())
}

fn serde(attributes: &[Attribute]) -> impl Iterator<Item = String> {
    let attributes = attributes.iter().filter(|attribute| attribute.path().is_ident("serde"));
    attributes.map(|attribute| attribute.meta.require_list().unwrap().tokens.to_string())
}

/// `DockerContainer` in `kebab-case` or `snake_case`.
fn cased(name: &str, rule: Option<&str>) -> String {
    let divider = match rule {
        Some("kebab-case") => "-",
        Some("snake_case") => "_",
        other => panic!("{name}: no rule {other:?}"),
    };
    let parts = name.char_indices().flat_map(|(i, c)| {
        let divider = if i > 0 && c.is_uppercase() { divider } else { "" };
        divider.chars().chain(c.to_lowercase()).collect::<Vec<_>>()
    });
    parts.collect()
}
