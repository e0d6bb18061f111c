//! Names that are safe as one component of a path or URL, and the grammar of image references.

pub mod reference;

/// Bytes of a name.
pub const MAX_NAME: usize = 100;

/// Whether a text is safe as one component of a path or URL: letters, digits, `-`, `_` and `.`, at most 100 of them, the first
/// one not a dot.
pub fn is_name(text: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !text.is_empty() && text.len() <= MAX_NAME && text.chars().all(is_allowed) && !text.starts_with('.')
}

/// Characters of a target's name.
pub const MAX_TARGET_NAME: usize = 128;

/// Whether a text can name a target: what bake allows in a definition, up to [`MAX_TARGET_NAME`] characters.
pub fn is_target_name(text: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    !text.is_empty() && text.len() <= MAX_TARGET_NAME && text.chars().all(is_allowed)
}

/// The name of the target that bake makes of a service, and selects by a name on its command line.
pub fn target_name(service: &str) -> String {
    service.replace('.', "_")
}
