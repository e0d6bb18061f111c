//! The words of an instruction: flags, quotes, variables.

/// The flags after a keyword.
pub(in crate::cache) fn flags(text: &str) -> impl Iterator<Item = &str> {
    text.split_ascii_whitespace().take_while(|word| word.starts_with("--"))
}

pub(in crate::cache) fn after_flags(text: &str) -> &str {
    let mut rest = text.trim_start();
    while rest.starts_with("--") {
        rest = rest.find(char::is_whitespace).map_or("", |end| rest[end..].trim_start());
    }
    rest
}

/// Words as the shell separates them, with their quotes. `None` when a quote does not end.
pub(super) fn words(text: &str) -> Option<Vec<String>> {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    let mut rest = text.chars();
    while let Some(character) = rest.next() {
        match (character, quote) {
            (character, None) if character.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            ('\\', None | Some('"')) => {
                word.push(character);
                word.extend(rest.next());
                continue;
            }
            ('"' | '\'', None) => quote = Some(character),
            (character, Some(open)) if character == open => quote = None,
            _ => {}
        }
        word.push(character);
    }
    if !word.is_empty() {
        words.push(word);
    }
    quote.is_none().then_some(words)
}

/// A value without the quotes around all of it.
pub(super) fn unquoted(value: &str) -> String {
    let inner = ['"', '\''].into_iter().find_map(|quote| {
        let inner = value.strip_prefix(quote)?.strip_suffix(quote)?;
        (!inner.contains([quote, '\\', '$'])).then_some(inner)
    });
    inner.unwrap_or(value).to_owned()
}

/// The names after each `$`.
pub(super) fn mentions(text: &str) -> Vec<String> {
    let name = |rest: &str| {
        let rest = rest.strip_prefix('{').unwrap_or(rest);
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        (end > 0).then(|| rest[..end].to_owned())
    };
    let mut names: Vec<String> = text.split('$').skip(1).filter_map(name).collect();
    names.sort();
    names.dedup();
    names
}

/// A text with the values of its variables. `None` when it has anything but `$NAME` and `${NAME}`, or an unknown name.
pub(in crate::cache) fn expand(text: &str, lookup: &impl Fn(&str) -> Option<String>) -> Option<String> {
    let (mut expanded, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once('$') {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let (name, end) = match after.strip_prefix('{') {
            Some(inner) => inner.split_once('}')?,
            None => after.split_at(after.find(|c| !is_plain(c)).unwrap_or(after.len())),
        };
        if name.is_empty() || !name.chars().all(is_plain) {
            return None;
        }
        let value = lookup(name).filter(|value| !value.contains(['$', '\\', '"', '\'']))?;
        expanded.push_str(before);
        expanded.push_str(&value);
        rest = end;
    }
    expanded.push_str(rest);
    (!expanded.contains(['\\', '"', '\''])).then_some(expanded)
}
