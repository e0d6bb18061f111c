//! Tokens that are known by their form: a build may print one that the worker never had.

/// A kind of token.
pub(super) struct Kind {
    /// How it begins.
    pub(super) prefix: &'static str,
    /// The fewest characters after that.
    min: usize,
    /// What may follow, beside letters and digits.
    marks: &'static str,
}

const fn kind(prefix: &'static str, min: usize, marks: &'static str) -> Kind {
    Kind { prefix, min, marks }
}

/// A JSON Web Token has three parts (RFC 7519); two of them are JSON objects.
const WEB_TOKEN: &str = "eyJ";

/// Tokens of services that builds often use, as their documentation describes them.
pub(super) const KINDS: [Kind; 26] = [
    kind("ghp_", 30, "_"),
    kind("gho_", 30, "_"),
    kind("ghu_", 30, "_"),
    kind("ghs_", 30, "_"),
    kind("ghr_", 30, "_"),
    kind("github_pat_", 30, "_"),
    kind("glpat-", 20, "_-"),
    kind("gldt-", 20, "_-"),
    kind("npm_", 36, ""),
    kind("dckr_pat_", 20, "_-"),
    kind("dckr_oat_", 20, "_-"),
    kind("pypi-", 80, "_-"),
    kind("rubygems_", 40, ""),
    kind("xoxb-", 20, "-"),
    kind("xoxp-", 20, "-"),
    kind("xapp-", 20, "-"),
    kind("sk_live_", 20, ""),
    kind("rk_live_", 20, ""),
    kind("sk-ant-", 40, "_-"),
    kind("sk-proj-", 40, "_-"),
    kind("AIza", 35, "_-"),
    kind("ya29.", 40, "_-."),
    kind("hf_", 30, ""),
    kind("AGE-SECRET-KEY-1", 50, ""),
    kind("SG.", 60, "_-."),
    kind(WEB_TOKEN, 40, "_-."),
];

/// The tokens of one text, asked about from its beginning to its end.
///
/// A run of characters may have a prefix every few bytes, as in `eyJ-eyJ-…`. Only the first of them counts for each kind: a token from a
/// later one is a part of it. So each run is read once.
pub(super) struct Tokens<'t> {
    text: &'t [u8],
    /// By kind, where the last run ended.
    ends: [usize; KINDS.len()],
}

impl<'t> Tokens<'t> {
    pub(super) fn of(text: &'t [u8]) -> Self {
        Self { text, ends: [0; KINDS.len()] }
    }

    /// The end of a token of this kind that begins at `start`. `None` when the text there is not one.
    pub(super) fn end(&mut self, kind: usize, start: usize) -> Option<usize> {
        let end = self.run(kind, start)?;
        let (kind, token) = (&KINDS[kind], &self.text[start..end]);
        let is_whole = token.len() >= kind.prefix.len() + kind.min;
        let has_form = kind.prefix != WEB_TOKEN || (count(token, b".eyJ") > 0 && count(token, b".") > 1);
        (is_whole && has_form).then_some(end)
    }

    /// Whether the text ends in what may be the beginning of a token.
    pub(super) fn is_open(&mut self, kind: usize, start: usize) -> bool {
        self.run(kind, start) == Some(self.text.len())
    }

    fn run(&mut self, kind: usize, start: usize) -> Option<usize> {
        let end = (start >= self.ends[kind]).then(|| KINDS[kind].run(self.text, start)).flatten()?;
        self.ends[kind] = end;
        Some(end)
    }
}

impl Kind {
    fn is_part(&self, byte: u8) -> bool {
        byte.is_ascii_alphanumeric() || self.marks.as_bytes().contains(&byte)
    }

    /// The end of the characters that a token may have. `None` in the middle of a word.
    fn run(&self, text: &[u8], start: usize) -> Option<usize> {
        let is_in_word = start.checked_sub(1).is_some_and(|at| text[at].is_ascii_alphanumeric());
        let from = start + self.prefix.len();
        (!is_in_word).then(|| from + text[from..].iter().take_while(|byte| self.is_part(**byte)).count())
    }
}

fn count(text: &[u8], part: &[u8]) -> usize {
    text.windows(part.len()).filter(|window| *window == part).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_read_once_however_often_it_has_a_prefix() {
        let web = KINDS.iter().position(|kind| kind.prefix == WEB_TOKEN).expect("a kind");
        let text = "eyJ-".repeat(1_000);
        let mut tokens = Tokens::of(text.as_bytes());
        assert_eq!(tokens.end(web, 0), None);
        assert_eq!(tokens.run(web, 4), None, "it is a part of the run that was read");
        let mut tokens = Tokens::of(text.as_bytes());
        assert!(tokens.is_open(web, 0) && !tokens.is_open(web, 4));
        let two = format!("eyJ{} eyJ{}.eyJ{}.sig", "a".repeat(50), "b".repeat(30), "c".repeat(30));
        let mut tokens = Tokens::of(two.as_bytes());
        assert_eq!((tokens.end(web, 0), tokens.end(web, 54)), (None, Some(two.len())));
    }
}
