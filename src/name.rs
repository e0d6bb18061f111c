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

/// Whether a text can name a target: what bake allows, without the characters that select several, and not like an option
/// of a command line.
pub fn is_target_name(text: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    !text.is_empty() && text.len() <= 128 && !text.starts_with('-') && text.chars().all(is_allowed)
}
