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

impl Kind {
    /// The end of a token that begins at `start`. `None` when the text there is not one.
    pub(super) fn end(&self, text: &[u8], start: usize) -> Option<usize> {
        let end = self.run(text, start)?;
        let token = &text[start..end];
        let is_whole = token.len() >= self.prefix.len() + self.min;
        let has_form = self.prefix != WEB_TOKEN || (count(token, b".eyJ") > 0 && count(token, b".") > 1);
        (is_whole && has_form).then_some(end)
    }

    /// Whether the text ends in what may be the beginning of a token.
    pub(super) fn is_open(&self, text: &[u8], start: usize) -> bool {
        self.run(text, start) == Some(text.len())
    }

    /// The end of the characters that a token may have. `None` in the middle of a word.
    fn run(&self, text: &[u8], start: usize) -> Option<usize> {
        let is_in_word = start.checked_sub(1).is_some_and(|at| text[at].is_ascii_alphanumeric());
        let from = start + self.prefix.len();
        let is_part = |byte: &&u8| byte.is_ascii_alphanumeric() || self.marks.as_bytes().contains(byte);
        (!is_in_word).then(|| from + text[from..].iter().take_while(is_part).count())
    }
}

fn count(text: &[u8], part: &[u8]) -> usize {
    text.windows(part.len()).filter(|window| *window == part).count()
}
